"""What the proof needs of one step and of one run, checked where training really happens, with the noise off and on.

Sensitivity is exact: with and without each patient, whatever the patient holds. Noise, sampler and state are those of
`train_private` itself, not of its parts. Each test also shows that it rejects what would break the proof.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from client.contract import LearningPlan, Update, Weights, arrays_of, configs_of, encode_update
from client.train import Round, train_round
from privacy.claim import Claim
from privacy.clipping import Batch, Gradients, build_engine
from privacy.descent import Descent
from privacy.noise import SeededRandomness, SystemRandomness
from privacy.optimiser import OptimiserName
from privacy.plan import GradEngine, PrivacyPlan, RandomnessKind
from privacy.training import NoisedOptimiser, Patients, train_private
from tests.support.private_toys import (
    SHAPES,
    RawGradient,
    flatten,
    latent_of,
    make_cohort,
    make_module,
    weights_of,
)
from vae.data.cohort import Batch as Rows
from vae.data.cohort import Cohort
from vae.errors import WeightsError
from vae.models import build
from vae.spec import ModelSpec
from vae.weights import hash_weights, to_numpy

ENGINES: tuple[GradEngine, ...] = ("vmap", "opacus", "bookkeeping")
SCANS = (1, 40, 3, 3, 2, 2, 1, 2)
COPIES, NAN, INFINITE, ZERO, HUGE = 2, 4, 5, 6, 7
SIZE = 2_000_000
ALPHA = 1e-3


def hostile(name: str) -> Rows:
    """Return patients with many scans, one scan three times, NaN, infinity, nothing but zeros, and huge values."""
    rows = make_cohort(SHAPES[name], SCANS, seed=8).everything()
    values = rows.values.double().clone()
    of = {patient: (rows.patient == patient).nonzero()[:, 0] for patient in range(len(SCANS))}
    values[of[COPIES]] = values[of[COPIES][0]].clone()
    values[of[NAN][1]] = torch.nan
    values[of[INFINITE]] = torch.inf
    values[of[ZERO]] = 0.0
    values[of[HUGE]] *= 1e6
    return Rows(
        values=values, covariates=rows.covariates.double(), patient=rows.patient, num_patients=len(SCANS)
    )


def without(rows: Rows, latent: torch.Tensor, patient: int) -> tuple[Rows, torch.Tensor]:
    """Return everybody else, with the latent noise that each had."""
    kept = rows.patient != patient
    numbers = rows.patient[kept]
    rest = Rows(
        values=rows.values[kept],
        covariates=rows.covariates[kept],
        patient=numbers - (numbers > patient).long(),
        num_patients=rows.num_patients - 1,
    )
    return rest, latent[kept]


def moved_by_one(engine: GradEngine, name: str, bound: float, *, by_record: bool = False) -> list[float]:
    """Return, for each patient, how far the clipped sums with and without them lie apart [clip bounds]."""
    module = (RawGradient(6) if name == "raw" else make_module(name)).double().train()
    rows = hostile("table" if name == "raw" else name)
    latent = latent_of(rows)

    def total(batch: Rows, noise: torch.Tensor) -> torch.Tensor:
        if by_record:
            count = len(batch.patient)
            batch = dataclasses.replace(batch, patient=torch.arange(count), num_patients=count)
        clipped = build_engine(engine).clipped_sum(
            module, batch, latent_noise=noise, kl_weight=1.0, max_grad_norm=bound
        )
        return flatten(clipped.sum)

    everybody = total(rows, latent)
    assert torch.isfinite(everybody).all()
    return [
        float(torch.linalg.vector_norm(everybody - total(*without(rows, latent, patient)))) / bound
        for patient in range(len(SCANS))
    ]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["raw", "table", "image"])
@pytest.mark.parametrize("bound", [1e-3, 0.7])
def test_no_patient_moves_the_sum_by_more_than_the_bound(engine: GradEngine, name: str, bound: float):
    moved = moved_by_one(engine, name, bound)
    assert max(moved) <= 1 + 1e-7
    assert moved[0] == pytest.approx(1.0)  # far beyond the bound: the test looks at something
    assert moved[1] > 0.4  # forty scans
    assert max(moved[NAN], moved[INFINITE]) < 1e-12
    if name == "raw":
        assert moved[ZERO] == 0.0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_clip_of_each_scan_would_be_noticed(engine: GradEngine):
    assert max(moved_by_one(engine, "raw", 0.7, by_record=True)) > 3


def plan(steps: int, q: float = 0.5, randomness: RandomnessKind = "seeded") -> PrivacyPlan:
    return PrivacyPlan(
        sampling_probability=q,
        steps=steps,
        noise_multiplier=1.3,
        max_grad_norm=0.7,
        divisor=1.0,
        delta=1e-5,
        max_records_per_patient=50,
        randomness=randomness,
    )


@dataclass
class Seen:
    """What an observer saw of a run: every step's release, as vectors."""

    steps: list[Gradients] = field(default_factory=list)

    def vectors(self) -> list[np.ndarray]:
        return [flatten(dict(step)).numpy() for step in self.steps]


def run(
    module: torch.nn.Module,
    patients: Patients,
    chosen: PrivacyPlan,
    *labels: str | int,
    optimiser: NoisedOptimiser | None = None,
) -> Seen:
    seen = Seen()
    train_private(
        module,
        patients,
        plan=chosen,
        optimiser=optimiser or NoisedOptimiser(learning_rate=0.1),
        randomness=SystemRandomness() if chosen.randomness == "os" else SeededRandomness(3, *labels),
        kl_weight=1.0,
        latent_size=3,
        observe=lambda released: seen.steps.append({name: t.clone() for name, t in released.items()}),
    )
    return seen


def two_million(randomness: RandomnessKind, steps: int) -> list[np.ndarray]:
    """Return the noise of each step of a model of two million parameters, as a site that seeds torch draws it."""
    torch.manual_seed(42)
    cohort = make_cohort((SIZE,), [1], covariates=0)
    cohort.values[:] = 0.0
    return run(RawGradient(SIZE), cohort, plan(steps, randomness=randomness), "site-1").vectors()


@functools.cache
def seeded_steps() -> list[np.ndarray]:
    return two_million("seeded", 2)


def is_correlated(one: np.ndarray, two: np.ndarray) -> bool:
    """Return whether two vectors of noise are dependent: six standard errors, since real randomness has no seed."""
    return bool(abs(np.corrcoef(one, two)[0, 1]) > 6 / np.sqrt(len(one)))


def test_one_step_shows_the_noise_of_the_plan_to_a_thousandth():
    # The standard error of two million is 1 / sqrt(4e6) = 0.0005 of the deviation.
    spread = float(np.sqrt(np.mean(seeded_steps()[0] ** 2)))
    assert spread == pytest.approx(1.3 * 0.7, rel=1e-3)
    for wrong in (0.9975, 1.0025):
        assert spread != pytest.approx(wrong * 1.3 * 0.7, rel=1e-3)


def test_one_step_has_the_tails_of_a_normal_law():
    sample = seeded_steps()[0] / (1.3 * 0.7)
    bound = 4 * np.sqrt(24 / SIZE)  # standard error of the excess kurtosis: 0.0035
    assert abs(stats.kurtosis(sample)) < bound
    uniforms = SeededRandomness(1).stream("sum").uniform(4 * SIZE).reshape(4, SIZE)
    for other in (
        np.clip(sample, -3, 3),
        np.sqrt(3) * (uniforms.sum(0) - 2),
    ):  # cut off; a sum of four uniforms
        assert abs(stats.kurtosis(other)) > bound


def test_the_noise_of_steps_is_independent():
    one, two = seeded_steps()
    assert not is_correlated(one, two)
    assert is_correlated(one, two + 0.01 * one)  # one in a hundred of the last step's noise used again


def test_two_sites_that_seed_torch_alike_draw_noise_of_their_own():
    one, two = (two_million("os", 1)[0] for _ in range(2))
    assert not is_correlated(one, two)
    torch.manual_seed(42)
    careless = torch.randn(SIZE).numpy()
    torch.manual_seed(42)
    assert is_correlated(careless, torch.randn(SIZE).numpy())


@dataclass
class Watched:
    """A cohort that notes which records each step read; implements `training.Patients`."""

    real: Cohort
    rows: list[npt.NDArray[np.float32]] = field(default_factory=list)

    @property
    def num_patients(self) -> int:
        return self.real.num_patients

    def batch(
        self,
        patients: npt.NDArray[np.int64],
        *,
        max_records: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> Batch:
        batch = self.real.batch(patients, max_records=max_records, rng=rng)
        self.rows.append(batch.values[:, 0].numpy())
        return batch


STEPS, RATE, PATIENTS = 800, 0.3, 40


@functools.cache
def read_by_training(*, grouped: bool) -> npt.NDArray[np.bool_]:
    """Return [STEPS, records]: which record was read in which step. Patients have three records each."""
    cohort = make_cohort((1,), [3] * PATIENTS, covariates=0)
    cohort.values[:, 0] = np.arange(3 * PATIENTS)
    watched = Watched(cohort if grouped else cohort.as_records())
    run(RawGradient(1), watched, dataclasses.replace(plan(STEPS, RATE), grad_engine="bookkeeping"))
    table = np.zeros((STEPS, 3 * PATIENTS), dtype=np.bool_)
    for step, rows in enumerate(watched.rows):
        table[step, rows.astype(np.int64)] = True
    return table


def test_all_records_of_a_patient_are_in_or_out_together():
    def torn(table: npt.NDArray[np.bool_]) -> int:
        per_patient = table.reshape(STEPS, PATIENTS, 3).sum(2)
        return int(((per_patient > 0) & (per_patient < 3)).sum())

    assert torn(read_by_training(grouped=True)) == 0
    assert torn(read_by_training(grouped=False)) > STEPS  # a sampler of records


def test_training_draws_patients_as_it_is_accounted():
    table = read_by_training(grouped=True)[:, ::3]
    counts, sizes = table.sum(0), table.sum(1)

    def p_rate(rate: float) -> float:
        statistic = ((counts - STEPS * rate) ** 2 / (STEPS * rate * (1 - rate))).sum()
        return float(2 * min(stats.chi2.sf(statistic, PATIENTS), stats.chi2.cdf(statistic, PATIENTS)))

    def p_spread(sample: npt.NDArray[np.int64]) -> float:
        statistic = ((sample - PATIENTS * RATE) ** 2).sum() / (PATIENTS * RATE * (1 - RATE))
        return float(2 * stats.norm.sf(abs(statistic - STEPS) / np.sqrt(2 * STEPS)))

    assert p_rate(RATE) > ALPHA
    assert p_rate(1.1 * RATE) < ALPHA
    assert p_spread(sizes) > ALPHA
    assert p_spread(np.full(STEPS, round(PATIENTS * RATE))) < ALPHA  # batches of a fixed size


@pytest.mark.parametrize("kind", ["sgd", "adam", "adam-corrected"])
def test_weights_are_a_function_of_what_was_noised(kind: OptimiserName):
    # Replaying what an observer saw gives the weights to the bit: no moment, average or buffer holds more of the data.
    optimiser = NoisedOptimiser(kind=kind, learning_rate=0.01)
    chosen, cohort = plan(6), make_cohort(SHAPES["image"], SCANS, seed=8)
    module, replayed = make_module("image"), make_module("image")
    seen = run(module, cohort, chosen, optimiser=optimiser)
    descent = Descent(replayed, optimiser, 0.0, noise_std=1.3 * 0.7)
    for released in seen.steps:
        descent.step(released)
    assert torch.equal(weights_of(module), weights_of(replayed))
    descent.step({name: 1e-3 + tensor for name, tensor in seen.steps[-1].items()})
    assert not torch.equal(weights_of(module), weights_of(replayed))


def one_round(model: torch.nn.Module, base: Weights) -> Round:
    return train_round(
        model,
        make_cohort((6,), SCANS),
        base,
        {},
        sharing="all",
        plan=plan(2),
        learning=LearningPlan(optimiser="adam"),
        randomness=SeededRandomness(1, "state"),
    )


def test_a_message_holds_parameters_alone_and_no_model_with_other_state_is_trained():
    spec = ModelSpec(family="vae", input_shape=(6,), latent_size=2, channels=(8,))
    model = build(spec, seed=0)
    base = to_numpy(model, model.shared_names("all"))
    done = one_round(model, base)
    parameters = {name for name, _ in model.named_parameters()}
    assert set(done.delta) | set(done.local) == parameters
    update = Update(
        site="site-1",
        run_id="run",
        round=1,
        base_hash="0" * 64,
        update_hash=hash_weights(done.delta),
        claim=Claim(site="site-1", unit="patient", delta=1e-5, kind="seeded", releases=(plan(2).release(),)),
        delta=done.delta,
    )
    content = encode_update(update)
    arrays = {name for record in arrays_of(content).values() for name in record}
    assert arrays == parameters
    bodies = [json.loads(str(record["json"])) for record in configs_of(content).values()]
    assert [set(body) for body in bodies] == [
        {
            "kind",
            "version",
            "site",
            "run_id",
            "round",
            "base_hash",
            "update_hash",
            "claim",
            "receipt",
            "heads",
        }
    ]
    model.register_buffer("running_mean", torch.full((3,), 7.0))
    with pytest.raises(WeightsError, match="running_mean"):
        one_round(model, base)
