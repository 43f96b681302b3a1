"""The terms of the evidence lower bound, record by record, and what is reported about the latent space.

Nothing here averages over a batch: a term that mixes records has no per-record gradient to clip.
All quantities are in nats.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # at run time the models import this module
    from vae.models.protocol import Posterior

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def gaussian_nll_per_record(values: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return the negative log likelihood of each record, for a Gaussian with one scale for all elements.

    -log p(x | z) = sum_i [ (x_i - m_i)^2 / (2 s^2) + log s + log(2 pi) / 2 ]

    Shapes: B records, * any further axes.

    Args:
        values: x, [B, *].
        mean: m, of the same shape.
        log_scale: log s, [B] or a scalar.

    Returns:
        [B], in nats, summed over the elements of a record.

    Raises:
        ValueError: the shapes of `values` and `mean` differ (broadcasting would hide it).

    Guarantees:
        Element b depends on row b alone (tests/property/test_per_record_independence.py).

    References:
        Kingma & Welling 2014, arXiv:1312.6114, appendix C.2.
        One learned scale: Rybkin et al. 2021, arXiv:2006.13202.
    """
    if values.shape != mean.shape:
        raise ValueError(f"values {list(values.shape)} and decoder mean {list(mean.shape)} differ in shape")
    elements = math.prod(values.shape[1:])
    squared = (values - mean).square().flatten(1).sum(1)
    return 0.5 * squared * torch.exp(-2.0 * log_scale) + elements * (log_scale + _HALF_LOG_TWO_PI)


def kl_per_latent(posterior: Posterior) -> Tensor:
    """Return KL(q(z_j | x) || N(0, 1)) of each record and latent dimension.

    KL = (mean^2 + variance - 1 - log variance) / 2

    Returns:
        [B, Z], in nats, >= 0 up to rounding.

    References:
        Kingma & Welling 2014, arXiv:1312.6114, appendix B.
    """
    variance = posterior.log_variance.exp()
    return 0.5 * (posterior.mean.square() + variance - 1.0 - posterior.log_variance)


def sample_latent(posterior: Posterior, latent_noise: Tensor) -> Tensor:
    """Return mean + standard deviation * noise, [B, Z].

    Raises:
        ValueError: `latent_noise` does not have one row for each record; one row broadcast to all would give
            the records of a batch the same noise.
    """
    if latent_noise.shape != posterior.mean.shape:
        raise ValueError(f"latent_noise must be {list(posterior.mean.shape)}, got {list(latent_noise.shape)}")
    return posterior.mean + torch.exp(0.5 * posterior.log_variance) * latent_noise


def kl_warmup(global_round: int, warmup_rounds: int, beta: float) -> float:
    """Return the weight of the KL term in a round: rises linearly, reaches `beta` in round `warmup_rounds`.

    It counts rounds of the federation, not local steps, so that all sites optimise the same objective.

    Args:
        global_round: Round of the federation, the first is 1; 0 stands for "before the first".
        warmup_rounds: Rounds until the full weight, >= 0; 0 means no warm-up.
        beta: Final weight [dimensionless], >= 0.

    Raises:
        ValueError: an argument is out of range.
    """
    if global_round < 0 or warmup_rounds < 0 or not beta >= 0:
        raise ValueError(f"kl_warmup needs values >= 0, got {global_round=}, {warmup_rounds=}, {beta=}")
    if warmup_rounds == 0:
        return beta
    return beta * min(1.0, global_round / warmup_rounds)


def active_units(posterior_means: Tensor, threshold: float = 0.01) -> int:
    """Return how many latent dimensions carry information: Var over records of E[z_j | x] > `threshold`.

    It looks at all records at once and is private at a site: report it locally, or account for it.

    Args:
        posterior_means: [N, Z], N >= 2 records.
        threshold: Variance above which a unit counts [squared latent units].

    Raises:
        ValueError: fewer than two records, or not a matrix.

    References:
        Burda et al. 2016, arXiv:1509.00519, section 4 (threshold 0.01).
    """
    if posterior_means.ndim != 2 or posterior_means.shape[0] < 2:
        raise ValueError(f"active units need posterior means [N >= 2, Z], got {list(posterior_means.shape)}")
    return int((posterior_means.var(dim=0, correction=0) > threshold).sum())
