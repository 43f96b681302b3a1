"""Versions of records: what they are, whose they are, and that a patient still moves the sum by C at most."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from privacy.augmentation import with_versions
from privacy.clipping import Batch as AnyBatch
from privacy.clipping import ClippedSum, build_engine
from privacy.errors import PlanError
from privacy.noise import SeededRandomness
from privacy.optimiser import Augmentation, NoisedOptimiser
from privacy.plan import GradEngine, PrivacyPlan
from privacy.training import train_private
from tests.support.private_toys import (
    LATENT,
    SHAPES,
    flatten,
    make_cohort,
    make_module,
    reference_gradients,
    reference_sum,
)
from vae.data.cohort import Batch

RAGGED = (1, 3, 2)
EVERYTHING = Augmentation(versions=3, max_shift=2, flip=True, max_gain=0.2)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def batch_of(name: str, records: tuple[int, ...] = RAGGED) -> Batch:
    return make_cohort(SHAPES[name], records).everything()


def shifted(image: np.ndarray, by: tuple[int, ...]) -> np.ndarray:
    """Return [C, *S] moved by whole voxels with edges repeated, the slow way."""
    padded = np.pad(image, [(0, 0), *((4, 4) for _ in by)], mode="edge")
    return padded[(slice(None), *(slice(4 - d, 4 - d + n) for d, n in zip(by, image.shape[1:], strict=True)))]


@pytest.mark.parametrize("name", ["image", "volume"])
def test_each_record_comes_first_and_its_versions_follow(name: str):
    batch = batch_of(name)
    made = with_versions(batch, EVERYTHING, rng())
    assert torch.equal(made.values[::4], batch.values)
    assert made.patient.tolist() == [p for p in batch.patient.tolist() for _ in range(4)]
    assert torch.equal(made.covariates, batch.covariates.repeat_interleave(4, 0))
    assert (made.num_patients, made.values.dtype) == (batch.num_patients, torch.float32)


@pytest.mark.parametrize("name", ["image", "volume"])
def test_a_shift_moves_whole_voxels_and_repeats_edges(name: str):
    batch = batch_of(name)
    settings = Augmentation(versions=5, max_shift=2)
    made = with_versions(batch, settings, rng(3)).values.reshape(6, 6, *SHAPES[name])[:, 1:].flatten(0, 1)
    axes = len(SHAPES[name]) - 1
    shifts = rng(3).integers(-2, 3, size=(30, axes))
    assert {-2, -1, 0, 1, 2} == set(shifts.ravel().tolist())
    for row, by in enumerate(shifts):
        expected = shifted(batch.values[row // 5].numpy(), tuple(by.tolist()))
        np.testing.assert_array_equal(made[row].numpy(), expected)


def test_a_flip_swaps_left_and_right_of_about_half():
    batch = batch_of("image", (1,) * 50)
    made = with_versions(batch, Augmentation(versions=1, flip=True), rng()).values[1::2]
    same = [torch.equal(one, other) for one, other in zip(made, batch.values, strict=True)]
    mirrored = [torch.equal(one.flip(1), other) for one, other in zip(made, batch.values, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 12 <= sum(mirrored) <= 38  # 50 coins: beyond this once in 10^4


def test_a_gain_multiplies_a_whole_record_within_its_range():
    batch = batch_of("image", (2,) * 40)
    made = with_versions(batch, Augmentation(versions=2, max_gain=0.3), rng()).values
    ratio = (made.reshape(80, 3, 64)[:, 1:] / batch.values.reshape(80, 1, 64)).flatten(0, 1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=1e-4)
    gains = ratio[:, 0]
    assert 0.7 <= float(gains.min()) < 0.75
    assert 1.25 < float(gains.max()) <= 1.3


def test_off_it_is_the_batch_itself_and_draws_nothing():
    batch, generator = batch_of("image"), rng()
    assert with_versions(batch, Augmentation(max_shift=2), generator) is batch
    assert generator.random() == rng().random()


def test_nobody_sampled_is_nobody():
    nobody = make_cohort(SHAPES["image"], (1,)).batch([])
    made = with_versions(nobody, EVERYTHING, rng())
    assert (made.values.shape, made.num_patients) == ((0, 1, 8, 8), 0)


def test_versions_of_a_patient_depend_on_nobody_else_s_records():
    batch, other = batch_of("image"), batch_of("image")
    other.values[0] += 5.0
    one, two = (with_versions(each, EVERYTHING, rng()).values for each in (batch, other))
    assert torch.equal(one[4:], two[4:])
    assert not torch.equal(one[:4], two[:4])


def test_tables_have_no_versions():
    with pytest.raises(PlanError, match="records are no images; set versions to 0"):
        with_versions(batch_of("table"), EVERYTHING, rng())


@pytest.mark.parametrize("engine", get_args(GradEngine))
@pytest.mark.parametrize("name", ["image", "volume"])
def test_a_patient_s_gradient_is_the_mean_over_records_and_versions_clipped_once(
    engine: GradEngine, name: str
):
    module = make_module(name).double().train()
    made = with_versions(batch_of(name), EVERYTHING, rng())
    rows = Batch(
        values=made.values.double(),
        covariates=made.covariates.double(),
        patient=made.patient,
        num_patients=made.num_patients,
    )
    noise = torch.from_numpy(rng(1).normal(size=(rows.num_records, LATENT)))
    reference = reference_gradients(module, rows, noise, 0.7)
    bound = 0.9 * float(torch.linalg.vector_norm(reference, dim=1).median())
    clipped = build_engine(engine, max_rows=7).clipped_sum(
        module, rows, latent_noise=noise, kl_weight=0.7, max_grad_norm=bound
    )
    torch.testing.assert_close(flatten(clipped.sum), reference_sum(reference, bound), rtol=1e-9, atol=1e-12)


class _Watch:
    """An engine that remembers what it was given, and what one patient alone comes to."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.patients: list[int] = []
        self.norms: list[float] = []

    def clipped_sum(self, module: torch.nn.Module, batch: AnyBatch, **options: object) -> ClippedSum:
        made: ClippedSum = build_engine("vmap").clipped_sum(module, batch, **options)  # type: ignore[arg-type]
        self.rows.append(int(batch.values.shape[0]))
        self.patients.append(batch.num_patients)
        self.norms.append(float(torch.linalg.vector_norm(flatten(made.sum))))
        return made


def trained(augmentation: Augmentation, seed: int = 5) -> tuple[_Watch, torch.Tensor]:
    """Train a few steps; return what the engine saw, and the weights."""
    plan = PrivacyPlan(
        sampling_probability=0.5,
        steps=6,
        noise_multiplier=1e-3,
        max_grad_norm=0.01,
        divisor=2.0,
        delta=1e-3,
        max_records_per_patient=2,
        randomness="seeded",
    )
    module, watch = make_module("image"), _Watch()
    train_private(
        module,
        make_cohort(SHAPES["image"], (1, 3, 2, 4)),
        plan=plan,
        optimiser=NoisedOptimiser(learning_rate=0.1),
        randomness=SeededRandomness(seed),
        kl_weight=1.0,
        latent_size=LATENT,
        augmentation=augmentation,
        engine=watch,
    )
    return watch, torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_training_samples_the_same_patients_and_their_bound_is_as_before():
    plain, without = trained(Augmentation())
    watch, weights = trained(EVERYTHING)
    assert watch.patients == plain.patients
    assert watch.rows == [4 * rows for rows in plain.rows]
    assert all(
        norm <= 0.01 * count * (1 + 1e-12) for norm, count in zip(watch.norms, watch.patients, strict=True)
    )
    assert max(watch.norms) > 0.01, "several patients are clipped to the bound each"
    assert not torch.equal(without, weights)


def test_training_with_versions_is_a_function_of_the_seed():
    assert torch.equal(trained(EVERYTHING)[1], trained(EVERYTHING)[1])
    assert not torch.equal(trained(EVERYTHING)[1], trained(EVERYTHING, seed=6)[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"versions": -1}, "augmentations must be an integer from 0 to 64"),
        ({"versions": 65}, "augmentations must be an integer from 0 to 64"),
        ({"max_shift": 1.0}, "max_shift must be an integer"),
        ({"flip": 1}, "flip must be true or false"),
        ({"max_gain": 1.0}, r"max_gain must be a number in \[0, 1\)"),
        ({"max_gain": -0.1}, r"max_gain must be a number in \[0, 1\)"),
        ({"max_gain": float("nan")}, "max_gain"),
    ],
    ids=str,
)
def test_augmentations_are_validated(changes: dict[str, object], message: str):
    with pytest.raises(PlanError, match=message):
        Augmentation(**changes)  # type: ignore[arg-type]
