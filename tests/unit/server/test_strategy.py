"""One round of the strategy: what is asked, what counts, and what is left alone when a round fails."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from client.contract import Weights, decode_request, decode_weights, encode_update
from server.errors import AggregationError, CheckpointError, QuorumLostError, StrategyError
from server.settings import StrategySettings
from server.strategy import ADMITTED, FederatedStrategy
from tests.support.replies import ask, honest_reply, honest_update, site_names, small_strategy, some_weights
from vae.weights import hash_weights

FEDAVG = StrategySettings(name="fedavg")
ALL = [
    StrategySettings(name=name) for name in ("fedavg", "fedadam", "fedyogi", "median", "trimmed-mean", "krum")
]


def _filled(value: float) -> Weights:
    return {name: np.full_like(array, value) for name, array in some_weights(0).items()}


def _replies(strategy: FederatedStrategy, round_: int, deltas: dict[str, Weights]) -> list[Message]:
    base = dict(strategy.weights)
    requests = ask(strategy, round_)
    return [honest_reply(requests[site], site, round_, base, delta) for site, delta in deltas.items()]


def _reasons(strategy: FederatedStrategy) -> list[str]:
    return [f"{rejection.round} {rejection.site} {rejection.reason}" for rejection in strategy.rejections]


def _bytes(weights: Weights) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in weights.items()}


class TestRequests:
    def test_every_enrolled_site_is_asked_in_the_order_of_names(self, tmp_path: Path) -> None:
        strategy = small_strategy(FEDAVG, tmp_path, sites=["site-3", "site-1", "site-2"])
        assert list(ask(strategy)) == ["site-1", "site-2", "site-3"]

    def test_a_request_holds_the_weights_and_their_hash(self, tmp_path: Path) -> None:
        strategy = small_strategy(FEDAVG, tmp_path, sites=site_names(2))
        message = ask(strategy, 7)["site-2"]
        request, weights = decode_request(message.content)
        assert (request.round, request.base_hash) == (7, hash_weights(strategy.weights))
        assert _bytes(weights) == _bytes(strategy.weights)
        assert (message.metadata.message_type, message.metadata.group_id) == ("train", "7")

    def test_no_record_is_shared_between_sites(self, tmp_path: Path) -> None:
        # Flower's own strategies put one RecordDict into all messages: what one site's mod changes, all others see.
        first, second = ask(small_strategy(FEDAVG, tmp_path, sites=site_names(2))).values()
        assert first.content is not second.content
        for key in first.content:
            assert first.content[key] is not second.content[key]
        record, untouched = first.content.array_records["weights"], second.content.array_records["weights"]
        del record["decoder.bias"]
        assert "decoder.bias" in untouched

    def test_there_is_no_federated_evaluation(self, tmp_path: Path) -> None:
        strategy = small_strategy(FEDAVG, tmp_path, sites=site_names(2))
        no_grid = cast(Grid, None)
        assert list(strategy.configure_evaluate(1, ArrayRecord(), ConfigRecord(), no_grid)) == []
        assert strategy.aggregate_evaluate(1, []) is None


class TestRound:
    def test_the_model_moves_by_the_mean_change(self, tmp_path: Path) -> None:
        # weights 2 : 1 : 1, changes 1, 2, 4 -> (2 + 2 + 4) / 4 = 2
        strategy = small_strategy(
            FEDAVG, tmp_path, sites=site_names(3), site_weights={"site-1": 2.0, "site-2": 1.0, "site-3": 1.0}
        )
        base = dict(strategy.weights)
        deltas = {"site-1": _filled(1), "site-2": _filled(2), "site-3": _filled(4)}
        record, metrics = strategy.aggregate_train(1, _replies(strategy, 1, deltas))
        assert metrics is None
        assert record is not None
        for name, array in strategy.weights.items():
            np.testing.assert_allclose(array, base[name] + 2, rtol=1e-6)
            assert array.dtype == np.float32
        assert _bytes(decode_weights(RecordDict({"weights": record}))) == _bytes(strategy.weights)

    def test_weights_are_renormalised_over_the_admitted(self, tmp_path: Path) -> None:
        # site-1 (weight 2) is missing: (2 + 4) / 2 = 3
        strategy = small_strategy(
            FEDAVG, tmp_path, sites=site_names(3), site_weights={"site-1": 2.0, "site-2": 1.0, "site-3": 1.0}
        )
        base = dict(strategy.weights)
        strategy.aggregate_train(1, _replies(strategy, 1, {"site-2": _filled(2), "site-3": _filled(4)}))
        np.testing.assert_allclose(strategy.weights["decoder.bias"], base["decoder.bias"] + 3, rtol=1e-6)
        assert _reasons(strategy) == ["1 site-1 no-reply"]
        assert strategy.participation == [{"site-1": "no-reply", "site-2": ADMITTED, "site-3": ADMITTED}]

    @pytest.mark.parametrize("settings", ALL, ids=lambda s: s.name)
    def test_the_order_of_replies_changes_no_bit(self, settings: StrategySettings, tmp_path: Path) -> None:
        sites = site_names(5)
        deltas = {site: some_weights(index, scale=0.1) for index, site in enumerate(sites, start=1)}
        outcomes = set()
        for order in itertools.islice(itertools.permutations(sites), 0, 120, 17):
            strategy = small_strategy(settings, tmp_path, sites=sites)
            for round_ in (1, 2):
                strategy.aggregate_train(
                    round_, _replies(strategy, round_, {site: deltas[site] for site in order})
                )
            outcomes.add(tuple(_bytes(strategy.weights).values()))
        assert len(outcomes) == 1

    def test_one_reply_is_held_at_a_time(self, tmp_path: Path) -> None:
        strategy = small_strategy(FEDAVG, tmp_path, sites=site_names(6))
        base = dict(strategy.weights)
        requests = ask(strategy)
        earlier: list[weakref.ref[Message]] = []
        alive: list[int] = []

        def arriving() -> Iterator[Message]:
            for site, request in requests.items():
                gc.collect()
                alive.append(sum(reference() is not None for reference in earlier))
                reply = honest_reply(request, site, 1, base, _filled(1))
                earlier.append(weakref.ref(reply))
                yield reply
                del reply

        strategy.aggregate_train(1, arriving())
        assert alive == [0] * 6

    def test_claims_are_kept_for_the_admitted_only(self, tmp_path: Path) -> None:
        strategy = small_strategy(FEDAVG, tmp_path, sites=site_names(2))
        base = dict(strategy.weights)
        requests = ask(strategy)
        good = honest_reply(requests["site-1"], "site-1", 1, base, _filled(1))
        bad = honest_reply(requests["site-2"], "site-2", 1, base, _filled(np.nan))
        strategy.aggregate_train(1, [good, bad])
        assert strategy.claims == {"site-1": honest_update("site-1", 1, base, _filled(1)).claim.to_json()}


class TestReplies:
    @pytest.fixture
    def strategy(self, tmp_path: Path) -> FederatedStrategy:
        return small_strategy(FEDAVG, tmp_path, sites=site_names(3))

    def test_a_second_reply_does_not_count(self, strategy: FederatedStrategy) -> None:
        base = dict(strategy.weights)
        replies = _replies(strategy, 1, {site: _filled(1) for site in site_names(3)})
        strategy.aggregate_train(1, [*replies, replies[0]])
        assert _reasons(strategy) == ["1 site-1 duplicate"]
        assert strategy.participation[-1]["site-1"] == ADMITTED
        np.testing.assert_allclose(strategy.weights["decoder.bias"], base["decoder.bias"] + 1, rtol=1e-6)

    def test_a_reply_to_an_earlier_round_is_late(self, strategy: FederatedStrategy) -> None:
        (late, *_) = replies = _replies(strategy, 1, {site: _filled(1) for site in site_names(3)})
        strategy.aggregate_train(1, replies[1:])
        strategy.aggregate_train(
            2, [late, *_replies(strategy, 2, {site: _filled(1) for site in site_names(3)})]
        )
        assert _reasons(strategy) == ["1 site-1 no-reply", "2 site-1 late"]
        assert strategy.participation[-1] == dict.fromkeys(site_names(3), ADMITTED)

    def test_a_node_that_was_not_asked_is_named_unknown(
        self, strategy: FederatedStrategy, tmp_path: Path
    ) -> None:
        other = small_strategy(FEDAVG, tmp_path, sites=["site-9"])
        stranger = _replies(other, 5, {"site-9": _filled(1)})
        replies = _replies(strategy, 1, {site: _filled(1) for site in site_names(3)})
        strategy.aggregate_train(1, [*stranger, *replies])
        assert _reasons(strategy) == ["1 unknown wrong-site"]

    def test_nobody_can_answer_in_the_place_of_another(self, strategy: FederatedStrategy) -> None:
        base = dict(strategy.weights)
        requests = ask(strategy)
        stolen = Message(
            encode_update(honest_update("site-1", 1, base, _filled(9))), reply_to=requests["site-1"]
        )
        stolen.metadata.__dict__["_src_node_id"] = 13  # site-3 answers site-1's request first
        replies = [honest_reply(requests[site], site, 1, base, _filled(1)) for site in site_names(3)]
        strategy.aggregate_train(1, [stolen, *replies])
        assert _reasons(strategy) == ["1 site-3 late"]
        np.testing.assert_allclose(strategy.weights["decoder.bias"], base["decoder.bias"] + 1, rtol=1e-6)

    def test_flower_may_say_that_a_node_is_lost(self, strategy: FederatedStrategy) -> None:
        base = dict(strategy.weights)
        requests = ask(strategy)
        lost = Message(Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable"), reply_to=requests["site-2"])
        lost.metadata.__dict__["_src_node_id"] = 1  # the SuperLink itself, flwr 1.41
        honest = honest_reply(requests["site-1"], "site-1", 1, base, _filled(1))
        strategy.aggregate_train(1, [lost, honest])
        assert _reasons(strategy) == ["1 site-2 site-failed:agent-unreachable", "1 site-3 no-reply"]


class TestFailingRounds:
    @pytest.mark.parametrize("settings", ALL, ids=lambda s: s.name)
    def test_below_quorum_nothing_changes(self, settings: StrategySettings, tmp_path: Path) -> None:
        sites = site_names(5)
        strategy = small_strategy(settings, tmp_path, sites=sites, quorum=5)
        deltas = {site: some_weights(index, scale=0.1) for index, site in enumerate(sites, start=1)}
        strategy.aggregate_train(1, _replies(strategy, 1, deltas))
        before, optimiser = _bytes(strategy.weights), _bytes(strategy.state().optimiser)
        with pytest.raises(
            QuorumLostError, match=r"round 2: 4 updates admitted .site-1, site-2, site-4, site-5.*is 5"
        ):
            strategy.aggregate_train(
                2, _replies(strategy, 2, {site: deltas[site] for site in sites if site != "site-3"})
            )
        assert (_bytes(strategy.weights), _bytes(strategy.state().optimiser)) == (before, optimiser)
        lost = [f"2 {site} round-lost" for site in sites if site != "site-3"]
        assert _reasons(strategy) == ["2 site-3 no-reply", *lost], "their privacy is spent for nothing"
        strategy.aggregate_train(3, _replies(strategy, 3, deltas))  # and the run can go on
        assert _bytes(strategy.weights) != before

    def test_a_rule_with_too_few_updates_changes_nothing_and_is_named(self, tmp_path: Path) -> None:
        strategy = small_strategy(StrategySettings(name="krum"), tmp_path, sites=site_names(5))
        before = _bytes(strategy.weights)
        with pytest.raises(
            AggregationError, match="krum with num_byzantine 1 and num_selected 1: 4 updates, needs 5"
        ):
            strategy.aggregate_train(1, _replies(strategy, 1, {site: _filled(1) for site in site_names(4)}))
        assert _bytes(strategy.weights) == before
        assert _reasons(strategy) == [
            "1 site-5 no-reply",
            *(f"1 {site} round-lost" for site in site_names(4)),
        ]

    def test_an_interrupted_generator_changes_nothing(self, tmp_path: Path) -> None:
        strategy = small_strategy(FEDAVG, tmp_path, sites=site_names(3))
        before = _bytes(strategy.weights)

        def breaking(replies: list[Message]) -> Iterator[Message]:
            yield replies[0]
            raise ConnectionError("the SuperLink is gone")

        with pytest.raises(ConnectionError):
            strategy.aggregate_train(
                1, breaking(_replies(strategy, 1, {site: _filled(1) for site in site_names(3)}))
            )
        assert _bytes(strategy.weights) == before

    @pytest.mark.parametrize("round_", [1, 3])
    def test_a_round_is_configured_before_it_is_aggregated(self, round_: int, tmp_path: Path) -> None:
        strategy = small_strategy(FEDAVG, tmp_path, sites=site_names(3))
        if round_ == 3:
            ask(strategy, 2)
        with pytest.raises(ValueError, match=f"round {round_}: configure_train comes first"):
            strategy.aggregate_train(round_, [])


class TestState:
    @pytest.mark.parametrize("settings", ALL, ids=lambda s: s.name)
    def test_a_restored_strategy_continues_bit_for_bit(
        self, settings: StrategySettings, tmp_path: Path
    ) -> None:
        sites = site_names(5)

        def rounds(strategy: FederatedStrategy, numbers: range) -> FederatedStrategy:
            for number in numbers:
                deltas = {s: some_weights(10 * number + i, scale=0.1) for i, s in enumerate(sites)}
                strategy.aggregate_train(number, _replies(strategy, number, deltas))
            return strategy

        whole = rounds(small_strategy(settings, tmp_path, sites=sites), range(1, 5))
        half = rounds(small_strategy(settings, tmp_path, sites=sites), range(1, 3))
        second = small_strategy(settings, tmp_path, sites=sites)
        second.restore(half.state())
        rounds(second, range(3, 5))
        assert _bytes(second.weights) == _bytes(whole.weights)
        assert _bytes(second.state().optimiser) == _bytes(whole.state().optimiser)
        assert second.state().claims == whole.state().claims
        assert second.state().participation == whole.state().participation

    def test_without_its_optimiser_an_adaptive_run_would_differ(self, tmp_path: Path) -> None:
        # Shows that the test above can fail.
        sites = site_names(5)
        strategy = small_strategy(StrategySettings(name="fedadam"), tmp_path, sites=sites)
        deltas = {site: some_weights(index) for index, site in enumerate(sites, start=1)}
        strategy.aggregate_train(1, _replies(strategy, 1, deltas))
        forgetful = small_strategy(StrategySettings(name="fedadam"), tmp_path, sites=sites)
        forgetful.weights = dict(strategy.weights)
        for each in (strategy, forgetful):
            each.aggregate_train(2, _replies(each, 2, deltas))
        assert _bytes(strategy.weights) != _bytes(forgetful.weights)

    def test_the_state_of_another_model_is_refused(self, tmp_path: Path) -> None:
        strategy = small_strategy(FEDAVG, tmp_path, sites=site_names(2))
        state = strategy.state()
        state.weights["decoder.bias"] = np.zeros(4, np.float32)
        with pytest.raises(CheckpointError, match="not those of this model"):
            strategy.restore(state)

    def test_the_state_of_another_optimiser_is_refused(self, tmp_path: Path) -> None:
        sites = site_names(2)
        adam = small_strategy(StrategySettings(name="fedadam"), tmp_path, sites=sites)
        adam.aggregate_train(1, _replies(adam, 1, {site: _filled(1) for site in sites}))
        plain = small_strategy(FEDAVG, tmp_path, sites=sites)
        before = _bytes(plain.weights)
        with pytest.raises(CheckpointError, match="a plain server has no state"):
            plain.restore(adam.state())
        assert _bytes(plain.weights) == before


class TestConstruction:
    def _make(self, tmp_path: Path, **changes: object) -> None:
        arguments: dict = {"sites": site_names(3), "quorum": 2, **changes}
        small_strategy(arguments.pop("settings", FEDAVG), tmp_path, **arguments)

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"quorum": 0}, "quorum is 0, must be in 1..3"),
            ({"quorum": 4}, "quorum is 4, must be in 1..3"),
            ({"sites": []}, "no site is enrolled"),
            ({"site_weights": {"site-1": 1.0}}, "site_weights must name exactly the enrolled sites"),
            ({"site_weights": dict.fromkeys(site_names(3), 0.0)}, "site_weights must be positive"),
            ({"site_weights": dict.fromkeys(site_names(3), float("inf"))}, "site_weights must be positive"),
            ({"settings": StrategySettings(name="krum")}, "the rule needs 5 updates, 3 sites are enrolled"),
            (
                {
                    "settings": StrategySettings(name="median"),
                    "site_weights": {"site-1": 2.0, "site-2": 1.0, "site-3": 1.0},
                },
                "the rule ignores weights of sites",
            ),
        ],
    )
    def test_settings_that_contradict_each_other_are_refused(
        self, changes: dict[str, object], text: str, tmp_path: Path
    ) -> None:
        with pytest.raises(StrategyError, match=text):
            self._make(tmp_path, **changes)

    def test_everything_wrong_is_said_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(StrategyError, match=r"quorum is 9.*rule needs 3 updates"):
            self._make(tmp_path, settings=StrategySettings(name="median"), sites=site_names(2), quorum=9)

    def test_summary_names_the_strategy(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO", logger="server.strategy"):
            small_strategy(FEDAVG, tmp_path, sites=site_names(3), quorum=2).summary()
        assert "strategy fedavg: 3 sites, quorum 2" in caplog.text

    def test_metrics_cannot_come_back(self, tmp_path: Path) -> None:
        strategy = small_strategy(FEDAVG, tmp_path, sites=site_names(2))
        base = dict(strategy.weights)
        requests = ask(strategy)
        chatty = honest_reply(requests["site-1"], "site-1", 1, base, _filled(1))
        chatty.content["metrics"] = MetricRecord({"num-examples": 12})
        strategy.aggregate_train(1, [chatty, honest_reply(requests["site-2"], "site-2", 1, base, _filled(1))])
        assert _reasons(strategy) == ["1 site-1 malformed"]
