"""The two libraries behind the accountants, cached by parameters; nothing else imports their accounting.

Both are imported where they are first needed: Opacus costs about a second of start-up, dp-accounting half of
one.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

Group = tuple[float, float, int]
"""(sampling_probability, noise_multiplier, steps > 0); a history is a sorted tuple of distinct ones."""

_RELATIVE_INTERVAL = 1e-5
_LARGE_NOISE = 20.0
_MEANINGLESS = 500.0  # exp(epsilon) nears the end of float64; RDP's bound serves where no privacy is left
_RDP_ORDERS = (
    *(1 + x / 100 for x in range(1, 10)),
    *(1 + x / 10 for x in range(1, 100)),
    *range(11, 64),
    *(64, 80, 96, 128, 192, 256, 384, 512, 1024),
)


@functools.lru_cache(maxsize=256)
def _rdp_of_one_step(sampling_probability: float, noise_multiplier: float) -> tuple[float, ...]:
    """Return the Renyi divergence of one step at every order."""
    from opacus.accountants.analysis import rdp

    curve = rdp.compute_rdp(
        q=sampling_probability, noise_multiplier=noise_multiplier, steps=1, orders=list(_RDP_ORDERS)
    )
    return tuple(float(value) for value in curve)


@functools.lru_cache(maxsize=1024)
def rdp_epsilon(groups: tuple[Group, ...], delta: float) -> float:
    """Return the RDP bound of canonical groups."""
    if not groups:
        return 0.0
    from opacus.accountants.analysis import rdp

    total = [0.0] * len(_RDP_ORDERS)
    for sampling_probability, noise_multiplier, steps in groups:
        one = _rdp_of_one_step(sampling_probability, noise_multiplier)
        total = [sum_ + steps * value for sum_, value in zip(total, one, strict=True)]
    with warnings.catch_warnings():
        # Opacus 1.6 warns where the best order is the first or last one: the bound is looser there, still a
        # bound.
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        epsilon, _ = rdp.get_privacy_spent(orders=list(_RDP_ORDERS), rdp=total, delta=delta)
    return max(0.0, float(epsilon))


@functools.lru_cache(maxsize=64)
def _pld_of_one_step(sampling_probability: float, noise_multiplier: float, interval: float) -> Any:  # noqa: ANN401 - untyped library
    """Return the privacy loss distribution of one step."""
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=sampling_probability,
        pessimistic_estimate=True,
        value_discretization_interval=interval,
    )


@functools.lru_cache(maxsize=1024)
def pld_epsilon(groups: tuple[Group, ...], delta: float, interval: float) -> float:
    """Return the PLD bound of canonical groups."""
    if not groups:
        return 0.0
    bound = rdp_epsilon(groups, delta)
    if bound > _MEANINGLESS:
        return bound
    step = _interval(groups, delta, interval)
    composed: Any = None
    for sampling_probability, noise_multiplier, steps in groups:
        part = _pld_of_one_step(sampling_probability, noise_multiplier, step).self_compose(steps)
        composed = part if composed is None else composed.compose(part)
    return max(0.0, float(composed.get_epsilon_for_delta(delta)))


def _interval(groups: tuple[Group, ...], delta: float, interval: float) -> float:
    """Return `interval` times a power of two.

    Narrower than half the spread of one step's loss (about q / sigma) where noise is large, or rounding up the loss
    would dominate it; but not narrower than 1e-5 of the RDP bound, so that the grid stays small.
    """
    spreads = [q / noise for q, noise, _ in groups if noise >= _LARGE_NOISE]
    wanted = max(
        min([interval, *(spread / 2 for spread in spreads)]), _RELATIVE_INTERVAL * rdp_epsilon(groups, delta)
    )
    return float(interval * 2.0 ** math.ceil(math.log2(wanted / interval)))
