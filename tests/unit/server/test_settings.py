"""Strategies by name: every setting has an effect or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.admission import Admission
from server.aggregate import WeightedMean
from server.errors import StrategyError
from server.optimise import Adaptive, Plain
from server.robust import CoordinateMedian, Krum, Spooled, TrimmedMean
from server.settings import StrategySettings
from server.strategy import make_strategy
from tests.support.replies import request_for, site_names, some_weights


@pytest.mark.parametrize(
    ("settings", "aggregator", "optimiser"),
    [
        ({"name": "fedavg"}, WeightedMean(max_abs=1000.0), Plain()),
        ({"name": "fedprox", "max_update_norm": 5.0}, WeightedMean(max_abs=5.0), Plain()),
        ({"name": "fedavg", "learning_rate": 0.5}, WeightedMean(max_abs=1000.0), Plain(learning_rate=0.5)),
        ({"name": "fedadam"}, WeightedMean(max_abs=1000.0), Adaptive(second_moment="adam")),
        (
            {"name": "fedyogi", "learning_rate": 0.1, "beta_1": 0.0, "beta_2": 0.5, "tau": 0.01},
            WeightedMean(max_abs=1000.0),
            Adaptive(second_moment="yogi", learning_rate=0.1, beta_1=0.0, beta_2=0.5, tau=0.01),
        ),
        ({"name": "median"}, Spooled(rule=CoordinateMedian(), scratch=Path("s")), Plain()),
        ({"name": "trimmed-mean"}, Spooled(rule=TrimmedMean(trim=1), scratch=Path("s")), Plain()),
        ({"name": "trimmed-mean", "trim": 2}, Spooled(rule=TrimmedMean(trim=2), scratch=Path("s")), Plain()),
        ({"name": "krum"}, Spooled(rule=Krum(num_byzantine=1), scratch=Path("s")), Plain()),
        (
            {"name": "krum", "num_byzantine": 2, "num_selected": 3},
            Spooled(rule=Krum(num_byzantine=2, num_selected=3), scratch=Path("s")),
            Plain(),
        ),
    ],
)
def test_a_name_stands_for_a_rule_and_an_optimiser(
    settings: dict, aggregator: object, optimiser: object
) -> None:
    made = StrategySettings(**settings)
    assert made.make_aggregator(Path("s")) == aggregator
    assert made.make_optimiser() == optimiser


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": "fedsgd"}, "'fedsgd' is unknown; there are fedavg, fedprox"),
        ({"name": "fedavg", "trim": 1}, "fedavg: trim would do nothing; it knows learning_rate"),
        ({"name": "median", "tau": 0.1, "trim": 1}, "median: tau, trim would do nothing"),
        ({"name": "krum", "beta_1": 0.0}, "krum: beta_1 would do nothing"),
        ({"name": "trimmed-mean", "trim": 0}, "trim is 0: it would trim nobody"),
        ({"name": "krum", "num_byzantine": 0}, "num_byzantine is 0"),
        ({"name": "krum", "num_selected": 0}, "num_selected is 0"),
        ({"name": "fedavg", "learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"name": "fedadam", "tau": 0.0}, "tau is 0.0"),
        ({"name": "fedadam", "beta_1": 1.0}, "beta_1 is 1.0"),
        ({"name": "fedyogi", "beta_2": -0.1}, "beta_2 is -0.1"),
    ],
)
def test_what_would_do_nothing_or_is_out_of_range_is_refused(settings: dict, text: str) -> None:
    with pytest.raises(StrategyError, match=text):
        StrategySettings(**settings)


@pytest.mark.parametrize(
    ("krum", "needed"),
    [(Krum(num_byzantine=1), 5), (Krum(num_byzantine=2), 7), (Krum(num_byzantine=1, num_selected=4), 7)],
)
def test_krum_needs_2_f_plus_3_and_m_plus_f_plus_2(krum: Krum, needed: int) -> None:
    assert krum.minimum_updates == needed


def _make(name: str, *, proximal_mu: float = 0.0, max_update_norm: float = 1000.0) -> None:
    make_strategy(
        StrategySettings(name=name),  # type: ignore[arg-type]
        admission=Admission(max_update_norm=max_update_norm),
        enrolled={"site-1": 1, "site-2": 2},
        site_weights=dict.fromkeys(site_names(2), 1.0),
        quorum=1,
        weights=some_weights(0),
        request_for=lambda *request: request_for(*request, proximal_mu=proximal_mu),
    )


def test_fedprox_needs_a_pull_and_fedavg_must_have_none() -> None:
    _make("fedprox", proximal_mu=0.1)
    _make("fedavg")
    _make("fedadam", proximal_mu=0.1)
    with pytest.raises(StrategyError, match="fedprox: proximal_mu of the learning plan is 0"):
        _make("fedprox")
    with pytest.raises(StrategyError, match="fedavg: proximal_mu of the learning plan is not 0"):
        _make("fedavg", proximal_mu=0.1)


def test_admission_may_not_let_pass_what_the_mean_cannot_hold() -> None:
    _make("fedavg", max_update_norm=10.0)
    with pytest.raises(StrategyError, match=r"up to 1000\.5 pass, the strategy is set to 1000\.0"):
        _make("fedavg", max_update_norm=1000.5)


def test_two_sites_cannot_be_one_node() -> None:
    with pytest.raises(StrategyError, match="two sites have the same node"):
        make_strategy(
            StrategySettings(name="fedavg"),
            admission=Admission(max_update_norm=1.0),
            enrolled={"site-1": 1, "site-2": 1},
            site_weights=dict.fromkeys(site_names(2), 1.0),
            quorum=1,
            weights=some_weights(0),
            request_for=request_for,
        )
