"""The discrete Gaussian's law: counted against its probabilities, and its exact path against its fast one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from privacy.discrete import SCALE, DiscreteGaussian, _whole_thresholds, on_lattice
from privacy.noise import KeyStream, SeededRandomness, grid_spacing
from privacy.plan import PrivacyPlan
from privacy.training import NoisedOptimiser, noised_mean, train_private
from tests.support.private_toys import RawGradient, weights_of
from vae.data.cohort import Cohort

COUNT = 400_000
ALPHA = 1e-3


def stream(*labels: str | int) -> KeyStream:
    return SeededRandomness(2026, *labels).stream("noise")


def p_value(sample: np.ndarray, scale: float) -> float:
    """Return the chi-square p-value of exp(-n^2 / 2 scale^2), rare integers pooled into the tails."""
    edge = int(3.2 * scale) + 1
    support = np.arange(-edge, edge + 1)
    everything = np.arange(-40 * int(scale + 1), 40 * int(scale + 1) + 1)
    weights = np.exp(-0.5 * (everything / scale) ** 2)
    probability = weights / weights.sum()
    pooled = np.clip(everything, -edge, edge)
    expected = np.array([probability[pooled == n].sum() for n in support]) * len(sample)
    seen = np.array([(np.clip(sample, -edge, edge) == n).sum() for n in support])
    return float(stats.chisquare(seen, expected).pvalue)


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 5])
def test_integers_are_as_frequent_as_the_law_says(bits: int):
    sample = DiscreteGaussian(stream("law", bits), scale_bits=bits).normal(COUNT)
    assert np.array_equal(sample, np.rint(sample))
    assert p_value(sample, 2.0**bits) > ALPHA


@pytest.mark.parametrize("wrong", [0.98, 1.02])
def test_the_same_test_rejects_another_scale(wrong: float):
    sample = DiscreteGaussian(stream("law", 2), scale_bits=2).normal(COUNT)
    assert p_value(sample, 4.0 * wrong) < ALPHA


def test_the_same_test_rejects_a_rounded_continuous_gaussian():
    """Of one unit the rounded law has variance 1 + 1/12: near, and told apart."""
    assert p_value(np.rint(stream("rounded").normal(COUNT)), 1.0) < ALPHA


def test_the_same_test_rejects_two_zeros():
    """A sampler that keeps minus zero has zero twice as often."""
    sample = DiscreteGaussian(stream("law", 1), scale_bits=1).normal(COUNT)
    extra = np.zeros(int((sample == 0).sum()))
    assert p_value(np.concatenate([sample, extra]), 2.0) < ALPHA


def test_the_noise_of_training_is_normal_at_its_scale():
    sample = DiscreteGaussian(stream("wide")).normal(COUNT)
    assert float(stats.kstest(sample / SCALE, "norm").pvalue) > ALPHA
    statistic = float((sample / SCALE) @ (sample / SCALE))
    assert 2 * min(stats.chi2.sf(statistic, COUNT), stats.chi2.cdf(statistic, COUNT)) > ALPHA
    assert len(np.unique(sample % 1024)) == 1024  # the low bits are there


def test_the_exact_comparison_decides_as_the_fast_one():
    """`doubt` 2 sends every trial to the 192 digits; words that both read are the same in trials of their own."""
    fast = DiscreteGaussian(stream("paths"), scale_bits=4)
    exact = DiscreteGaussian(stream("other"), scale_bits=4, doubt=2.0)
    words = stream("words").words(3000)
    whole, part = np.repeat(np.arange(3.0), 1000), np.tile(np.arange(16.0), 188)[:3000]
    assert np.array_equal(fast._accept(words, whole, part), exact._accept(words, whole, part))
    assert p_value(DiscreteGaussian(stream("slow"), scale_bits=2, doubt=2.0).normal(20_000), 4.0) > ALPHA


def test_words_on_an_edge_are_decided_by_further_digits():
    """Every word is made to be a threshold's first digits: the digits behind it say on which side it is."""
    sampler = DiscreteGaussian(stream("edge"), scale_bits=4)
    words = np.repeat(sampler._thresholds[:1], 2000)
    below = float((sampler._whole(words) == 0).mean())
    assert sampler._whole(sampler._thresholds[:1] - np.uint64(1)).tolist() == [0.0]
    assert sampler._whole(sampler._thresholds[:1] + np.uint64(1)).tolist() == [1.0]
    share = (_whole_thresholds()[0] & ((1 << 128) - 1)) / 2.0**128
    assert abs(below - share) < 5 * math.sqrt(share * (1 - share) / 2000) + 1e-9


def test_equal_keys_give_equal_noise_and_others_do_not():
    assert np.array_equal(
        DiscreteGaussian(stream("twice")).normal(1000), DiscreteGaussian(stream("twice")).normal(1000)
    )
    assert not np.array_equal(
        DiscreteGaussian(stream("twice")).normal(1000), DiscreteGaussian(stream("once")).normal(1000)
    )


def plan(steps: int = 1, **changes: object) -> PrivacyPlan:
    fields: dict[str, object] = {
        "sampling_probability": 0.5,
        "steps": steps,
        "noise_multiplier": 1.3,
        "max_grad_norm": 0.7,
        "divisor": 12.0,
        "delta": 1e-5,
        "randomness": "seeded",
        "mechanism": "discrete",
        "grad_engine": "vmap",
    }
    return PrivacyPlan(**{**fields, **changes})  # type: ignore[arg-type]


def test_what_is_released_has_the_accounted_spread_and_lies_on_the_grid():
    chosen = plan()
    zero = {"a": torch.zeros(COUNT, dtype=torch.int64)}
    out = noised_mean(zero, chosen, DiscreteGaussian(stream("released")))["a"].numpy()
    sigma = 1.3 * 0.7 / 12.0
    assert float(stats.kstest(out / sigma, "norm").pvalue) > ALPHA
    steps = out / grid_spacing(noise_multiplier=1.3, max_grad_norm=0.7, divisor=12.0)
    assert np.array_equal(steps, np.rint(steps))


def test_a_signal_comes_through_in_its_own_units():
    lattice_sum = {
        "a": torch.full((COUNT,), int(5 * SCALE / 1.3), dtype=torch.int64)
    }  # 5 C in each coordinate
    out = noised_mean(lattice_sum, plan(), DiscreteGaussian(stream("signal")))["a"].numpy()
    assert float(out.mean()) == pytest.approx(5 * 0.7 / 12, rel=2e-3)


@pytest.mark.parametrize(
    ("sums", "noise"),
    [
        (torch.zeros(8, dtype=torch.float64), DiscreteGaussian(stream("a"))),
        (torch.zeros(8, dtype=torch.int64), stream("a")),
    ],
    ids=["floats under integer noise", "continuous noise on integers"],
)
def test_noise_and_sums_of_different_kinds_are_refused(
    sums: torch.Tensor, noise: DiscreteGaussian | KeyStream
):
    with pytest.raises(ValueError, match="adds integers to sums of integers"):
        noised_mean({"a": sums}, plan(), noise)


def test_sums_on_a_lattice_are_refused_by_other_mechanisms():
    """Their noise would be smaller than accounted by 2^36."""
    other = plan(mechanism="independent", grad_engine="bookkeeping")
    with pytest.raises(ValueError, match="units of a lattice"):
        noised_mean({"a": torch.zeros(8, dtype=torch.int64)}, other, stream("a"))


def test_training_releases_noise_of_the_accounted_size_and_is_seeded():
    """All gradients are zero: weights move by a learning rate of noise."""
    zero = Cohort.from_records(
        name="zero",
        patients=["a", "b", "b", "c"],
        values=np.zeros((4, 40_000), np.float32),
        covariates=np.zeros((4, 0), np.float32),
        covariate_names=(),
    )

    def trained() -> np.ndarray:
        module = RawGradient(40_000)
        torch.nn.init.zeros_(module.layer.weight)
        train_private(
            module,
            zero,
            plan=plan(steps=3),
            optimiser=NoisedOptimiser(kind="sgd", learning_rate=1.0),
            randomness=SeededRandomness(7, "training"),
            kl_weight=0.0,
            latent_size=3,
        )
        return np.asarray(weights_of(module), dtype=np.float64)

    one = trained()
    assert np.array_equal(one, trained())
    spread = math.sqrt(3) * 1.3 * 0.7 / 12.0
    assert float(one.std()) == pytest.approx(spread, rel=0.05)


def test_a_sum_and_its_noise_are_added_without_error():
    total = torch.tensor([2**50 + 1, -7, 0], dtype=torch.int64)
    assert on_lattice(total, np.array([-(2.0**50), 7.0, 3.0])).tolist() == [1.0, 0.0, 3.0]
