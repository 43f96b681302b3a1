"""Epsilons against figures from two other programs: RDP by Opacus and by dp-accounting, PLD by dp-accounting.

The table was computed with Opacus 1.6.0 and dp-accounting 0.6.0 directly (interval 1e-4), not with this package.
"""

from __future__ import annotations

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
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant as TheirRdp

    theirs = PLDAccountant(), TheirRdp()
    for job in jobs:
        step = PoissonSampledDpEvent(job.sampling_probability, GaussianDpEvent(job.noise_multiplier))
        for accountant in theirs:
            accountant.compose(SelfComposedDpEvent(step, job.steps))
    assert pair.pld == pytest.approx(theirs[0].get_epsilon(1e-5), abs=1e-3)
    assert pair.rdp == pytest.approx(theirs[1].get_epsilon(1e-5), abs=2e-2)


def test_the_coarse_grid_is_pessimistic_and_close():
    fine = PldAccountant().epsilon([ISSUE], 1e-5)
    coarse = PldAccountant(interval=CURVE_INTERVAL).epsilon([ISSUE], 1e-5)
    assert fine <= coarse <= fine + 2e-3


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
