"""What an attacker computes from a model: scores of patients, samples, and whose records are nearest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vae.data.cohort import Cohort
from vae.models import build
from vae.models.protocol import Vae
from vae.spec import ModelSpec
from vae.tasks import attack
from vae.tasks.attack import nearest_patients, patient_scores, sample_records

SPEC = ModelSpec(
    family="cvae", input_shape=(5,), latent_size=2, channels=(8,), num_covariates=1, decoder_scale="learned"
)


@pytest.fixture(scope="module")
def model() -> Vae:
    return build(SPEC, seed=3)


def cohort_of(records: list[int], seed: int = 0) -> Cohort:
    rng = np.random.default_rng(seed)
    return Cohort.from_records(
        name="toy",
        patients=[f"p{index}" for index, count in enumerate(records) for _ in range(count)],
        values=rng.normal(size=(sum(records), 5)).astype(np.float32),
        covariates=rng.normal(size=(sum(records), 1)).astype(np.float32),
        covariate_names=("age",),
    )


def by_hand(model: Vae, cohort: Cohort, part: str, *, seed: int, draws: int, kl_weight: float) -> list[float]:
    """Return the scores, one record and one draw at a time."""
    rng = np.random.default_rng(seed)
    noise = [rng.standard_normal((cohort.num_records, 2), dtype=np.float32) for _ in range(draws)]
    losses = np.zeros(cohort.num_records)
    for drawn in noise:
        for record in range(cohort.num_records):
            with torch.no_grad():
                loss = model.per_sample_loss(
                    torch.from_numpy(np.array(cohort.values[record : record + 1])),
                    torch.from_numpy(np.array(cohort.covariates[record : record + 1])),
                    latent_noise=torch.from_numpy(drawn[record : record + 1]),
                    kl_weight=kl_weight,
                )
            losses[record] += float(loss.total if part == "elbo" else loss.parts["reconstruction"]) / draws
    return [
        -losses[start:end].mean() for start, end in zip(cohort.offsets[:-1], cohort.offsets[1:], strict=True)
    ]


@pytest.mark.parametrize("part", ["elbo", "reconstruction"])
def test_a_patient_scores_the_mean_over_records_and_draws(model: Vae, part: attack.Part):
    cohort = cohort_of([1, 3, 2])
    found = patient_scores(model, cohort, seed=7, num_draws=3, kl_weight=0.4, part=part)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, by_hand(model, cohort, part, seed=7, draws=3, kl_weight=0.4), rtol=1e-5)


def test_cohorts_longer_than_a_batch_are_scored_record_for_record(
    model: Vae, monkeypatch: pytest.MonkeyPatch
):
    cohort = cohort_of([2, 1, 4])
    # One draw, so that the noise does not depend on how records are batched.
    whole = patient_scores(model, cohort, seed=1, num_draws=1)
    monkeypatch.setattr(attack, "BATCH_SIZE", 3)
    np.testing.assert_allclose(patient_scores(model, cohort, seed=1, num_draws=1), whole, rtol=1e-5)


def test_equal_seeds_give_equal_scores_and_the_global_generator_is_not_used(model: Vae):
    cohort, state = cohort_of([1, 2]), torch.random.get_rng_state()
    first = patient_scores(model, cohort, seed=1)
    assert np.array_equal(first, patient_scores(model, cohort, seed=1))
    assert not np.array_equal(first, patient_scores(model, cohort, seed=2))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("draws", [0, -2])
def test_no_draw_is_refused(model: Vae, draws: int):
    with pytest.raises(ValueError, match="num_draws must be >= 1"):
        patient_scores(model, cohort_of([1]), seed=1, num_draws=draws)


def test_samples_are_decoded_latents_of_the_prior(model: Vae, monkeypatch: pytest.MonkeyPatch):
    covariates = np.linspace(-1, 1, 4, dtype=np.float32)[:, None]
    found = sample_records(model, covariates, seed=5)
    assert found.shape == (4, 5)
    latent = torch.from_numpy(np.random.default_rng(5).standard_normal((4, 2), dtype=np.float32))
    with torch.no_grad():
        expected = model.decode(latent, torch.from_numpy(covariates)).numpy()
    assert np.array_equal(found, expected)
    monkeypatch.setattr(attack, "BATCH_SIZE", 3)
    np.testing.assert_allclose(sample_records(model, covariates, seed=5), expected, rtol=1e-5)
    assert sample_records(model, covariates[:0], seed=5).shape == (0, 5)


def test_the_nearest_patient_is_whose_record_is_nearest(monkeypatch: pytest.MonkeyPatch):
    cohort = cohort_of([2, 1, 3], seed=2)
    samples = np.random.default_rng(3).normal(size=(20, 5)).astype(np.float32)
    owner = np.repeat([0, 1, 2], [2, 1, 3])
    between = np.sqrt(((samples[:, None].astype(float) - np.asarray(cohort.values)[None]) ** 2).sum(-1))
    for size in (256, 2):  # in one batch of records, and in three
        monkeypatch.setattr(attack, "BATCH_SIZE", size)
        found = nearest_patients(samples, cohort)
        np.testing.assert_allclose(found.distance, between.min(1), rtol=1e-6)
        assert found.patient.tolist() == owner[between.argmin(1)].tolist()


def test_a_copy_has_distance_nought_however_large_its_values():
    cohort = cohort_of([1, 1])
    large = Cohort.from_records(
        name="large",
        patients=["a", "b"],
        values=np.asarray(cohort.values) + np.float32(1e6),
        covariates=np.asarray(cohort.covariates),
        covariate_names=("age",),
    )
    found = nearest_patients(np.asarray(large.values[1:]), large)
    assert found.distance.tolist() == [0.0]
    assert found.patient.tolist() == [1]


def test_samples_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="samples must be"):
        nearest_patients(np.zeros((2, 4), np.float32), cohort_of([1]))
