"""Terms of the evidence lower bound against arithmetic by hand, scipy and torch.distributions."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

from vae.models.protocol import Posterior
from vae.objectives import active_units, gaussian_nll_per_record, kl_per_latent, kl_warmup, sample_latent


def posterior(mean, log_variance) -> Posterior:
    return Posterior(mean=torch.tensor(mean), log_variance=torch.tensor(log_variance))


def test_nll_by_hand():
    # one record, x - m = (3, 4), s = 2:
    # (9 + 16) / (2 * 4) + 2 * (log 2 + log(2 pi) / 2) = 3.125 + 1.386294 + 1.837877
    values, mean = torch.tensor([[3.0, 4.0]]), torch.zeros((1, 2))
    nll = gaussian_nll_per_record(values, mean, torch.tensor([math.log(2.0)]))
    assert nll.tolist() == pytest.approx([3.125 + 1.386294 + 1.837877], abs=1e-5)


def test_nll_equals_scipy_summed_over_all_axes_but_the_first():
    generator = torch.Generator().manual_seed(0)
    values, mean = torch.rand((2, 3, 2, 4, 5), generator=generator)
    log_scale = torch.tensor([-2.0, 0.0, 1.0])
    scale = log_scale.exp().reshape(3, 1, 1, 1)
    nll = gaussian_nll_per_record(values, mean, log_scale).tolist()
    expected = -scipy.stats.norm.logpdf(values, loc=mean, scale=scale).sum(axis=(1, 2, 3))
    assert nll == pytest.approx(expected.tolist(), rel=1e-5)
    wrong = -scipy.stats.norm.logpdf(values, loc=mean, scale=1.1 * scale).sum(axis=(1, 2, 3))
    assert nll != pytest.approx(wrong.tolist(), rel=1e-3)


def test_nll_is_least_where_the_scale_is_the_root_mean_square_error():
    values = torch.tensor([[0.3, -0.3, 0.3, -0.3]])
    log_scales = torch.linspace(-3, 1, 401)
    nll = torch.stack(
        [gaussian_nll_per_record(values, torch.zeros_like(values), s.reshape(1)) for s in log_scales]
    )
    assert float(log_scales[nll.argmin()]) == pytest.approx(math.log(0.3), abs=0.01)


def test_nll_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"values \[4, 3\] and decoder mean \[1, 3\]"):
        gaussian_nll_per_record(torch.zeros(4, 3), torch.zeros(1, 3), torch.zeros(4))


def test_kl_by_hand():
    # mean 2, variance e: (4 + e - 1 - 1) / 2 = (2 + e) / 2
    kl = kl_per_latent(posterior([[0.0, 2.0]], [[0.0, 1.0]]))
    assert kl.tolist()[0] == pytest.approx([0.0, (2 + math.e) / 2], rel=1e-6)


def test_kl_equals_torch_distributions():
    generator = torch.Generator().manual_seed(1)
    mean, log_variance = torch.randn((6, 3), generator=generator), torch.randn((6, 3), generator=generator)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * log_variance).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(kl_per_latent(Posterior(mean=mean, log_variance=log_variance)), expected)


def test_sample_has_the_posterior_s_moments():
    noise = torch.randn((20_000, 1), generator=torch.Generator().manual_seed(2))
    many = Posterior(mean=torch.full((20_000, 1), 3.0), log_variance=torch.full((20_000, 1), math.log(4.0)))
    latent = sample_latent(many, noise)
    assert float(latent.mean()) == pytest.approx(3.0, abs=5 * 2 / math.sqrt(20_000))
    assert float(latent.std()) == pytest.approx(2.0, abs=0.05)


def test_sample_refuses_noise_shared_between_records():
    with pytest.raises(ValueError, match=r"latent_noise must be \[2, 1\], got \[1\]"):
        sample_latent(posterior([[0.0], [1.0]], [[0.0], [0.0]]), torch.zeros(1))


@pytest.mark.parametrize(
    ("global_round", "warmup_rounds", "beta", "expected"),
    [(0, 4, 2.0, 0.0), (1, 4, 2.0, 0.5), (2, 4, 2.0, 1.0), (4, 4, 2.0, 2.0), (99, 4, 2.0, 2.0), (0, 0, 2.0,
    2.0), (3, 4, 0.0, 0.0)],
)  # fmt: skip
def test_warmup_rises_linearly_to_beta(global_round, warmup_rounds, beta, expected):
    assert kl_warmup(global_round, warmup_rounds, beta) == expected


@pytest.mark.parametrize("arguments", [(-1, 4, 1.0), (1, -4, 1.0), (1, 4, -1.0), (1, 4, math.nan)])
def test_warmup_refuses_values_out_of_range(arguments):
    with pytest.raises(ValueError, match="kl_warmup needs values >= 0"):
        kl_warmup(*arguments)


def test_active_units_counts_variances_above_the_threshold():
    # columns: variance 0.25 (values 0, 1), 0.01 exactly not above (0, 0.2), 0
    means = torch.tensor([[0.0, 0.0, 5.0], [1.0, 0.2, 5.0]], dtype=torch.float64)
    assert active_units(means, threshold=0.0101) == 1
    assert active_units(means, threshold=0.0099) == 2
    assert active_units(means) in (1, 2)  # 0.2**2 / 4 is 0.01 up to rounding


@pytest.mark.parametrize("shape", [(1, 3), (0, 3), (4,), (2, 2, 2)])
def test_active_units_needs_two_records(shape):
    with pytest.raises(ValueError, match="active units need posterior means"):
        active_units(torch.zeros(shape))
