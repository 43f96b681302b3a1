"""Epsilons against figures from two other programs: RDP by Opacus and by dp-accounting, PLD by dp-accounting.

The tables were computed with Opacus 1.6.0 and dp-accounting 0.6.0 directly (interval 1e-4), not with this package.
Where a test calls them, it is on events of their own, so that what this package makes of a release is tested too.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import pytest

from privacy.accounting import CURVE_INTERVAL, PldAccountant, RdpAccountant, Release, epsilons
from privacy.claim import Claim

ISSUE = Release(sampling_probability=0.04, noise_multiplier=1.5, steps=2250)

TABLE = [
    # n, batch, sigma, steps, delta, RDP, PLD with q = batch / n
    (500, 16, 1.0, 1000, 1e-5, 7.24, 6.59),
    (500, 32, 1.0, 2000, 1e-5, 24.07, 22.37),
    (500, 32, 2.0, 2000, 1e-5, 7.90, 7.32),
    (1000, 16, 0.6, 1000, 1e-5, 12.91, 11.35),
    (1000, 32, 1.0, 5000, 1e-5, 17.94, 16.66),
    (2000, 64, 1.5, 20000, 1e-6, 22.56, 21.29),
    (5000, 16, 0.6, 5000, 1e-6, 7.00, 6.03),
    (5000, 64, 2.0, 20000, 1e-6, 5.06, 4.73),
]


def test_the_figures_of_the_issue():
    pair = epsilons([ISSUE], 1e-5)
    assert pair.rdp == pytest.approx(7.329, abs=5e-4)
    assert pair.pld == pytest.approx(6.769, abs=5e-4)


def test_rounds_of_the_issue_add_up_to_it():
    rounds = [Release(sampling_probability=0.04, noise_multiplier=1.5, steps=45)] * 50
    assert epsilons(rounds, 1e-5) == epsilons([ISSUE], 1e-5)


@pytest.mark.parametrize("row", TABLE)
def test_the_table(row: tuple[int, int, float, int, float, float, float]):
    n, batch, noise, steps, delta, rdp, pld = row
    pair = epsilons([Release(sampling_probability=batch / n, noise_multiplier=noise, steps=steps)], delta)
    assert pair.rdp == pytest.approx(rdp, abs=6e-3)
    assert pair.pld == pytest.approx(pld, abs=6e-3)
    assert pair.pld < pair.rdp


def test_three_jobs_of_different_parameters():
    # Against dp-accounting's own accountants of events: its PLD composition, and its RDP, independent of Opacus.
    jobs = [
        Release(sampling_probability=0.032, noise_multiplier=1.0, steps=300),
        Release(sampling_probability=0.05, noise_multiplier=2.0, steps=400),
        Release(sampling_probability=0.01, noise_multiplier=0.8, steps=1000),
    ]
    pair = epsilons(jobs, 1e-5)

    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.rdp import RdpAccountant as TheirRdp

    theirs = TheirRdp()
    for job in jobs:
        step = PoissonSampledDpEvent(job.sampling_probability, GaussianDpEvent(job.noise_multiplier))
        theirs.compose(SelfComposedDpEvent(step, job.steps))
    assert pair.pld == pytest.approx(their_pld(jobs), abs=1e-3)
    assert pair.rdp == pytest.approx(theirs.get_epsilon(1e-5), abs=2e-2)


def test_the_coarse_grid_is_pessimistic_and_close():
    fine = PldAccountant().epsilon([ISSUE], 1e-5)
    coarse = PldAccountant(interval=CURVE_INTERVAL).epsilon([ISSUE], 1e-5)
    assert fine <= coarse <= fine + 2e-3


REPLACED = [
    # q, sigma, steps, PLD for replace one at delta 1e-5 (PRIVACY.md 3.4 for the first)
    (0.032, 1.0, 1000, 10.85),
    (0.04, 1.5, 2250, 13.49),
    (0.016, 0.6, 1000, 13.96),
    (0.3, 5.0, 500, 14.37),
    (1.0, 2.0, 50, 54.38),
]


@pytest.mark.parametrize(("q", "noise", "steps", "pld"), REPLACED)
def test_replacing_one_unit(q: float, noise: float, steps: int, pld: float):
    job = Release(sampling_probability=q, noise_multiplier=noise, steps=steps, neighbouring="replace_one")
    pair = epsilons([job], 1e-5)
    added = epsilons([dataclasses.replace(job, neighbouring="add_remove")], 1e-5)
    assert pair.pld == pytest.approx(pld, abs=6e-3)
    assert pair.pld == pytest.approx(their_pld([job]), abs=1e-3)
    assert pair.rdp == pytest.approx(their_replaced_rdp(job), rel=1e-9)
    assert added.pld + 1 < pair.pld < pair.rdp  # so a relation that is forgotten fails every line above


def test_jobs_of_different_parameters_compose_under_replace_one_too():
    jobs = [
        Release(sampling_probability=0.032, noise_multiplier=1.0, steps=300, neighbouring="replace_one"),
        Release(sampling_probability=0.05, noise_multiplier=2.0, steps=400, neighbouring="replace_one"),
        Release(sampling_probability=0.01, noise_multiplier=0.8, steps=1000, neighbouring="replace_one"),
    ]
    spent = epsilons(jobs, 1e-5).pld
    assert spent == pytest.approx(their_pld(jobs), abs=1e-3)
    assert spent < sum(epsilons([job], 1e-5).pld for job in jobs)


SHUFFLED = [
    # sigma, batches of an epoch, epochs, delta, Poisson PLD, lower bound of shuffling, without amplification: 3.3
    (0.6, 16, 1, 1e-5, 7.22, 8.00, 8.00),
    (0.6, 62, 1, 1e-5, 4.52, 8.00, 8.00),
    (0.8, 31, 1, 1e-5, 2.76, 5.66, 5.68),
    (1.0, 31, 1, 1e-5, 1.54, 4.27, 4.38),
    (0.6, 62, 20, 1e-5, 12.63, 54.6, 58.8),
    (1.0, 31, 30, 1e-5, 6.40, 22.6, 37.6),
    (1.0, 78, 50, 1e-6, 5.48, 25.0, 57.9),
    (2.0, 16, 60, 1e-5, 4.67, 6.88, 23.4),
]


@pytest.mark.parametrize("row", SHUFFLED)
def test_a_shuffled_loader_is_charged_at_least_what_it_is_known_to_cost(
    row: tuple[float, int, int, float, float, float, float],
):
    noise, batches, epochs, delta, poisson, least, honest = row
    job = Release(
        sampling_probability=1 / batches, noise_multiplier=noise, steps=batches * epochs, sampler="shuffled"
    )
    charged = epsilons([job], delta, interval=CURVE_INTERVAL)
    half_a_digit = 0.05 if least > 10 else 0.005
    assert charged.pld >= least - half_a_digit
    assert charged.pld == pytest.approx(honest, abs=0.06)
    assert charged.rdp >= charged.pld
    # Accounted as Poisson, the same loader is below the lower bound: the test would see it.
    wrong = epsilons([dataclasses.replace(job, sampler="poisson")], delta, interval=CURVE_INTERVAL)
    assert wrong.pld == pytest.approx(poisson, abs=0.02)
    assert wrong.pld < least - half_a_digit


def test_a_shuffled_loader_against_the_gaussian_mechanism_of_dp_accounting():
    from dp_accounting import get_epsilon_gaussian

    job = Release(
        sampling_probability=0.04, noise_multiplier=3.0, steps=45, sampler="shuffled"
    )  # 1.8 epochs: 2
    spent = epsilons([job], 1e-5).pld
    assert spent == pytest.approx(get_epsilon_gaussian(3.0 / math.sqrt(2), 1e-5), abs=1e-3)
    assert abs(spent - get_epsilon_gaussian(3.0, 1e-5)) > 0.1  # an epoch begun and not charged


def their_pld(jobs: list[Release]) -> float:
    """Return PLD of Poisson jobs by dp-accounting's own accountant of events."""
    from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    relation = {
        "add_remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace_one": NeighboringRelation.REPLACE_ONE,
    }[jobs[0].neighbouring]
    accountant = PLDAccountant(relation)
    for job in jobs:
        step = PoissonSampledDpEvent(job.sampling_probability, GaussianDpEvent(job.noise_multiplier))
        accountant.compose(SelfComposedDpEvent(step, job.steps))
    return float(accountant.get_epsilon(1e-5))


def their_replaced_rdp(job: Release) -> float:
    """Return RDP of a replace-one job from Opacus' curve of add/remove, at every order that they offer."""
    from opacus.accountants import RDPAccountant as Opacus
    from opacus.accountants.analysis import rdp

    def curve(orders: list[float], noise: float, q: float) -> npt.NDArray[np.float64]:
        return np.asarray(rdp.compute_rdp(q=q, noise_multiplier=noise, steps=job.steps, orders=orders))

    orders = np.array([*Opacus.DEFAULT_ALPHAS])
    q, noise = job.sampling_probability, job.noise_multiplier
    there, back = curve(list(2 * orders), noise, q), curve(list(2 * orders - 1), noise, q)
    bound = np.minimum((orders - 0.5) / (orders - 1) * there + back, curve(list(orders), noise / 2, 1.0))
    return float(rdp.get_privacy_spent(orders=list(orders), rdp=list(bound), delta=1e-5)[0])


def test_the_golden_figures_reject_a_wrong_plan():
    wrong = Release(sampling_probability=0.04, noise_multiplier=1.49, steps=2250)
    assert abs(RdpAccountant().epsilon([wrong], 1e-5) - 7.329) > 0.05
    assert abs(PldAccountant().epsilon([wrong], 1e-5) - 6.769) > 0.05


def test_an_old_claim_still_loads_and_still_means_the_same():
    written = (
        '{"delta":1e-05,"kind":"dp","releases":[{"neighbouring":"add_remove","noise_multiplier":1.5,'
        '"sampler":"poisson","sampling_probability":0.04,"steps":2250}],"site":"site-1","unit":"patient"}'
    )
    claim = Claim.from_json(written)
    assert claim.to_json() == written
    assert claim.epsilons().pld == pytest.approx(6.769, abs=5e-4)
