"""What every accountant has to satisfy, run for each; the reference is the analytic Gaussian mechanism."""

from __future__ import annotations

import math

import pytest
from scipy.optimize import brentq
from scipy.special import log_ndtr

from privacy.accounting import Accountant, PldAccountant, RdpAccountant, Release
from privacy.errors import PlanError

ACCOUNTANTS = {
    "rdp": RdpAccountant(),
    "pld": PldAccountant(interval=1e-3),  # the fine grid costs ten times more and is in tests/golden
}
accountants = pytest.mark.parametrize("accountant", list(ACCOUNTANTS.values()), ids=list(ACCOUNTANTS))


def release(q: float = 0.05, noise: float = 1.0, steps: int = 100) -> Release:
    return Release(sampling_probability=q, noise_multiplier=noise, steps=steps)


def gaussian_epsilon(noise: float, delta: float) -> float:
    """Return the exact epsilon of one Gaussian release of sensitivity 1 (Balle & Wang 2018, theorem 8)."""

    def excess(epsilon: float) -> float:
        first = math.exp(log_ndtr(0.5 / noise - epsilon * noise))
        return first - math.exp(epsilon + log_ndtr(-0.5 / noise - epsilon * noise)) - delta

    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, 1e4))


@accountants
def test_the_name_is_the_one_reported(accountant: Accountant):
    assert accountant.name in {"rdp", "pld"}


@accountants
@pytest.mark.parametrize("releases", [[], [release(steps=0)], [release(steps=0), release(q=1.0, steps=0)]])
def test_no_steps_cost_nothing(accountant: Accountant, releases: list[Release]):
    assert accountant.epsilon(releases, 1e-5) == 0.0


@accountants
@pytest.mark.parametrize(("noise", "steps"), [(0.7, 1), (2.0, 1), (5.0, 10), (20.0, 100)])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_full_sampling_is_bounded_by_the_analytic_gaussian_mechanism(
    accountant: Accountant, noise: float, steps: int, delta: float
):
    # T Gaussian releases of multiplier s compose exactly to one of s / sqrt(T).
    exact = gaussian_epsilon(noise / math.sqrt(steps), delta)
    reported = accountant.epsilon([release(q=1.0, noise=noise, steps=steps)], delta)
    slack = 0.35 if accountant.name == "rdp" else 0.01
    assert exact - 1e-6 <= reported <= exact * (1 + slack) + 0.01


@accountants
def test_more_steps_never_cost_less(accountant: Accountant):
    spent = [accountant.epsilon([release(steps=steps)], 1e-5) for steps in (1, 2, 10, 100, 1000)]
    assert spent == sorted(spent)
    assert spent[0] < spent[-1]


@accountants
def test_more_noise_never_costs_more(accountant: Accountant):
    spent = [accountant.epsilon([release(noise=noise)], 1e-5) for noise in (0.5, 0.8, 1.0, 2.0, 8.0)]
    assert spent == sorted(spent, reverse=True)
    assert spent[0] > spent[-1]


@accountants
def test_a_higher_sampling_probability_never_costs_less(accountant: Accountant):
    spent = [accountant.epsilon([release(q=q, noise=2.0)], 1e-5) for q in (0.01, 0.05, 0.3, 0.9, 1.0)]
    assert spent == sorted(spent)
    assert spent[0] < spent[-1]


@accountants
def test_a_smaller_delta_never_costs_less(accountant: Accountant):
    spent = [accountant.epsilon([release()], delta) for delta in (1e-2, 1e-4, 1e-6, 1e-9)]
    assert spent == sorted(spent)


@accountants
def test_the_split_and_the_order_of_equal_parameters_do_not_matter(accountant: Accountant):
    a, b = release(q=0.05, noise=1.0, steps=60), release(q=0.02, noise=2.0, steps=40)
    together = accountant.epsilon([a, b], 1e-5)
    parts = [release(q=0.05, noise=1.0, steps=10) for _ in range(6)]
    assert accountant.epsilon([b, a], 1e-5) == together
    assert accountant.epsilon([*parts[:3], b, *parts[3:]], 1e-5) == together


@accountants
def test_different_jobs_compose_below_their_sum_and_above_each(accountant: Accountant):
    a, b = release(q=0.05, noise=1.0, steps=200), release(q=0.2, noise=3.0, steps=100)
    alone = [accountant.epsilon([job], 1e-5) for job in (a, b)]
    together = accountant.epsilon([a, b], 1e-5)
    assert max(alone) < together < sum(alone)


@accountants
@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, 2.0])
def test_a_delta_out_of_range_is_refused(accountant: Accountant, delta: float):
    with pytest.raises(PlanError, match=r"delta must be a number in \(0, 1\)"):
        accountant.epsilon([release()], delta)


@accountants
@pytest.mark.parametrize(
    ("q", "noise", "steps"), [(0.5, 0.1, 50), (1e-4, 0.3, 10), (0.01, 50.0, 10), (0.9, 30.0, 5)]
)
def test_extreme_plans_are_finite(accountant: Accountant, q: float, noise: float, steps: int):
    spent = accountant.epsilon([release(q=q, noise=noise, steps=steps)], 1e-5)
    assert math.isfinite(spent)
    assert spent >= 0.0
