"""The Flower strategy: what a round asks of the sites, and what it makes of their replies.

One reply is looked at at a time: admitted, added to the aggregate, dropped. A reply that is not admitted
leaves a `Rejection` and nothing else, so a hostile or failing site changes the global model in no bit.

Guarantees (tests/unit/server/test_strategy.py, test_hostile.py):
    The new weights do not depend on the order of replies. Whatever goes wrong in a round, weights and
    optimiser stay as they were before it. At most one update is held besides the aggregate.

It does not wait, retry or save (`server.rounds`), and there is no federated evaluation: metrics are data.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.app.metadata import Metadata
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from client.contract import BASIS, TrainRequest, Weights, arrays_of, encode_request, encode_weights
from server.admission import Admission, Expectation, RejectedError, Rejection, RejectionCode
from server.aggregate import Aggregator
from server.average import averaged, require_decay, restored
from server.errors import AggregationError, CheckpointError, QuorumLostError, StrategyError
from server.optimise import ServerOptimiser
from server.settings import StrategySettings
from server.witness import Witness
from vae.weights import hash_weights

__all__ = [
    "ADMITTED",
    "FederatedStrategy",
    "StrategySettings",
    "StrategyState",
    "make_strategy",
    "rounds_applied",
]

ADMITTED = "admitted"
RequestFor = Callable[[str, int, str], TrainRequest]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StrategyState:
    """What a checkpoint keeps of a strategy.

    Attributes:
        weights: Shared weights, name -> float32.
        optimiser: State of the server's optimiser.
        rejections: All so far.
        claims: Site -> its latest admitted claim, as JSON.
        participation: For each round from 1: site -> `admitted`, or why not.
        heads: Ledger heads that were kept (`server.witness`).
        average: Of the weights over rounds (`server.average`); empty if none is kept.
    """

    weights: Weights
    optimiser: Weights
    rejections: tuple[Rejection, ...]
    claims: Mapping[str, str]
    participation: tuple[Mapping[str, str], ...]
    heads: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    average: Weights = field(default_factory=dict)

    @property
    def final(self) -> Weights:
        """Return what a run hands out: the average where one is kept, else the weights. Rounds never go on from it."""
        return self.average or self.weights


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """One request of the current round; Flower fills in the message's id when it is sent."""

    metadata: Metadata
    expected: Expectation


class FederatedStrategy(Strategy):
    """Admission, aggregation and the server's optimiser, as a Flower strategy.

    Attributes:
        weights: The global model's shared weights, name -> float32; replaced after each round.
        rejections: Every reply that did not count, all rounds.
        claims: Site -> its latest admitted claim, as JSON.
        participation: For each round: site -> `admitted`, or why not.
        average: Of the weights over rounds; empty if none is kept.
    """

    def __init__(
        self,
        *,
        name: str,
        aggregator: Aggregator,
        optimiser: ServerOptimiser,
        admission: Admission,
        enrolled: Mapping[str, int],
        site_weights: Mapping[str, float],
        quorum: int,
        weights: Weights,
        request_for: RequestFor,
        weight_average: float | None = None,
        basis: Weights | None = None,
    ) -> None:
        """Check the settings against each other.

        Args:
            name: For the report.
            aggregator: Rule of aggregation; used for all rounds.
            optimiser: What to do with the aggregated change.
            admission: Rules for replies.
            enrolled: Site -> node id.
            site_weights: Site -> public constant > 0; renormalised over the admitted sites of each round.
            quorum: Fewest admitted updates, in 1..number of sites.
            weights: Where the run starts; float32.
            request_for: (site, round, hash of the base weights) -> what to ask.
            weight_average: Decay of the average over rounds, in (0, 1); None keeps none.
            basis: Public directions that go with every request; None without a subspace.

        Raises:
            StrategyError: settings contradict each other; lists everything that is wrong.
        """
        super().__init__()
        problems = _problems(enrolled, site_weights, quorum, aggregator)
        if problems:
            raise StrategyError(f"strategy {name}: " + "; ".join(problems))
        require_decay(weight_average)
        self.name, self.quorum = name, quorum
        self.weights: Weights = dict(sorted(weights.items()))
        self.rejections: list[Rejection] = []
        self.claims: dict[str, str] = {}
        self.participation: list[dict[str, str]] = []
        self.average: Weights = {}
        self._decay = weight_average
        self._basis = None if basis is None else encode_weights(basis)
        self._enrolled = dict(sorted(enrolled.items()))
        self._shares = {site: site_weights[site] / max(site_weights.values()) for site in self._enrolled}
        self._aggregator, self._optimiser, self._admission = aggregator, optimiser, admission
        self._request_for = request_for
        self._witness = Witness(list(self._enrolled))
        self._asked: list[_Asked] = []
        self._by_id: dict[str, _Asked] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one request a site, sorted by site.

        Args:
            server_round: Global round, >= 1.
            arrays: Not used: the strategy sends its own `weights`, which are those that it returned.
            config: Not used: `request_for` says everything.
            grid: Not used.
        """
        base_hash = hash_weights(self.weights)
        encoded = encode_weights(self.weights)
        messages: list[Message] = []
        self._asked, self._by_id = [], {}
        for site, node in self._enrolled.items():
            request = replace(
                self._request_for(site, server_round, base_hash),
                heads=self._witness.heads_for(site, server_round),
            )
            message = Message(
                _content(request, encoded, self._basis), node, MessageType.TRAIN, group_id=str(server_round)
            )
            expected = Expectation.of(site, request, self.weights)
            self._asked.append(_Asked(metadata=message.metadata, expected=expected))
            messages.append(message)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Admit and aggregate the replies one at a time, and take the step.

        Args:
            server_round: As in `configure_train`.
            replies: Taken one by one; a generator need not hold more than one.

        Returns:
            The new weights, and no metrics.

        Raises:
            QuorumLostError: too few updates were admitted.
            AggregationError: the rule cannot work with those that were.
            ValueError: the round was not configured.
        """
        pending = {asked.expected.site: asked for asked in self._asked}
        if not pending or any(asked.expected.round != server_round for asked in self._asked):
            raise ValueError(f"round {server_round}: configure_train comes first")
        status = dict.fromkeys(pending, RejectionCode.NO_REPLY.value)
        self.participation.append(status)
        self._aggregator.begin(self.weights)
        for reply in replies:
            self._take(reply, pending, status, server_round)
            del reply  # before the next one is fetched: two updates need not be in memory
        for site in pending:
            self._reject(Rejection(round=server_round, site=site, code=RejectionCode.NO_REPLY), status)
        admitted = [site for site, state in status.items() if state == ADMITTED]
        if len(admitted) < self.quorum:
            self._lose(server_round, admitted, status)
            raise QuorumLostError(
                round=server_round, admitted=admitted, quorum=self.quorum, state=self.state()
            )
        try:
            change = self._aggregator.finish()
        except AggregationError:
            self._lose(server_round, admitted, status)
            raise
        self.weights = self._optimiser.step(self.weights, change)
        if self._decay is not None:
            applied = rounds_applied(self.participation)
            self.average = averaged(self.average, self.weights, decay=self._decay, applied=applied)
        return encode_weights(self.weights), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return nothing: metrics are data and do not leave a site."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing."""
        return None

    def summary(self) -> None:
        """Log the settings."""
        _log.info(
            "strategy %s: %d sites, quorum %d, updates up to norm %g",
            self.name,
            len(self._enrolled),
            self.quorum,
            self._admission.max_update_norm,
        )

    def state(self) -> StrategyState:
        """Return what a checkpoint must keep."""
        return StrategyState(
            weights=dict(self.weights),
            optimiser=self._optimiser.state(),
            rejections=tuple(self.rejections),
            claims=dict(self.claims),
            participation=tuple(dict(status) for status in self.participation),
            heads=self._witness.state(),
            average=dict(self.average),
        )

    def restore(self, state: StrategyState) -> None:
        """Continue from a state of the same strategy.

        Raises:
            CheckpointError: the state belongs to another model or optimiser; nothing is changed then.
        """
        expected = {name: array.shape for name, array in self.weights.items()}
        if {name: array.shape for name, array in state.weights.items()} != expected:
            raise CheckpointError(
                "the checkpoint's weights are not those of this model; --fresh begins again"
            )
        applied = rounds_applied(state.participation)
        average = restored(state.average, state.weights, decay=self._decay, applied=applied)
        self._optimiser.restore(state.optimiser, weights=state.weights)
        self.average = average
        self.weights = dict(sorted(state.weights.items()))
        self.rejections = list(state.rejections)
        self.claims = dict(state.claims)
        self.participation = [dict(status) for status in state.participation]
        self._witness.restore(state.heads)

    def _take(self, reply: Message, pending: dict[str, _Asked], status: dict[str, str], round_: int) -> None:
        """Admit one reply into the aggregate, or reject it."""
        asked = self._asked_by(reply)
        if asked is None:
            return self._reject_stranger(reply, round_)
        site = asked.expected.site
        if pending.pop(site, None) is None:
            return self.rejections.append(Rejection(round=round_, site=site, code=RejectionCode.DUPLICATE))
        try:
            update = self._admission.check(reply, asked.expected)
            if fault := self._witness.fault(site, update):
                raise RejectedError(site, fault)
        except RejectedError as refusal:
            if refusal.code is not RejectionCode.SITE_FAILED:
                self._aggregator.refuse(site)
            return self._reject(refusal.rejection(round_), status)
        self._aggregator.add(site, self._shares[site], update.delta)
        self._witness.take(site, update)
        self.claims[site] = update.claim.to_json()
        status[site] = ADMITTED
        return None

    def _asked_by(self, reply: Message) -> _Asked | None:
        """Return the request that a reply answers, if it comes from where the request went.

        By message id, which Flower sets when it sends: in the name of a lost node it answers itself.
        """
        key = reply.metadata.reply_to_message_id
        if key not in self._by_id:
            self._by_id = {asked.metadata.message_id: asked for asked in self._asked}
        asked = self._by_id.get(key)
        if asked is None or (
            reply.has_content() and reply.metadata.src_node_id != asked.metadata.dst_node_id
        ):
            return None
        return asked

    def _reject_stranger(self, reply: Message, round_: int) -> None:
        """Write down a reply to no request of this round."""
        nodes = {node: site for site, node in self._enrolled.items()}
        site = nodes.get(reply.metadata.src_node_id)
        code = RejectionCode.WRONG_SITE if site is None else RejectionCode.LATE
        self.rejections.append(Rejection(round=round_, site=site or "unknown", code=code))

    def _lose(self, round_: int, admitted: Iterable[str], status: dict[str, str]) -> None:
        """Write down that updates were admitted for nothing: their privacy is spent, the model has none of it."""
        for site in admitted:
            self._reject(Rejection(round=round_, site=site, code=RejectionCode.ROUND_LOST), status)

    def _reject(self, rejection: Rejection, status: dict[str, str]) -> None:
        """Write down why a site does not count in this round."""
        self.rejections.append(rejection)
        status[rejection.site] = rejection.reason
        _log.warning("round %d: %s: %s", rejection.round, rejection.site, rejection.reason)


def rounds_applied(participation: Iterable[Mapping[str, str]]) -> int:
    """Return how many rounds changed the model, given site -> status of each."""
    return sum(ADMITTED in status.values() for status in participation)


def make_strategy(
    settings: StrategySettings,
    *,
    admission: Admission,
    enrolled: Mapping[str, int],
    site_weights: Mapping[str, float],
    quorum: int,
    weights: Weights,
    request_for: RequestFor,
    scratch: Path | None = None,
    basis: Weights | None = None,
) -> FederatedStrategy:
    """Return the named strategy, ready for its first round.

    Args:
        settings: Which strategy.
        admission: See `FederatedStrategy`, as all others.
        enrolled: Site -> node id.
        site_weights: Site -> public constant > 0.
        quorum: Fewest admitted updates.
        weights: Where the run starts.
        request_for: What to ask of a site.
        scratch: Folder where robust rules put updates while they work; the system's own by default.
        basis: See `FederatedStrategy`.

    Raises:
        StrategyError: settings contradict each other, or would do nothing.
    """
    _require_fitting_proximal(settings, enrolled, request_for)
    if admission.max_update_norm > settings.max_update_norm:
        raise StrategyError(
            f"admission lets updates up to {admission.max_update_norm} pass, the strategy is set to "
            f"{settings.max_update_norm}: make them equal"
        )
    return FederatedStrategy(
        name=settings.name,
        aggregator=settings.make_aggregator(scratch or Path(tempfile.gettempdir())),
        optimiser=settings.make_optimiser(),
        admission=admission,
        enrolled=enrolled,
        site_weights=site_weights,
        quorum=quorum,
        weights=weights,
        request_for=request_for,
        weight_average=settings.weight_average,
        basis=basis,
    )


def _require_fitting_proximal(
    settings: StrategySettings, enrolled: Mapping[str, int], request_for: RequestFor
) -> None:
    """Check that fedprox pulls, and that fedavg does not."""
    pulls = {site: request_for(site, 1, "").learning.proximal_mu > 0 for site in enrolled}
    if settings.name == "fedprox" and not all(pulls.values()):
        raise StrategyError("strategy fedprox: proximal_mu of the learning plan is 0, so it would be fedavg")
    if settings.name == "fedavg" and any(pulls.values()):
        raise StrategyError("strategy fedavg: proximal_mu of the learning plan is not 0; name it fedprox")


def _problems(
    enrolled: Mapping[str, int], site_weights: Mapping[str, float], quorum: int, aggregator: Aggregator
) -> list[str]:
    """Return what is wrong with the settings of a strategy."""
    weights, fewest = site_weights.values(), aggregator.minimum_updates
    checks = (
        (not enrolled, "no site is enrolled"),
        (len(set(enrolled.values())) < len(enrolled), "two sites have the same node"),
        (set(enrolled) != set(site_weights), "site_weights must name exactly the enrolled sites"),
        (not all(0 < weight < math.inf for weight in weights), "site_weights must be positive and finite"),
        (not 1 <= quorum <= len(enrolled), f"quorum is {quorum}, must be in 1..{len(enrolled)}"),
        (len(enrolled) < fewest, f"the rule needs {fewest} updates, {len(enrolled)} sites are enrolled"),
        (
            not aggregator.uses_weights and len(set(weights)) > 1,
            "the rule ignores weights of sites: make them equal, or use a weighted mean",
        ),
    )
    return [text for broken, text in checks if broken]


def _content(request: TrainRequest, encoded: ArrayRecord, basis: ArrayRecord | None) -> RecordDict:
    """Return a content of one site's own: records are mutable, only the bytes of the weights are shared."""
    content = encode_request(request, {})
    (key,) = arrays_of(content)
    content[key] = _own(encoded)
    if basis is not None:
        content[BASIS] = _own(basis)
    return content


def _own(record: ArrayRecord) -> ArrayRecord:
    """Return another record of the same bytes."""
    return ArrayRecord(
        {name: Array(array.dtype, array.shape, array.stype, array.data) for name, array in record.items()}
    )
