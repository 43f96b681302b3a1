"""The banded matrix, the noise it makes, who takes part, and what it costs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from privacy.accounting import Release
from privacy.audit import audit_training
from privacy.banded import BandedNoise, charged_steps, coefficients, prefix_error, strategy
from privacy.deviates import DeviceStream, noised_on_device
from privacy.errors import PlanError
from privacy.noise import KeyStream, SeededRandomness, grid_spacing
from privacy.optimiser import NoisedOptimiser
from privacy.plan import PrivacyPlan, mechanism_name, plan_from_dict
from privacy.sampling import PoissonSampler
from privacy.training import Training, noised_mean, train_private
from tests.support.private_toys import LATENT, RawGradient, make_cohort
from vae.data.cohort import Cohort

SIZES = [(1, 2), (2, 2), (7, 2), (9, 3), (12, 4), (10, 10), (5, 8)]
SGD = NoisedOptimiser(kind="sgd", learning_rate=0.05)


def plan(**changes: object) -> PrivacyPlan:
    fields: dict[str, object] = {
        "sampling_probability": 0.5, "steps": 7, "noise_multiplier": 1.5, "max_grad_norm": 2.0, "divisor": 4.0,
        "delta": 1e-5, "randomness": "seeded", "mechanism": "banded", "bands": 3, **changes,
    }  # fmt: skip
    return PrivacyPlan(**fields)  # type: ignore[arg-type]


def run(what: PrivacyPlan, optimiser: NoisedOptimiser = SGD) -> Training:
    return train_private(
        RawGradient(3), make_cohort((3,), (1,) * 12), plan=what, optimiser=optimiser, randomness=SeededRandomness(1),
        kl_weight=0.0, latent_size=LATENT,
    )  # fmt: skip


def test_coefficients_are_those_of_the_square_root():
    found = coefficients(6)
    assert found == pytest.approx([math.comb(2 * k, k) / 4**k for k in range(6)], rel=1e-15)
    # Their convolution with themselves is 1, 1, 1, ..: a square root of prefix sums.
    assert np.convolve(found, found)[:6] == pytest.approx(np.ones(6), rel=1e-14)


@pytest.mark.parametrize(("steps", "bands"), SIZES)
def test_columns_have_norm_one_and_those_of_one_part_are_orthogonal(steps: int, bands: int):
    matrix = strategy(steps, bands)
    gram = matrix.T @ matrix
    assert np.diag(gram) == pytest.approx(np.ones(steps), rel=1e-14)
    distance = np.abs(np.subtract.outer(np.arange(steps), np.arange(steps)))
    assert (gram[distance >= bands] == 0).all()
    assert np.array_equal(matrix, np.tril(matrix))
    assert (np.diag(matrix) > 0).all()
    assert (gram[(distance > 0) & (distance < bands)] > 0).all(), "within a band they are not, so b is needed"


@pytest.mark.parametrize(("steps", "bands"), SIZES)
def test_noise_of_unit_deviates_gives_the_inverse_exactly(steps: int, bands: int):
    # Coordinate s gets a single deviate 1 in step s, so the noise of all steps is the matrix C^{-1} itself.
    noise = BandedNoise(steps=steps, bands=bands)
    rows = np.stack([noise.correlate(row).numpy() for row in torch.eye(steps, dtype=torch.float64)])
    matrix = strategy(steps, bands)
    assert matrix @ rows == pytest.approx(np.eye(steps), abs=1e-13)
    assert rows @ rows.T == pytest.approx(np.linalg.inv(matrix.T @ matrix), rel=1e-11, abs=1e-12)


def test_only_the_last_vectors_are_kept_and_nobody_can_write_into_them():
    noise = BandedNoise(steps=20, bands=4)
    given = torch.ones(5, dtype=torch.float64)
    first = noise.correlate(given).clone()
    for _ in range(10):
        noise.correlate(given)
    assert len(noise._past) == 3
    again = BandedNoise(steps=20, bands=4)
    again.correlate(given).fill_(99.0)
    third = BandedNoise(steps=20, bands=4)
    third.correlate(given)
    assert torch.equal(again.correlate(given), third.correlate(given))
    assert torch.equal(given, torch.ones(5, dtype=torch.float64))
    assert first[0] == pytest.approx(1 / strategy(20, 4)[0, 0])


def test_a_round_has_no_noise_for_further_steps():
    noise = BandedNoise(steps=1, bands=2)
    noise.correlate(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="of 1 steps is used up"):
        noise.correlate(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="bands must be >= 2, got 1"):
        BandedNoise(steps=1, bands=1)


def test_prefix_sums_hold_less_noise_by_the_arithmetic_of_two_steps():
    # b = 1: (1 + 2) / 2. b = 2, T = 2: C = [[2 / r, 0], [1 / r, 1]] with r = sqrt(5).
    r = math.sqrt(5)
    inverse = np.array([[r / 2, 0.0], [-1 / 2, 1.0]])
    assert prefix_error(2, 1) == pytest.approx(1.5)
    assert prefix_error(2, 2) == pytest.approx(((r / 2) ** 2 + (r / 2 - 1 / 2) ** 2 + 1) / 2)
    assert strategy(2, 2) @ inverse == pytest.approx(np.eye(2))
    assert prefix_error(32, 4) < 0.5 * prefix_error(32, 1)


@pytest.mark.parametrize(
    ("steps", "bands", "charged"), [(0, 3, 0), (1, 3, 1), (6, 3, 2), (7, 3, 3), (7, 1, 7)]
)
def test_a_round_is_charged_the_steps_that_a_patient_can_be_in(steps: int, bands: int, charged: int):
    assert charged_steps(steps, bands) == charged
    turns = [len(range(part, steps, bands)) for part in range(bands)]
    assert max(turns) == charged


def test_plan_sampler_and_training_name_the_same_release():
    expected = Release(sampling_probability=0.5, noise_multiplier=1.5, steps=3)
    assert plan().release() == expected
    done = run(plan())
    assert (done.release, done.steps_done) == (expected, 7)


def test_a_patient_is_in_steps_of_its_own_part_alone():
    sampler = PoissonSampler(
        num_patients=200, sampling_probability=0.9, stream=SeededRandomness(3).stream("sampling"), bands=3
    )
    parts: dict[int, set[int]] = {}
    for step, chosen in enumerate([*sampler.samples(4), *sampler.samples(8)]):  # asked twice, one round
        for patient in chosen.tolist():
            parts.setdefault(patient, set()).add(step % 3)
    assert len(parts) == 200
    assert all(len(found) == 1 for found in parts.values())


def test_one_band_is_the_sampler_of_before():
    stream = SeededRandomness(3).stream("sampling")
    plain = PoissonSampler(num_patients=50, sampling_probability=0.2, stream=stream, bands=1)
    deviates = SeededRandomness(3).stream("sampling").uniform(150).reshape(3, 50)
    for row, chosen in zip(deviates, plain.samples(3), strict=True):
        assert chosen.tolist() == np.flatnonzero(row < 0.2).tolist()
    with pytest.raises(ValueError, match="bands must be >= 1, got 0"):
        PoissonSampler(num_patients=1, sampling_probability=0.2, stream=stream, bands=0)


@pytest.mark.parametrize("bands", [2, 3, 5])
def test_a_whole_trajectory_moves_by_at_most_the_clip_times_the_root_of_participations(bands: int):
    steps, clip, rng = 13, 2.0, np.random.default_rng(bands)
    matrix = strategy(steps, bands)
    for part in range(bands):
        change = np.zeros((steps, 6))
        taken = np.arange(part, steps, bands)[rng.random(len(range(part, steps, bands))) < 0.8]
        change[taken] = rng.standard_normal((len(taken), 6))
        change[taken] *= clip / np.linalg.norm(change[taken], axis=1, keepdims=True)
        assert np.linalg.norm(matrix @ change) == pytest.approx(clip * math.sqrt(len(taken)), rel=1e-12)
    # Who is in two steps of one band moves it by more: turns are needed.
    change = np.zeros((steps, 6))
    change[:2, 0] = clip
    assert np.linalg.norm(matrix @ change) > 1.05 * clip * math.sqrt(2)


def released(what: PrivacyPlan, cohort: Cohort, size: int) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    train_private(
        RawGradient(size), cohort, plan=what, optimiser=SGD, randomness=SeededRandomness(1), kl_weight=0.0,
        latent_size=LATENT, observe=lambda mean: seen.append(torch.cat([each.flatten() for each in mean.values()])),
    )  # fmt: skip
    return seen


def test_training_takes_patients_in_turns():
    # Patient p has its record along coordinate p, and there is next to no noise: what is not zero, took part.
    cohort = dataclasses.replace(make_cohort((12,), (1,) * 12), values=np.eye(12, dtype=np.float32))
    steps = released(plan(noise_multiplier=1e-9, sampling_probability=1.0), cohort, 12)
    parts = [set(torch.nonzero(mean > 0.01).flatten().tolist()) for mean in steps]
    assert [parts[step] == parts[step % 3] for step in range(7)] == [True] * 7
    assert set.union(*parts[:3]) == set(range(12))
    assert sum(len(part) for part in parts[:3]) == 12


def test_training_releases_the_banded_noise_of_its_stream():
    what = plan(noise_multiplier=50.0, max_grad_norm=1e-6)
    stream, noise = SeededRandomness(1).stream("noise"), BandedNoise(steps=7, bands=3)
    spacing = grid_spacing(noise_multiplier=50.0, max_grad_norm=1e-6, divisor=4.0)
    for mean in released(what, make_cohort((3,), (1,) * 12), 3):
        expected = noise.correlate(torch.from_numpy(stream.normal(len(mean)))) * 50.0 * 1e-6 / 4.0
        # The sum of at most 12 patients, each clipped to 1e-6, over the divisor, is all that is left.
        assert float((mean - expected).norm()) <= 12 * 1e-6 / 4.0 + spacing * math.sqrt(len(mean))
        assert float(expected.norm()) > 5e-6


def test_a_device_gets_the_same_noise():
    sums = {"a": torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(3, 20)}
    spacing = grid_spacing(noise_multiplier=1.5, max_grad_norm=2.0, divisor=4.0)
    here, there = BandedNoise(steps=7, bands=3), BandedNoise(steps=7, bands=3)
    stream = KeyStream(bytes(32))
    with DeviceStream(KeyStream(bytes(32)), torch.device("cpu")) as ahead:
        for _ in range(7):
            expected = noised_mean(sums, plan(), stream, here)["a"]
            found = noised_on_device(sums, ahead, scale=3.0, divisor=4.0, spacing=spacing, banded=there)["a"]
            assert float((found - expected).abs().max()) <= spacing


@pytest.mark.parametrize("banded", [None, BandedNoise(steps=7, bands=3)])
def test_the_noise_has_to_be_of_the_plans_mechanism(banded: BandedNoise | None):
    wrong = plan() if banded is None else plan(mechanism="independent", bands=1)
    with pytest.raises(ValueError, match=f"mechanism is {wrong.mechanism}, which the noise is not"):
        noised_mean({"a": torch.zeros(2)}, wrong, KeyStream(bytes(32)), banded)


@pytest.mark.parametrize("bands", [1, 0, -2, 1025, 2.0, True, None])
def test_banded_needs_bands(bands: object):
    with pytest.raises(PlanError, match="bands with mechanism banded must be an integer from 2 to 1024"):
        plan(bands=bands)


def test_plans_of_before_keep_their_form():
    old = plan(mechanism="independent", bands=1)
    assert {"mechanism", "bands"}.isdisjoint(old.to_dict())
    assert plan_from_dict(old.to_dict()) == old
    assert plan_from_dict({**old.to_dict(), "mechanism": "independent", "bands": 1}) == old
    assert plan().to_dict()["bands"] == 3
    assert plan_from_dict(plan().to_dict()) == plan()
    assert plan_from_dict({**plan().to_dict(), "steps": 6}) == dataclasses.replace(plan(), steps=6)


def test_a_ledger_tells_the_mechanisms_apart():
    assert mechanism_name(plan()) == "patient-level DP-SGD, banded Gaussian noise (3 bands, 7 steps)"
    assert mechanism_name(plan(mechanism="independent", bands=1)) == "patient-level DP-SGD, Gaussian noise"


def test_what_takes_steps_for_independent_refuses():
    corrected = NoisedOptimiser(kind="adam-corrected", learning_rate=0.01)
    with pytest.raises(PlanError, match="adam-corrected corrects for the same independent noise"):
        run(plan(), corrected)
    with pytest.raises(PlanError, match="banded noise cannot be audited"):
        audit_training(
            RawGradient(3), make_cohort((3,), (1,) * 12), plan=plan(), claimed=plan().release(), optimiser=SGD,
            randomness=SeededRandomness(1), kl_weight=0.0, latent_size=LATENT,
        )  # fmt: skip
