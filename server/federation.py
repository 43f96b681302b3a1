"""A federation from its first round to its last: what `server.app` runs in a deployment and a simulation alike.

Order: enrol, resume or begin, then for each round: ask, admit, aggregate, save. Killed at any moment and run again it
goes on after the last saved round; in a seeded run the final weights are the same as without the kill.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid

from client.contract import FailureCode, LearningPlan, Plan, TrainRequest, Weights
from server.admission import Admission, RejectionCode
from server.checkpoint import Checkpoint, latest, save
from server.clock import Clock
from server.errors import AggregationError, BudgetSpentError, QuorumLostError, StrategyError
from server.rounds import Collector, Timing, enrol
from server.settings import StrategySettings
from server.strategy import ADMITTED, FederatedStrategy, StrategyState, make_strategy, rounds_applied
from vae.spec import ModelSpec, Sharing
from vae.weights import hash_weights, require_signature


@dataclass(frozen=True, kw_only=True)
class FederationPlan:
    """Everything a federation is, all of it public.

    Attributes:
        run_id: Names the run; the same id goes on where it stopped.
        config_hash: What must not change between the parts of a run.
        site_weights: Site -> public constant agreed at enrolment; its keys are the enrolled sites.
        plans: Site -> privacy of its updates.
        model: What is trained.
        sharing: Which parameters travel.
        rounds: Global rounds.
        learning: Local training; what depends on the round is filled in: `kl_weight` by its warm-up, `first_step` and
            `total_steps` by the steps of the site's plan.
        kl_warmup_rounds: Global rounds until the KL term has its full weight, 0 for none.
        strategy: How updates become a model.
        initial_seed: Public seed of the initial weights.
        initial: Shared weights that the run starts from instead, of public data; None for those of the seed.
        quorum: Fewest admitted updates for a round; a round with fewer is not applied.
        patience: How many rounds in a row may be lost before the run stops, >= 1: one bad day is no reason to stop.
        timing: Deadlines.
        basis: Public directions that all private updates move in, `learning.subspace` of them: parameter name ->
            [k, *shape] float32; None for no subspace. Has to be a function of what `config_hash` covers.
    """

    run_id: str
    config_hash: str
    site_weights: Mapping[str, float]
    plans: Mapping[str, Plan]
    model: ModelSpec
    sharing: Sharing
    rounds: int
    learning: LearningPlan
    kl_warmup_rounds: int
    strategy: StrategySettings
    quorum: int
    patience: int = 1
    initial_seed: int = 0
    initial: Weights | None = None
    timing: Timing = field(default_factory=Timing)
    basis: Weights | None = None

    @functools.cached_property
    def basis_hash(self) -> str:
        """Return the SHA-256 of the directions; empty without."""
        return "" if self.basis is None else hash_weights(self.basis)

    def start(self) -> Weights:
        """Return the shared weights that the run starts from: public, the same at the server and at every site.

        Raises:
            WeightsError: `initial` are not the shared weights of the model.
        """
        if self.initial is None:
            return initial_weights(self.model, self.sharing, self.initial_seed)
        from vae.models import build, signature_of  # here, as in `request`

        shared = build(self.model, seed=self.initial_seed).shared_names(self.sharing)
        require_signature(
            self.initial, tuple(entry for entry in signature_of(self.model) if entry[0] in shared)
        )
        return dict(self.initial)

    def request(self, site: str, round_: int, base_hash: str) -> TrainRequest:
        """Return what is asked of a site in a round."""
        from vae.objectives import (
            kl_warmup,  # here: the module imports torch, which admission and rounds do without
        )

        kl_weight = kl_warmup(round_, self.kl_warmup_rounds, self.model.beta)
        steps = self.plans[site].steps
        learning = replace(
            self.learning,
            kl_weight=kl_weight,
            first_step=(round_ - 1) * steps,
            total_steps=self.rounds * steps,
        )
        return TrainRequest(
            run_id=self.run_id,
            round=round_,
            base_hash=base_hash,
            model=self.model,
            sharing=self.sharing,
            plan=self.plans[site],
            learning=learning,
            initial_seed=self.initial_seed,
            num_sites=len(self.site_weights),
            basis_hash=self.basis_hash,
        )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a federation stands after a round.

    Attributes:
        round: Global round that ended, from 1; 0 before the first.
        state: Weights, rejections, claims and participation so far.
    """

    round: int
    state: StrategyState

    @property
    def rounds_applied(self) -> int:
        """Return how many rounds changed the model."""
        return rounds_applied(self.state.participation)

    @property
    def status(self) -> Mapping[str, str]:
        """Return site -> `admitted`, or why not, in this round."""
        return self.state.participation[-1] if self.state.participation else {}


def initial_weights(model: ModelSpec, sharing: Sharing, seed: int) -> Weights:
    """Return the shared weights that a public seed decides."""
    from vae.models import build
    from vae.weights import to_numpy

    built = build(model, seed=seed)
    return to_numpy(built, sorted(built.shared_names(sharing)))


def federate(
    grid: Grid,
    plan: FederationPlan,
    folder: Path,
    clock: Clock,
    *,
    observe: Callable[[Progress], None] | None = None,
    names: Callable[[Grid], Mapping[int, str]] | None = None,
) -> Progress:
    """Run a federation, or the rest of it, and return where it ended.

    Args:
        grid: Flower's grid.
        plan: The federation.
        folder: Where checkpoints lie; an earlier one of the same run is resumed, and nobody is asked if it was the
            last.
        clock: What deadlines are measured with.
        observe: Called after each round.
        names: Returns node id -> the name that a node has proved to have, in a deployment; None where sites are
            believed, as in a simulation.

    Raises:
        StrategyError: a subspace without its directions, or the other way round; nobody was asked anything.
        EnrolmentError: a site did not answer.
        QuorumLostError: too few admitted updates in `patience` rounds in a row; the rounds before are saved.
        BudgetSpentError: so many sites refuse for want of budget that the quorum is out of reach; likewise.
        AggregationError: likewise, since the rule could not work with those that were admitted.
        CheckpointError: the folder holds another run's checkpoints.
    """
    if bool(plan.learning.subspace) != (plan.basis is not None):
        raise StrategyError(
            f"subspace: {plan.learning.subspace} directions are asked for, and the plan has "
            f"{'none' if plan.basis is None else 'some'}: a simulation makes them of its public data, a deployment "
            "cannot yet; set privacy.subspace to 0"
        )
    before = latest(folder, config_hash=plan.config_hash)
    if before is not None and before.round >= plan.rounds:
        return Progress(round=before.round, state=_state(before))
    nodes = enrol(grid, plan.site_weights, clock, timeout_s=plan.timing.enrol_s, names=names)
    strategy = make_strategy(
        plan.strategy,
        scratch=folder,
        admission=Admission(max_update_norm=plan.strategy.max_update_norm),
        enrolled=nodes,
        site_weights=plan.site_weights,
        quorum=plan.quorum,
        weights=plan.start(),
        request_for=plan.request,
        basis=plan.basis,
    )
    folder.mkdir(parents=True, exist_ok=True)
    progress = _resume(strategy, before)
    collector = Collector(grid, clock, plan.timing.deadline_s)
    sites = {node: site for site, node in nodes.items()}
    for round_ in range(progress.round + 1, plan.rounds + 1):
        messages = strategy.configure_train(round_, ArrayRecord(), ConfigRecord(), grid)
        try:
            strategy.aggregate_train(round_, collector.collect(messages, sites))
        except (QuorumLostError, AggregationError) as lost:
            spent = _without_budget(strategy)
            if isinstance(lost, QuorumLostError) and len(nodes) - len(spent) < plan.quorum:
                raise BudgetSpentError(lost, spent) from lost
            if _lost_in_a_row(strategy) >= plan.patience:
                raise
        progress = Progress(round=round_, state=strategy.state())
        save(folder, _checkpoint(plan, progress))
        if observe is not None:
            observe(progress)
    return progress


def _lost_in_a_row(strategy: FederatedStrategy) -> int:
    """Return how many of the last rounds were not applied, up to the one that just ended."""
    lost = takewhile(lambda status: ADMITTED not in status.values(), reversed(strategy.participation))
    return sum(1 for _ in lost)


def _without_budget(strategy: FederatedStrategy) -> list[str]:
    """Return the sites that refused the last round because their budget is spent: they will refuse the next, too."""
    refused = f"{RejectionCode.SITE_FAILED.value}:{FailureCode.BUDGET.value}"
    return [site for site, status in strategy.participation[-1].items() if status == refused]


def _resume(strategy: FederatedStrategy, before: Checkpoint | None) -> Progress:
    """Put the strategy where the last checkpoint left it."""
    if before is not None:
        strategy.restore(_state(before))
    return Progress(round=before.round if before else 0, state=strategy.state())


def _state(before: Checkpoint) -> StrategyState:
    """Return what a checkpoint kept of the strategy."""
    return StrategyState(
        weights=before.weights,
        optimiser=before.optimiser,
        rejections=before.rejections,
        claims=before.claims,
        participation=before.participation,
        heads=before.heads,
        average=before.average,
    )


def _checkpoint(plan: FederationPlan, progress: Progress) -> Checkpoint:
    """Return what must be kept of a round."""
    state = progress.state
    return Checkpoint(
        round=progress.round,
        run_id=plan.run_id,
        config_hash=plan.config_hash,
        weights=state.weights,
        optimiser=state.optimiser,
        rejections=state.rejections,
        claims=state.claims,
        participation=state.participation,
        heads=state.heads,
        average=state.average,
    )
