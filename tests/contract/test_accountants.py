"""What every accountant has to satisfy, run for each and for both neighbouring relations.

The reference is the analytic Gaussian mechanism: replacing one unit moves the sum by 2 C at most, hence sigma / 2.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
from scipy.optimize import brentq
from scipy.special import log_ndtr

from privacy.accounting import NEIGHBOURINGS, Accountant, Neighbouring, PldAccountant, RdpAccountant, Release
from privacy.errors import PlanError

ACCOUNTANTS = {
    "rdp": RdpAccountant(),
    "pld": PldAccountant(interval=1e-3),  # the fine grid costs ten times more and is in tests/golden
}
accountants = pytest.mark.parametrize("accountant", list(ACCOUNTANTS.values()), ids=list(ACCOUNTANTS))


@pytest.fixture(params=NEIGHBOURINGS)
def neighbouring(request: pytest.FixtureRequest) -> Neighbouring:
    relation: Neighbouring = request.param
    return relation


class Maker:
    """Makes releases of one relation."""

    def __init__(self, neighbouring: Neighbouring) -> None:
        self.neighbouring = neighbouring

    def __call__(self, q: float = 0.05, noise: float = 1.0, steps: int = 100) -> Release:
        return Release(
            sampling_probability=q, noise_multiplier=noise, steps=steps, neighbouring=self.neighbouring
        )


@pytest.fixture
def release(neighbouring: Neighbouring) -> Maker:
    return Maker(neighbouring)


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
def test_no_steps_cost_nothing(accountant: Accountant, release: Maker):
    for releases in ([], [release(steps=0)], [release(steps=0), release(q=1.0, steps=0)]):
        assert accountant.epsilon(releases, 1e-5) == 0.0


@accountants
@pytest.mark.parametrize(("noise", "steps"), [(0.7, 1), (2.0, 1), (5.0, 10), (20.0, 100)])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_full_sampling_is_bounded_by_the_analytic_gaussian_mechanism(
    accountant: Accountant, noise: float, steps: int, delta: float, release: Maker
):
    # T Gaussian releases of multiplier s compose exactly to one of s / sqrt(T).
    distance = 2 if release.neighbouring == "replace_one" else 1
    exact = gaussian_epsilon(noise / math.sqrt(steps) / distance, delta)
    reported = accountant.epsilon([release(q=1.0, noise=noise, steps=steps)], delta)
    slack = 0.35 if accountant.name == "rdp" else 0.01
    assert exact - 1e-6 <= reported <= exact * (1 + slack) + 0.01


@accountants
def test_more_steps_never_cost_less(accountant: Accountant, release: Maker):
    spent = [accountant.epsilon([release(steps=steps)], 1e-5) for steps in (1, 2, 10, 100, 1000)]
    assert spent == sorted(spent)
    assert spent[0] < spent[-1]


@accountants
def test_more_noise_never_costs_more(accountant: Accountant, release: Maker):
    spent = [accountant.epsilon([release(noise=noise)], 1e-5) for noise in (0.5, 0.8, 1.0, 2.0, 8.0)]
    assert spent == sorted(spent, reverse=True)
    assert spent[0] > spent[-1]


@accountants
def test_a_higher_sampling_probability_never_costs_less(accountant: Accountant, release: Maker):
    spent = [accountant.epsilon([release(q=q, noise=2.0)], 1e-5) for q in (0.01, 0.05, 0.3, 0.9, 1.0)]
    assert spent == sorted(spent)
    assert spent[0] < spent[-1]


@accountants
def test_a_smaller_delta_never_costs_less(accountant: Accountant, release: Maker):
    spent = [accountant.epsilon([release()], delta) for delta in (1e-2, 1e-4, 1e-6, 1e-9)]
    assert spent == sorted(spent)


@accountants
def test_the_split_and_the_order_of_equal_parameters_do_not_matter(accountant: Accountant, release: Maker):
    a, b = release(q=0.05, noise=1.0, steps=60), release(q=0.02, noise=2.0, steps=40)
    together = accountant.epsilon([a, b], 1e-5)
    parts = [release(q=0.05, noise=1.0, steps=10) for _ in range(6)]
    assert accountant.epsilon([b, a], 1e-5) == together
    assert accountant.epsilon([*parts[:3], b, *parts[3:]], 1e-5) == together


@accountants
def test_different_jobs_compose_below_their_sum_and_above_each(accountant: Accountant, release: Maker):
    a, b = release(q=0.05, noise=1.0, steps=200), release(q=0.2, noise=3.0, steps=100)
    alone = [accountant.epsilon([job], 1e-5) for job in (a, b)]
    together = accountant.epsilon([a, b], 1e-5)
    assert max(alone) < together < sum(alone)


@accountants
@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, 2.0])
def test_a_delta_out_of_range_is_refused(accountant: Accountant, delta: float, release: Maker):
    with pytest.raises(PlanError, match=r"delta must be a number in \(0, 1\)"):
        accountant.epsilon([release()], delta)


@accountants
@pytest.mark.parametrize(
    ("q", "noise", "steps"), [(0.5, 0.1, 50), (1e-4, 0.3, 10), (0.01, 50.0, 10), (0.9, 30.0, 5)]
)
def test_extreme_plans_are_finite(accountant: Accountant, q: float, noise: float, steps: int, release: Maker):
    spent = accountant.epsilon([release(q=q, noise=noise, steps=steps)], 1e-5)
    assert math.isfinite(spent)
    assert spent >= 0.0


@accountants
def test_replacing_one_unit_costs_more_than_adding_it_and_less_than_twice_the_distance(
    accountant: Accountant,
):
    # Twice the distance is half the noise, with sampling that does not help more: q = 1 is the edge.
    one, other = Maker("add_remove"), Maker("replace_one")
    for q in (0.02, 0.3, 1.0):
        added = accountant.epsilon([one(q, 2.0)], 1e-5)
        replaced = accountant.epsilon([other(q, 2.0)], 1e-5)
        unsampled = accountant.epsilon([one(1.0, 1.0)], 1e-5)
        assert added < replaced <= unsampled * (1 + 1e-9)  # at q = 1 they are equal but for how FFTs round
        assert (replaced == unsampled) is (q == 1.0) or accountant.name == "pld"


@accountants
@pytest.mark.parametrize("sampler", ["shuffled", "unamplified"])
def test_what_is_not_poisson_is_charged_as_releases_of_everybody(
    accountant: Accountant, sampler: str, release: Maker
):
    steps = {"shuffled": 5, "unamplified": 100}[sampler]  # 100 steps of q = 0.05 are 5 epochs
    asked = dataclasses.replace(release(noise=3.0), sampler=sampler)
    charged = accountant.epsilon([asked], 1e-5)
    assert charged == accountant.epsilon([release(q=1.0, noise=3.0, steps=steps)], 1e-5)
    assert charged > accountant.epsilon([release(noise=3.0)], 1e-5)


@accountants
def test_two_relations_have_no_epsilon_together(accountant: Accountant):
    with pytest.raises(PlanError, match="mixes add_remove and replace_one"):
        accountant.epsilon([Maker("add_remove")(), Maker("replace_one")()], 1e-5)


@accountants
def test_the_reference_rejects_a_relation_that_was_forgotten(accountant: Accountant):
    # Charging replace one as add/remove falls below the exact figure, so the bound above would fail.
    exact = gaussian_epsilon(2.0 / 2, 1e-6)
    assert accountant.epsilon([Maker("add_remove")(q=1.0, noise=2.0, steps=1)], 1e-6) < exact - 0.5
