"""Tuning by public data: trains stand-ins of the sites as the sites would train, and judges on other public patients.

A trial is a federation in this process, by the pieces of the real one: `client.train`, the strategy's aggregation and
optimiser, `server.average`. Only the `public` section's data are opened.

What it does not do: faults, admission (an update that a server would refuse ends the trial as failed), budgets.
"""

from __future__ import annotations

import functools
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from client.contract import Weights
from client.site import Models
from client.train import train_round
from deploy.config import Experiment
from deploy.plans import federation_plan
from deploy.simulation.judge import model_of, reconstructor
from deploy.simulation.public import public_sites, start_on
from deploy.simulation.sites import expect_unsafe_arms
from deploy.tune.candidates import (
    DECAYS,
    Candidate,
    Patients,
    filled,
    patients_of,
    require_tunable,
    without_privacy,
)
from deploy.tune.choice import Trial, Tuning, ranked
from deploy.tune.search import Limits, best_of, explore, good_default, with_optimiser
from deploy.tune.standins import Deal, Indices, deal, played
from deploy.tune.table import describe
from privacy.accounting import Release, calibrate_noise, epsilons
from privacy.banded import charged_steps
from privacy.noise import Randomness, SeededRandomness
from privacy.plan import PrivacyPlan
from server.average import averaged
from server.federation import FederationPlan
from vae.data.cohort import Cohort, concatenate
from vae.metrics import mse_per_record
from vae.spec import ModelSpec
from vae.tasks.score import reconstruct_all

FINALISTS = 3

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is tried.

    Attributes:
        trials: Most settings to try, each under one seed, >= 1.
        seeds: Seeds of the best `FINALISTS` of them, >= 1.
        patients: Public number of patients of every site; None to take the divisor's.
    """

    trials: int = 24
    seeds: int = 2
    patients: int | None = None


def tune(
    experiment: Experiment, effort: Effort, *, cache: Path, workers: int = 1, note: Note = lambda _: None
) -> Tuning:
    """Return the settings of the private arm that serve best on public data, with everything that was tried.

    The same file, seed and effort give the same result on the same machine.

    Args:
        experiment: With `public` and `privacy.epsilon`.
        effort: How much is tried.
        cache: Prepared public data.
        workers: Processes that prepare them.
        note: Told of every trial.

    Raises:
        ConfigError: a section is missing.
        DataError: the public data cannot be used, or are too few.
        PlanError: no noise reaches the target.

    Guarantees:
        No site's data are opened; the noise of every trial spends at most `privacy.epsilon`
        (tests/unit/simulation/test_tuning.py).
    """
    privacy = require_tunable(experiment)
    expect_unsafe_arms()
    patients = patients_of(experiment, effort.patients)
    limits = Limits(
        rounds=experiment.federation.rounds,
        warmup_steps=privacy.warmup_steps,
        patients=patients.fewest,
        bands=privacy.bands,
    )
    asked = Candidate.of(privacy)
    bench = _Bench.set_up(experiment, patients, effort, cache=cache, workers=workers, note=note)
    note(f"public start alone: {bench.start_error:.3e}")
    plain = bench.plain(experiment)
    note(f"stand-ins trained without privacy: {plain:.3e}")
    found = explore(
        (asked, good_default(limits)), bench.first_score, bench.noise, limits, trials=effort.trials
    )
    for candidate in best_of(found, FINALISTS):
        for seed in range(1, effort.seeds):
            bench.score(candidate, seed)
    trials = ranked([bench.trial(candidate) for candidate in found])
    return Tuning(
        experiment=experiment,
        patients=patients,
        deal=bench.deal,
        trials=trials,
        start=bench.start_error,
        plain=plain,
        noiseless=bench.plain(without_privacy(experiment, _unclipped(trials[0].candidate, bench), patients)),
    )


class _Bench:
    """Public data in their parts, the start, and every error measured so far."""

    def __init__(
        self,
        *,
        experiment: Experiment,
        patients: Patients,
        effort: Effort,
        dealt: Deal,
        cohorts: Mapping[str, Cohort],
        start: Weights,
        spec: ModelSpec,
        note: Note,
    ) -> None:
        self._experiment, self._patients, self._note = experiment, patients, note
        self._spec, self._start, self.deal = spec, start, dealt
        self._standins = {
            site: cohorts[one.host].select(one.patients, name=site) for site, one in dealt.standins.items()
        }
        self._scored = _joined(cohorts, dealt.scored)
        self._models = Models(experiment.engine.device)
        self._scores: dict[Candidate, dict[float | None, tuple[float, ...]]] = {}
        self._planned = effort.trials + min(FINALISTS, effort.trials) * (effort.seeds - 1)
        self._best, self._done, self._seconds = math.inf, 0, 0.0
        self.start_error = self._error(start)

    @classmethod
    def set_up(
        cls,
        experiment: Experiment,
        patients: Patients,
        effort: Effort,
        *,
        cache: Path,
        workers: int,
        note: Note,
    ) -> _Bench:
        """Open the public data, split them, and train the start."""
        cohorts = public_sites(experiment, cache, workers=workers)
        first = next(iter(cohorts.values()))
        spec = experiment.model_spec(first.record_shape, len(first.covariate_names))
        dealt = deal(
            {name: cohort.num_patients for name, cohort in cohorts.items()},
            patients.per_site,
            seed=experiment.seed,
        )
        to_start = _joined(cohorts, dealt.start)
        steps = 0 if experiment.public is None else experiment.public.steps
        note(f"public start: {to_start.num_patients} patients, {steps} steps")
        start = start_on(to_start, experiment, spec, cache, part=to_start.fingerprint())
        return cls(
            experiment=experiment,
            patients=patients,
            effort=effort,
            dealt=dealt,
            cohorts=cohorts,
            start=start,
            spec=spec,
            note=note,
        )

    def sigma(self, candidate: Candidate) -> float:
        """Return the noise multiplier that spends the target, and not more."""
        privacy = require_tunable(self._experiment)
        return _calibrated(
            privacy.epsilon or 0.0, privacy.delta, candidate.sampling_probability, self._charged(candidate)
        )

    def _charged(self, candidate: Candidate) -> int:
        """Return the steps that the whole run is charged for."""
        bands = require_tunable(self._experiment).bands
        return charged_steps(candidate.local_steps, bands) * self._experiment.federation.rounds

    def noise(self, candidate: Candidate) -> float:
        """Return the noise in a coordinate of the mean gradient of the smallest site."""
        bands = require_tunable(self._experiment).bands
        expected = candidate.sampling_probability * self._patients.fewest / bands
        return self.sigma(candidate) * candidate.max_grad_norm / expected

    def first_score(self, candidate: Candidate) -> float:
        """Return the error under the first seed, with the best weight average."""
        return self.score(candidate, 0)

    def score(self, candidate: Candidate, seed: int) -> float:
        """Train a candidate under a seed, keep its errors, and return the least."""
        began = time.perf_counter()
        errors = self._errors(self._plan(candidate), seed)
        kept = self._scores.setdefault(candidate, dict.fromkeys(DECAYS, ()))
        self._scores[candidate] = {decay: (*kept[decay], errors[decay]) for decay in DECAYS}
        least = min(errors.values())
        self._tell(candidate, least, time.perf_counter() - began)
        return least

    def trial(self, candidate: Candidate) -> Trial:
        """Return everything that is known of a candidate."""
        privacy, sigma = require_tunable(self._experiment), self.sigma(candidate)
        release = Release(
            sampling_probability=candidate.sampling_probability,
            noise_multiplier=sigma,
            steps=self._charged(candidate),
        )
        return Trial(
            candidate=candidate,
            noise_multiplier=sigma,
            epsilon=epsilons([release], privacy.delta).pld,
            scores=self._scores[candidate],
        )

    def plain(self, experiment: Experiment) -> float:
        """Return the least error after training the stand-ins without privacy, as the section `training` says."""
        plan = federation_plan(experiment, self._spec, private=False, randomness="seeded")
        return min(self._errors(replace(plan, initial=self._start), 0).values())

    def _errors(self, plan: FederationPlan, seed: int) -> dict[float | None, float]:
        """Return the error of each weight average of a plan under a seed; infinite where training failed."""

        def randomness(site: str, round_: int) -> Randomness:
            # Equal for all candidates, so that they differ in little but their settings.
            return SeededRandomness(self._experiment.seed, "tune", seed, site, round_)

        try:
            ended = federate_here(plan, self._standins, self._models, randomness)
        except TrialFailedError:
            return dict.fromkeys(DECAYS, math.inf)
        return {decay: self._error(ended[decay]) for decay in DECAYS}

    def _plan(self, candidate: Candidate) -> FederationPlan:
        """Return the plan of a candidate, for the stand-ins."""
        made = filled(self._experiment, candidate, self._patients)
        privacy = require_tunable(made).model_copy(
            update={"epsilon": None, "noise_multiplier": self.sigma(candidate)}
        )
        plan = federation_plan(
            made.model_copy(update={"privacy": privacy}), self._spec, private=True, randomness="seeded"
        )
        plans = {
            site: played(each, self.deal.standins[site]) if isinstance(each, PrivacyPlan) else each
            for site, each in plan.plans.items()
        }
        return replace(plan, plans=plans, initial=self._start)

    def _error(self, weights: Weights) -> float:
        """Return the mean squared error of reconstruction over the records that are judged on."""
        model = model_of(self._spec, weights)
        reconstructed = reconstruct_all(reconstructor(model), self._scored)
        return float(np.mean(mse_per_record(np.asarray(self._scored.values), reconstructed)))

    def _tell(self, candidate: Candidate, error: float, seconds: float) -> None:
        """Say what a trial gave, and how long the others will take."""
        self._done += 1
        self._best = min(self._best, error)
        self._seconds += seconds
        left = (self._planned - self._done) * self._seconds / self._done
        shown = f"{error:.3e}" if math.isfinite(error) else "failed"
        self._note(
            f"trial {self._done}/{self._planned}: {shown} (best {self._best:.3e}); {describe(candidate)}; "
            f"{seconds:.0f} s, about {_duration(left)} left"
        )


class TrialFailedError(Exception):
    """A trial made an update that no server would admit: not finite, or too large."""


def federate_here(
    plan: FederationPlan,
    cohorts: Mapping[str, Cohort],
    models: Models,
    randomness: Callable[[str, int], Randomness],
) -> dict[float | None, Weights]:
    """Return the final weights of a federation in this process, and their averages over rounds by `DECAYS`.

    Args:
        plan: Its sites are the keys of `cohorts`.
        cohorts: What each site trains on.
        models: To train in.
        randomness: Of a site in a round.

    Raises:
        TrialFailedError: an update is not finite, or larger than the strategy admits.

    Guarantees:
        Bit for bit the weights of a simulation with the same plan, cohorts and randomness
        (tests/unit/simulation/test_tuning.py).
    """
    weights = plan.start()
    largest = max(plan.site_weights.values())
    averages: dict[float, Weights] = {decay: {} for decay in DECAYS if decay is not None}
    with tempfile.TemporaryDirectory() as scratch:
        aggregator, optimiser = plan.strategy.make_aggregator(Path(scratch)), plan.strategy.make_optimiser()
        for round_ in range(1, plan.rounds + 1):
            aggregator.begin(weights)
            for site in sorted(cohorts):
                request = plan.request(site, round_, "")
                done = train_round(
                    models.get(request, request.plan),
                    cohorts[site],
                    weights,
                    {},
                    sharing=plan.sharing,
                    plan=request.plan,
                    learning=request.learning,
                    randomness=randomness(site, round_),
                )
                _require_admissible(done.delta, plan.strategy.max_update_norm)
                aggregator.add(site, plan.site_weights[site] / largest, done.delta)
            weights = optimiser.step(weights, aggregator.finish())
            for decay, average in averages.items():
                averages[decay] = averaged(average, weights, decay=decay, applied=round_)
    ended: dict[float | None, Weights] = {None: weights}
    return ended | averages


def _require_admissible(delta: Weights, largest: float) -> None:
    """Refuse an update that admission would refuse."""
    norm = math.sqrt(sum(float(np.sum(np.square(part, dtype=np.float64))) for part in delta.values()))
    if not norm <= largest:  # also where it is not a number
        raise TrialFailedError


def _joined(cohorts: Mapping[str, Cohort], parts: Mapping[str, Indices]) -> Cohort:
    """Return some patients of several cohorts as one."""
    return concatenate([cohorts[name].select(patients) for name, patients in parts.items()], name="public")


def _unclipped(candidate: Candidate, bench: _Bench) -> Candidate:
    """Return the candidate with Adam in place of SGD, whose rate fits clipped gradients and diverges on others."""
    return with_optimiser(candidate, "adam", bench.noise) if candidate.optimiser == "sgd" else candidate


@functools.cache
def _calibrated(epsilon: float, delta: float, share: float, steps: int) -> float:
    """Return `calibrate_noise`, which takes seconds, of equal arguments once."""
    return calibrate_noise(epsilon=epsilon, delta=delta, sampling_probability=share, steps=steps)


def _duration(seconds: float) -> str:
    """Return a time for a person."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
