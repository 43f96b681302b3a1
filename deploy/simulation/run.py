"""A whole simulated federation: data, arms, judgement, report. What `simulate.py` calls.

Order: prepare data, train the arms through the engine, judge them on the same test patients, write the report. Every
part is kept in the output folder, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.serverapp import Grid

from client.contract import Weights
from client.device import num_gpus
from client.site import local_weights
from deploy.config import Experiment
from deploy.errors import DeployError, EngineError
from deploy.plans import federation_plan, isolated_plan, noise_multiplier
from deploy.simulation import diary
from deploy.simulation.directions import directions_from
from deploy.simulation.engines import run_local, run_ray
from deploy.simulation.faults import FaultyGrid, fault_plan
from deploy.simulation.isolated import train_isolated
from deploy.simulation.judge import MAX_ALONE_ARMS, OWN, Arm, LatentLog, latent_use
from deploy.simulation.progress import Progress, RoundView
from deploy.simulation.public import public_cohort, warm_start
from deploy.simulation.sites import POOLED, VirtualSites, expect_unsafe_arms, prepare, refused_records
from privacy.claim import Claim
from server.checkpoint import latest
from server.clock import Clock, VirtualClock, WallClock
from server.errors import QuorumLostError
from server.federation import FederationPlan, federate
from server.federation import Progress as Federated
from server.report import document
from server.report.document import LatentUse
from server.rounds import enrol
from vae.data.cohort import SiteData
from vae.errors import DataError
from vae.spec import ModelSpec

LATENT_POINTS = 10
CONFIG_NAME = "config.resolved.yaml"
_WRITTEN = ("checkpoints", "sites", "arms", "report.html", "report.json", "model.safetensors")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and how a simulation runs.

    Attributes:
        experiment: What to run.
        out: Output folder.
        cache: Prepared data, shared between runs.
        engine: `local` or `ray`.
        workers: Processes of the local engine.
        progress: Display.
    """

    experiment: Experiment
    out: Path
    cache: Path
    engine: str
    workers: int
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training left behind.

    Attributes:
        spec: The model.
        sites: Every hospital's cohorts.
        arms: Trained arms, in the order of the report.
        federated: Arm name -> where its federation ended.
        plans: Arm name -> its plan.
        wall_s: Arm name -> wall time of its rounds run now [s].
        rounds_now: Arm name -> rounds run now, not before a resume.
        latents: Arm -> use of its latents after some rounds.
        initial: Public weights that every arm started from; None without public data.
        stopped: Why training ended before its last round, if it did: too few sites answered.
    """

    spec: ModelSpec
    sites: Mapping[str, SiteData]
    arms: tuple[Arm, ...]
    federated: Mapping[str, Federated]
    plans: Mapping[str, FederationPlan]
    wall_s: Mapping[str, float]
    rounds_now: Mapping[str, frozenset[int]]
    latents: Mapping[str, tuple[LatentUse, ...]]
    initial: Weights | None = None
    stopped: QuorumLostError | None = None


def num_workers(experiment: Experiment) -> int:
    """Return how many processes the local engine uses: as configured, or one a GPU, else one a core; at most a site
    each.
    """
    workers = experiment.engine.workers
    if workers != "auto":
        return workers
    return min(num_gpus(experiment.engine.device) or os.cpu_count() or 1, len(experiment.site_names))


def forget(out: Path) -> None:
    """Remove what an earlier run left in an output folder: only what a run writes, never the folder's other files.

    Raises:
        DeployError: the folder does not look like a run's, so what lies there may be something else.
    """
    found = [out / name for name in _WRITTEN if (out / name).exists()]
    if found and not (out / CONFIG_NAME).exists():
        names = ", ".join(path.name for path in found)
        raise DeployError(
            f"{out}: --fresh would delete {names}, but without {CONFIG_NAME} no run has written there; "
            "give another --out"
        )
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def require_same_run(experiment: Experiment, out: Path) -> None:
    """Refuse an output folder that holds checkpoints of another configuration, before anything is written.

    Raises:
        CheckpointError: with the way out.
    """
    for arm in (document.FEDERATED, document.FEDERATED_DP):
        latest(out / "checkpoints" / arm, config_hash=experiment.hash())


def train(setting: Setting) -> Trained:
    """Prepare the data and train every arm that the experiment asks for.

    Too few answers in a round end training, and `Trained.stopped` says so: what was finished is returned.

    Raises:
        DataError: the data are not ready, or the public ones do not go with them.
        PrivacyError: the private arm cannot be had; nothing was prepared or trained.
        ServerError: enrolment failed, or checkpoints are another run's.
        EngineError: the engine failed, or the device that it needs is not there.
    """
    expect_unsafe_arms()
    experiment = setting.experiment
    gpus = num_gpus(experiment.engine.device)
    if experiment.engine.device == "cuda" and not gpus:
        raise EngineError(
            "engine.device: cuda, and torch sees no GPU here; give auto or cpu, or install another torch"
        )
    if document.FEDERATED_DP in experiment.arms:
        noise_multiplier(experiment)
    setting.progress.note(f"data: {experiment.data.kind}, {len(experiment.site_names)} sites")
    sites = prepare(experiment, setting.cache, workers=setting.workers, progress=_say_ready(setting))
    for site, reasons in refused_records(experiment, setting.cache).items():
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        setting.progress.note(
            f"data: {site}: refused records: {counts}; python -m deploy data check says more"
        )
    first = next(iter(sites.values())).train
    spec = experiment.model_spec(first.record_shape, len(first.covariate_names))
    initial = (
        warm_start(experiment, spec, setting.cache, workers=setting.workers, note=setting.progress.note)
        if experiment.public is not None
        else None
    )
    basis = _directions(setting, spec, initial)
    names = (*experiment.site_names, POOLED) if "centralised" in experiment.arms else experiment.site_names
    virtual = VirtualSites(
        experiment=experiment.model_dump_json(),
        sites=names,
        folder=setting.out / "sites",
        cache=setting.cache,
    )

    def work(grid: Grid) -> Trained:
        return _Training(setting, spec, sites, grid, initial=initial, basis=basis).run()

    try:
        if setting.engine == "ray":
            return run_ray(virtual, work, gpus_per_site=min(1.0, gpus / len(names)))
        return run_local(virtual, names, work, workers=setting.workers, gpus=gpus)
    finally:
        virtual.close()


def _directions(setting: Setting, spec: ModelSpec, initial: Weights | None) -> Weights | None:
    """Return the directions that the private arm moves in, at the public start; None without a subspace."""
    experiment = setting.experiment
    privacy = experiment.privacy
    if (
        initial is None
        or privacy is None
        or not privacy.subspace
        or document.FEDERATED_DP not in experiment.arms
    ):
        return None
    setting.progress.note(f"public data: {privacy.subspace} directions of their gradients")
    cohort = public_cohort(experiment, setting.cache, workers=setting.workers)
    try:
        return directions_from(spec, initial, cohort, privacy.subspace, trainable=privacy.trainable)
    except ValueError as error:
        raise DataError(f"privacy.subspace: {error}") from error


class _Training:
    """The arms of one experiment on one grid."""

    def __init__(
        self,
        setting: Setting,
        spec: ModelSpec,
        sites: Mapping[str, SiteData],
        grid: Grid,
        *,
        initial: Weights | None,
        basis: Weights | None,
    ) -> None:
        self._setting = setting
        self._initial, self._basis = initial, basis
        self._experiment = setting.experiment
        self._spec = spec
        self._sites = sites
        self._grid = grid
        self._clock: Clock = WallClock() if setting.engine == "ray" else VirtualClock()
        self._wall: dict[str, float] = {}
        self._plans: dict[str, FederationPlan] = {}
        self._federated: dict[str, Federated] = {}
        self._rounds_now: dict[str, set[int]] = {}
        self._stopped: QuorumLostError | None = None

    def run(self) -> Trained:
        """Train all arms."""
        arms = [*self._untrained(), *self._isolated(), *self._federations()]
        return Trained(
            spec=self._spec,
            sites=self._sites,
            arms=tuple(arms),
            federated=self._federated,
            plans=self._plans,
            wall_s=self._wall,
            rounds_now={arm: frozenset(rounds) for arm, rounds in self._rounds_now.items()},
            latents={arm: self._latents(arm).read() for arm in self._federated},
            initial=self._initial,
            stopped=self._stopped,
        )

    def _untrained(self) -> list[Arm]:
        """Return the public start as it is, if the experiment asks for it."""
        if self._initial is None or "warm-start" not in self._experiment.arms:
            return []
        weights = dict.fromkeys(self._experiment.site_names, self._initial)
        return [Arm(name=document.WARM_START, weights=weights)]

    def _plan(self, *, private: bool) -> FederationPlan:
        """Return the plan of a federated arm; what is random in a simulation is seeded."""
        plan = federation_plan(self._experiment, self._spec, private=private, randomness="seeded")
        return replace(plan, initial=self._initial, basis=self._basis if private else None)

    def _isolated(self) -> list[Arm]:
        """Train each site alone, and all patients in one place."""
        local = self._experiment.site_names if "local" in self._experiment.arms else ()
        central = (POOLED,) if "centralised" in self._experiment.arms else ()
        if not local and not central:
            return []
        plan = isolated_plan(self._plan(private=False), (*local, *central))
        weights = train_isolated(
            self._grid,
            (*local, *central),
            plan,
            self._setting.out / "arms",
            self._clock,
            observe=lambda round_, status: self._show("each site alone, and pooled", plan, round_, status),
        )
        arms: list[Arm] = []
        if local:
            arms.append(Arm(name=OWN, weights={site: weights[site] for site in local}))
            if len(local) <= MAX_ALONE_ARMS:
                arms += [
                    Arm(name=document.alone(site), weights=dict.fromkeys(local, weights[site]))
                    for site in local
                ]
        if central:
            arms.append(
                Arm(
                    name=document.CENTRALISED,
                    weights=dict.fromkeys(self._experiment.site_names, weights[POOLED]),
                )
            )
        return arms

    def _federations(self) -> list[Arm]:
        """Train the federated arms, up to the first that loses its quorum."""
        arms: list[Arm] = []
        for arm in (document.FEDERATED, document.FEDERATED_DP):
            if arm in self._experiment.arms and self._stopped is None:
                arms += self._federation(arm, private=arm == document.FEDERATED_DP)
        return arms

    def _federation(self, arm: str, *, private: bool) -> list[Arm]:
        """Train one federated arm, with the faults of the experiment; none if not even its first round was done."""
        plan, folder = self._plan(private=private), self._setting.out / "checkpoints" / arm
        before = latest(folder, config_hash=plan.config_hash)
        if before is not None:
            self._setting.progress.note(
                f"{arm}: rounds 1 to {before.round} of {plan.rounds} were done before"
            )
        grid = self._grid
        faults = fault_plan(self._experiment)
        if faults and (before is None or before.round < plan.rounds):
            nodes = enrol(grid, plan.site_weights, self._clock, timeout_s=plan.timing.enrol_s)
            grid = FaultyGrid(grid, faults, {node: site for site, node in nodes.items()}, self._clock)
        self._rounds_now[arm] = set()
        started = time.perf_counter()
        try:
            ended = federate(
                grid,
                plan,
                folder,
                self._clock,
                observe=lambda progress: self._after_round(arm, plan, progress),
            )
        except QuorumLostError as error:
            if error.state is None:
                raise
            ended, self._stopped = Federated(round=error.round - 1, state=error.state), error
        self._wall[arm] = time.perf_counter() - started
        self._plans[arm], self._federated[arm] = plan, ended
        return [Arm(name=arm, weights=self._full_weights(plan, ended))] if ended.round else []

    def _after_round(self, arm: str, plan: FederationPlan, progress: Federated) -> None:
        """Note and display a round of a federated arm."""
        self._rounds_now[arm].add(progress.round)
        watched = arm == document.FEDERATED_DP or document.FEDERATED_DP not in self._experiment.arms
        if watched and plan.sharing == "all" and progress.round % max(1, plan.rounds // LATENT_POINTS) == 0:
            self._latents(arm).write(
                latent_use(self._spec, progress.state.final, self._sites, progress.round)
            )
        self._show(arm, plan, progress.round, progress.status, progress.state.claims)

    def _latents(self, arm: str) -> LatentLog:
        """Return where the use of an arm's latents is kept."""
        return LatentLog(self._setting.out / "arms" / f"latents-{arm}.jsonl")

    def _full_weights(self, plan: FederationPlan, ended: Federated) -> dict[str, Weights]:
        """Return each site's full weights: the shared ones, and its own where not all are shared."""
        if plan.sharing == "all":
            return dict.fromkeys(plan.site_weights, ended.state.final)
        folder = self._setting.out / "sites"
        return {
            site: {
                **local_weights(folder / site, plan.request(site, ended.round, ""), ended.round),
                **ended.state.final,
            }
            for site in plan.site_weights
        }

    def _show(
        self,
        arm: str,
        plan: FederationPlan,
        round_: int,
        status: Mapping[str, str],
        claims: Mapping[str, str] | None = None,
    ) -> None:
        """Display a round."""
        shown = list(status)[:20]
        epsilon = {site: _quick_epsilon(text) for site, text in (claims or {}).items() if site in shown}
        self._setting.progress.update(
            RoundView(
                arm=arm,
                round=round_,
                rounds=plan.rounds,
                status=status,
                loss=diary.latest_losses(self._setting.out / "sites", shown, plan.run_id),
                epsilon={site: value for site, value in epsilon.items() if value is not None},
                target=self._experiment.privacy.epsilon if self._experiment.privacy else None,
            )
        )


def _quick_epsilon(claim: str) -> float | None:
    """Return a claim's epsilon by the fast accountant, for display; None without privacy."""
    from privacy.accounting import RdpAccountant

    made = Claim.from_json(claim)
    return None if made.kind == "none" else RdpAccountant().epsilon(made.releases, made.delta)


def _say_ready(setting: Setting) -> Callable[[str], None]:
    """Return what tells that a site's data are there."""
    return lambda site: setting.progress.note(f"data: {site} ready")
