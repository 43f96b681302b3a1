"""Probabilistic PCA against its formulas, and a public basis of cosines."""

import numpy as np
import pytest

from vae.data.cohort import Cohort
from vae.tasks.linear import cosine_basis, fit, from_moments

RNG = np.random.default_rng(3)
FACTORS = RNG.normal(size=(3, 8)) * np.array([[3.0], [2.0], [1.0]])


def _cohort(count=400, noise=0.1):
    rows = RNG.normal(size=(count, 3)) @ FACTORS + 0.7 + noise * RNG.normal(size=(count, 8))
    return Cohort.from_records(
        name="x", patients=[f"{i:04d}" for i in range(count)], values=rows.astype(np.float32)
    )


def test_the_fit_is_that_of_tipping_and_bishop():
    cohort = _cohort()
    rows = np.asarray(cohort.values, np.float64)
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    found = fit([cohort], num_components=3)
    np.testing.assert_allclose(found.variances, values[::-1][:3], rtol=1e-5)
    assert found.residual == pytest.approx(values[:5].mean(), rel=1e-4)
    np.testing.assert_allclose(np.abs(found.components @ vectors[:, ::-1][:, :3]), np.eye(3), atol=1e-4)
    gain = (found.variances - found.residual) / found.variances
    expected = found.mean + (rows - found.mean) @ found.components.T * gain @ found.components
    np.testing.assert_allclose(found.reconstruct(cohort.values, None), expected, rtol=1e-4, atol=1e-4)


def test_the_reconstruction_is_the_best_of_its_rank_on_fresh_records():
    found, other = fit([_cohort()], num_components=3), fit([_cohort()], num_components=2)
    fresh = _cohort()
    errors = [
        np.mean((model.reconstruct(fresh.values, None) - fresh.values) ** 2) for model in (found, other)
    ]
    assert errors[0] < 0.02
    assert errors[1] > 0.3


def test_each_patient_counts_once_whatever_the_number_of_records():
    rows = np.array([[0.0, 0.0]] * 9 + [[1.0, 2.0]], np.float32)
    cohort = Cohort.from_records(name="x", patients=["a"] * 9 + ["b"], values=rows)
    np.testing.assert_allclose(fit([cohort], num_components=1).mean, [0.5, 1.0])


def test_records_that_are_not_finite_are_left_out():
    rows = np.array([[0.0, 0.0], [np.nan, 1.0], [1.0, 2.0]], np.float32)
    cohort = Cohort.from_records(name="x", patients=["a", "b", "c"], values=rows)
    np.testing.assert_allclose(fit([cohort], num_components=1).mean, [0.5, 1.0])
    with pytest.raises(ValueError, match="finite"):
        fit([cohort.select(np.array([1]))], num_components=1)


def test_moments_give_the_model_that_the_records_give():
    cohort = _cohort()
    rows = np.asarray(cohort.values, np.float64)
    direct, made = (
        fit([cohort], num_components=3),
        from_moments(rows.mean(axis=0), np.cov(rows.T, bias=True), num_components=3),
    )
    np.testing.assert_allclose(
        direct.reconstruct(cohort.values, None), made.reconstruct(cohort.values, None), atol=1e-5
    )


def test_directions_that_noise_alone_would_give_are_not_kept():
    size, noise = 60, 0.05
    raw = RNG.normal(size=(size, size)) * noise
    nothing = (raw + raw.T) / np.sqrt(2)
    assert len(from_moments(np.zeros(size), nothing, num_components=5, noise=noise).variances) == 0
    signal = nothing + 3.0 * np.outer(np.eye(size)[0], np.eye(size)[0])
    found = from_moments(np.zeros(size), signal, num_components=5, noise=noise)
    assert len(found.variances) == 1
    assert len(from_moments(np.zeros(size), nothing, num_components=5).variances) == 5


@pytest.mark.parametrize("shape", [(1, 6, 5), (2, 4, 4), (1, 3, 4, 5)])
def test_cosines_are_orthonormal_and_begin_with_the_constant(shape):
    found = cosine_basis(shape, 7)
    np.testing.assert_allclose(found @ found.T, np.eye(7), atol=1e-12)
    first = found[0].reshape(shape)[0]
    assert np.ptp(first) < 1e-12
    assert first.flat[0] > 0


def test_smooth_images_are_near_to_few_cosines():
    x, y = np.meshgrid(np.linspace(-1, 1, 16), np.linspace(-1, 1, 16), indexing="ij")
    image = np.exp(-2 * (x**2 + y**2)).ravel()
    basis = cosine_basis((1, 16, 16), 40)
    assert np.linalg.norm(image - image @ basis.T @ basis) < 0.02 * np.linalg.norm(image)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: fit([_cohort(9)], num_components=9), "num_components"),
        (lambda: from_moments(np.zeros(2), np.eye(2), num_components=3), "num_components"),
        (lambda: cosine_basis((5,), 2), "does not exist"),
        (lambda: cosine_basis((1, 3, 3), 10), "does not exist"),
    ],
)
def test_sizes_out_of_range_are_refused(call, problem):
    with pytest.raises(ValueError, match=problem):
        call()
