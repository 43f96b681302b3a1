"""Canaries: gradients of known norm in directions of their own, through sampler, clip and noise like any patient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from privacy.accounting import Release
from privacy.canaries import (
    CANARY_WEIGHTS,
    CanaryModule,
    CanaryObserver,
    CanaryPatients,
    GradientCanaries,
    InsertedPatients,
    check_canaries,
    flip_coins,
    log_likelihood_ratio,
)
from privacy.clipping import build_engine
from privacy.errors import IncompatibleModelError
from privacy.noise import SeededRandomness
from tests.support.private_toys import LATENT, RawGradient, latent_of, make_cohort, make_module

COHORT = make_cohort((6,), [1, 3, 2])
COINS = np.array([True, False, True, True])
ALL = np.arange(6, dtype=np.int64)


@pytest.fixture
def patients() -> CanaryPatients:
    return CanaryPatients(real=COHORT, included=COINS, records=4)


@pytest.fixture
def probe() -> CanaryModule:
    return CanaryModule(make_module("table"), count=4, norm=20.0)


# --- who is there -----------------------------------------------------------------------------------------


def test_canaries_that_are_in_are_patients_after_the_real_ones(patients: CanaryPatients):
    assert patients.num_patients == 3 + 3
    batch = patients.batch(ALL)
    assert batch.num_patients == 6
    assert batch.patient.tolist() == [0, 1, 1, 1, 2, 2, *[3] * 4, *[4] * 4, *[5] * 4]
    assert batch.covariates[:, -1].tolist() == [-1.0] * 6 + [0.0] * 4 + [2.0] * 4 + [3.0] * 4
    assert torch.equal(batch.values[:6], COHORT.batch(ALL[:3]).values)
    assert torch.equal(batch.covariates[:6, :-1], COHORT.batch(ALL[:3]).covariates)
    assert not batch.values[6:].any()


def test_some_of_them_may_be_drawn_and_a_cap_on_records_holds_for_them(patients: CanaryPatients):
    batch = patients.batch(np.array([1, 5]), max_records=2, rng=np.random.default_rng(0))
    assert batch.patient.tolist() == [0, 0, 1, 1]
    assert batch.covariates[:, -1].tolist() == [-1.0, -1.0, 3.0, 3.0]
    nobody = patients.batch(np.zeros(0, np.int64))
    assert (nobody.num_patients, nobody.values.shape) == (0, (0, 6))


def test_guests_join_a_cohort_by_their_coins():
    guests = make_cohort((6,), [2, 1], seed=9)
    joined = InsertedPatients(real=COHORT, guests=guests, included=np.array([False, True]))
    assert joined.num_patients == 4
    batch = joined.batch(np.array([0, 3]))
    assert torch.equal(batch.values[1:], guests.batch(np.array([1])).values)
    with pytest.raises(ValueError, match="2 guests need as many coins"):
        InsertedPatients(real=COHORT, guests=guests, included=np.array([True]))


def test_coins_are_fair_repeatable_and_not_those_of_another_purpose():
    coins = flip_coins(SeededRandomness(1).stream("canary-coins"), 10_000)
    assert coins.dtype == np.bool_
    assert abs(coins.sum() - 5000) < 200  # four standard deviations
    assert np.array_equal(coins, flip_coins(SeededRandomness(1).stream("canary-coins"), 10_000))
    other = flip_coins(SeededRandomness(1).stream("sampling"), 10_000)
    assert abs((coins == other).sum() - 5000) < 200


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"records": 0}, {"norm": 1.0}, {"norm": float("inf")}, {"norm": float("nan")}]
)
def test_canaries_that_could_find_nothing_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match="canaries need count >= 1, records >= 1 and a finite norm > 1"):
        GradientCanaries(**wrong)


# --- what they do to the gradient -------------------------------------------------------------------------


engines = pytest.mark.parametrize("engine", ["bookkeeping", "vmap", "opacus"])


@engines
def test_a_canary_is_clipped_to_its_coordinate_once_for_all_its_records(
    patients: CanaryPatients, probe: CanaryModule, engine: str
):
    probe.train()
    batch = patients.batch(np.array([3, 4, 5]))
    found = build_engine(engine).clipped_sum(  # type: ignore[arg-type]
        probe, batch, latent_noise=torch.zeros(len(batch.values), LATENT), kl_weight=1.0, max_grad_norm=0.5
    )
    assert found.num_clipped == 3
    assert found.sum[CANARY_WEIGHTS][:, 0].tolist() == pytest.approx([0.5, 0.0, 0.5, 0.5])
    assert all(not tensor.any() for name, tensor in found.sum.items() if name != CANARY_WEIGHTS)


@engines
def test_its_gradient_has_the_norm_that_was_asked_for(
    patients: CanaryPatients, probe: CanaryModule, engine: str
):
    probe.train()
    batch = patients.batch(np.array([4]))
    found = build_engine(engine).clipped_sum(  # type: ignore[arg-type]
        probe, batch, latent_noise=torch.zeros(len(batch.values), LATENT), kl_weight=1.0, max_grad_norm=1e6
    )
    assert found.sum[CANARY_WEIGHTS][:, 0].tolist() == [0.0, 0.0, 20.0, 0.0]


@engines
def test_real_patients_are_trained_as_without_canaries(
    patients: CanaryPatients, probe: CanaryModule, engine: str
):
    probe.train()
    batch, alone = patients.batch(ALL[:3]), COHORT.batch(ALL[:3])
    noise = latent_of(alone)
    chosen = build_engine(engine)  # type: ignore[arg-type]
    with_canaries = chosen.clipped_sum(probe, batch, latent_noise=noise, kl_weight=0.7, max_grad_norm=0.5)
    without = chosen.clipped_sum(probe.module, alone, latent_noise=noise, kl_weight=0.7, max_grad_norm=0.5)
    assert with_canaries.loss_sum == pytest.approx(without.loss_sum)
    assert not with_canaries.sum[CANARY_WEIGHTS].any()
    for name, tensor in without.sum.items():
        assert torch.allclose(with_canaries.sum[f"module.{name}"], tensor, rtol=1e-6, atol=1e-9)


def test_a_number_that_is_none_or_too_large_is_no_index(probe: CanaryModule):
    covariates = torch.tensor([[0.0, 0.0, float("nan")], [0.0, 0.0, 99.0]])
    with torch.no_grad():
        probe.canaries.weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
        losses = probe(torch.zeros(2, 6), covariates, torch.zeros(2, LATENT), 1.0)
        real = probe.module(torch.zeros(1, 6), torch.zeros(1, 2), torch.zeros(1, LATENT), 1.0)
    assert losses[0] == real[0]
    assert losses[1] == 20.0 * 4.0


def test_wrapping_draws_nothing_from_the_global_generator():
    before = torch.random.get_rng_state()
    CanaryModule(make_module("table"), count=5, norm=2.0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_more_canaries_than_the_number_type_can_tell_apart_are_refused():
    half = make_module("table").to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"canaries cannot be numbered in torch\.bfloat16"):
        CanaryModule(half, count=1000, norm=2.0)
    CanaryModule(half, count=200, norm=2.0)


class RootOfValues(nn.Module):
    """A loss whose gradient at a record of zeros is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1, bias=False)

    def forward(self, values: Tensor, covariates: Tensor, latent_noise: Tensor, kl_weight: float) -> Tensor:
        return self.layer(values)[:, 0].abs().sqrt()


def test_a_module_that_would_silence_its_canaries_is_refused():
    cohort = make_cohort((6,), [1])
    check_canaries(CanaryModule(RawGradient(6), count=2, norm=2.0), cohort, latent_size=1, kl_weight=0.0)
    with pytest.raises(IncompatibleModelError, match="canaries would be dropped"):
        check_canaries(CanaryModule(RootOfValues(), count=2, norm=2.0), cohort, latent_size=1, kl_weight=0.0)


# --- how they are heard -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("q", "sigma"), [(0.1, 1.0), (0.5, 0.7), (1.0, 3.0)])
def test_the_ratio_is_that_of_the_two_densities(q: float, sigma: float):
    x = np.array([-2.0, 0.0, 0.5, 1.0, 4.0])
    inside = (1 - q) * stats.norm.pdf(x, 0, sigma) + q * stats.norm.pdf(x, 1, sigma)
    expected = np.log(inside / stats.norm.pdf(x, 0, sigma))
    found = log_likelihood_ratio(x, sampling_probability=q, noise_multiplier=sigma)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("q", [0.1, 1.0])
def test_the_ratio_is_finite_for_whatever_was_released(q: float):
    x = np.array([np.inf, -np.inf, np.nan, 1e300, -1e300])
    for sigma in (0.0, 1e-300, 1.0):
        found = log_likelihood_ratio(x, sampling_probability=q, noise_multiplier=sigma)
        assert np.isfinite(found).all()
        assert found[0] >= found[1]
        assert found[2] == pytest.approx(0.0, abs=1e-12)


def test_an_observer_adds_the_ratios_of_the_steps_that_were_claimed():
    early = Release(sampling_probability=0.2, noise_multiplier=1.0, steps=2)
    late = Release(sampling_probability=1.0, noise_multiplier=2.0, steps=1)
    nothing = Release(sampling_probability=0.9, noise_multiplier=9.0, steps=0)
    observer = CanaryObserver([nothing, early, late], count=2, max_grad_norm=0.5, divisor=10.0)
    steps = [np.array([0.3, -1.0]), np.array([1.2, 0.0]), np.array([0.9, 0.1]), np.array([0.5, 0.4])]
    for x in steps:  # one step more than claimed: read as the last claim
        observer({CANARY_WEIGHTS: torch.from_numpy(x * 0.5 / 10.0)[:, None], "module.weight": torch.ones(3)})
    for row, sharpness in enumerate((1.0, 0.5, 0.2)):
        expected = sum(
            log_likelihood_ratio(
                x,
                sampling_probability=claim.sampling_probability,
                noise_multiplier=sharpness * claim.noise_multiplier,
            )
            for x, claim in zip(steps, (early, early, late, late), strict=True)
        )
        np.testing.assert_allclose(observer.scores[row], expected, rtol=1e-9)


def test_an_observer_of_no_claim_is_refused():
    with pytest.raises(ValueError, match="at least one step"):
        CanaryObserver([], count=2, max_grad_norm=1.0, divisor=1.0)
