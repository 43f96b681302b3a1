"""The two libraries behind the accountants, cached by parameters; nothing else imports their accounting.

Both are imported where they are first needed: Opacus costs about a second of start-up, dp-accounting half of
one.

Replacing one unit: dp-accounting has it for the Poisson-sampled Gaussian (0.6: `NeighboringRelation.REPLACE_ONE`,
two units at opposite ends of the clip ball). Opacus 1.6 knows add/remove alone, so its curve is taken twice,
from one data set to the other by way of the data set without the unit.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, NamedTuple


class Group(NamedTuple):
    """Equal steps of one history; a history is a sorted tuple of distinct groups with steps > 0."""

    sampling_probability: float
    noise_multiplier: float
    steps: int
    neighbouring: str = "add_remove"


_RELATIVE_INTERVAL = 1e-5
_LARGE_NOISE = 20.0
_LEAST_SAMPLING = 1e-12  # dp-accounting 0.6 divides by q; a larger one costs more, hence is a bound
_MEANINGLESS = 500.0  # exp(epsilon) nears the end of float64; RDP's bound serves where no privacy is left
_RDP_ORDERS = (
    *(1 + x / 100 for x in range(1, 10)),
    *(1 + x / 10 for x in range(1, 100)),
    *range(11, 64),
    *(64, 80, 96, 128, 192, 256, 384, 512, 1024),
)


@functools.lru_cache(maxsize=8192)
def renyi_of_one_step(
    sampling_probability: float, noise_multiplier: float, order: float, neighbouring: str
) -> float:
    """Return an upper bound on the Renyi divergence of one step at one order.

    add/remove: Opacus. replace one: with D that curve,

        (order - 1/2) / (order - 1) D(2 order) + D(2 order - 1);   2 order / sigma^2 where q = 1, exactly.

    Args:
        sampling_probability: q in (0, 1].
        noise_multiplier: sigma > 0.
        order: > 1.
        neighbouring: `add_remove` or `replace_one`.

    Returns:
        Nats, >= 0; infinite where Opacus 1.6 overflows, which is a bound too (orders above about 1029, hence
        above 514 for `replace_one` with q < 1).

    References:
        Mironov 2017, arXiv:1702.07476, proposition 11 (weak triangle inequality, p = q = 2); Mironov, Talwar,
        Zhang 2019, arXiv:1908.10530 (the sampled Gaussian; both directions are below the one computed).
    """
    if neighbouring == "add_remove":
        return _opacus_divergence(sampling_probability, noise_multiplier, order)
    if sampling_probability == 1.0:
        return _opacus_divergence(1.0, noise_multiplier / 2, order)
    there = _opacus_divergence(sampling_probability, noise_multiplier, 2 * order)
    back = _opacus_divergence(sampling_probability, noise_multiplier, 2 * order - 1)
    return (order - 0.5) / (order - 1) * there + back


def _opacus_divergence(sampling_probability: float, noise_multiplier: float, order: float) -> float:
    """Return Opacus' divergence of one step under add/remove; infinite where it cannot compute it."""
    from opacus.accountants.analysis import rdp

    try:
        (value,) = rdp.compute_rdp(
            q=sampling_probability, noise_multiplier=noise_multiplier, steps=1, orders=[order]
        )
    except (ArithmeticError, ValueError):
        return math.inf
    return math.inf if math.isnan(value) else max(0.0, float(value))


@functools.lru_cache(maxsize=256)
def _rdp_of_one_step(
    sampling_probability: float, noise_multiplier: float, neighbouring: str
) -> tuple[float, ...]:
    """Return the Renyi divergence of one step at every order: the least of the bounds that hold."""
    curve = [
        renyi_of_one_step(sampling_probability, noise_multiplier, order, neighbouring)
        for order in _RDP_ORDERS
    ]
    if neighbouring == "replace_one":
        # Sampling never adds: two releases of everybody are at most 2 C apart, whoever is sampled.
        everybody = (renyi_of_one_step(1.0, noise_multiplier, order, neighbouring) for order in _RDP_ORDERS)
        curve = [min(pair) for pair in zip(curve, everybody, strict=True)]
    return tuple(curve)


@functools.lru_cache(maxsize=1024)
def rdp_epsilon(groups: tuple[Group, ...], delta: float) -> float:
    """Return the RDP bound of canonical groups."""
    if not groups:
        return 0.0
    from opacus.accountants.analysis import rdp

    total = [0.0] * len(_RDP_ORDERS)
    for sampling_probability, noise_multiplier, steps, neighbouring in groups:
        one = _rdp_of_one_step(sampling_probability, noise_multiplier, neighbouring)
        total = [sum_ + steps * value for sum_, value in zip(total, one, strict=True)]
    with warnings.catch_warnings():
        # Opacus 1.6 warns where the best order is the first or last one: the bound is looser there, still a
        # bound.
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        epsilon, _ = rdp.get_privacy_spent(orders=list(_RDP_ORDERS), rdp=total, delta=delta)
    return max(0.0, float(epsilon))


@functools.lru_cache(maxsize=64)
def _pld_of_one_step(
    sampling_probability: float, noise_multiplier: float, interval: float, neighbouring: str
) -> Any:  # noqa: ANN401 - untyped library
    """Return the privacy loss distribution of one step."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution

    relations = {
        "add_remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace_one": NeighboringRelation.REPLACE_ONE,
    }
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=max(_LEAST_SAMPLING, sampling_probability),
        pessimistic_estimate=True,
        value_discretization_interval=interval,
        neighboring_relation=relations[neighbouring],
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
    for sampling_probability, noise_multiplier, steps, neighbouring in groups:
        one = _pld_of_one_step(sampling_probability, noise_multiplier, step, neighbouring)
        part = one.self_compose(steps)
        composed = part if composed is None else composed.compose(part)
    return max(0.0, float(composed.get_epsilon_for_delta(delta)))


def _interval(groups: tuple[Group, ...], delta: float, interval: float) -> float:
    """Return `interval` times a power of two.

    Narrower than half the spread of one step's loss (about q / sigma) where noise is large, or rounding up the loss
    would dominate it; but not narrower than 1e-5 of the RDP bound, so that the grid stays small.
    """
    spreads = [q / noise for q, noise, _, _ in groups if noise >= _LARGE_NOISE]
    wanted = max(
        min([interval, *(spread / 2 for spread in spreads)]), _RELATIVE_INTERVAL * rdp_epsilon(groups, delta)
    )
    return float(interval * 2.0 ** math.ceil(math.log2(wanted / interval)))
