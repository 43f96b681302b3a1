"""Ageing follows published rates, measured on images of people, and another rate would be seen.

Barnes et al. 2009 (Neurobiology of Aging 30:1711): the hippocampus loses 1.41 % a year in healthy ageing and
4.66 % in Alzheimer's disease. Twenty people of each group are measured twice, two years apart; their own
rates are spread by 0.3 and 0.7 % a year, so that the mean of twenty has standard errors of 0.07 and 0.16 %.
Volumes are integrals of the deformed tissue map over the person's own space: neither the table nor the
trajectory that asked for them.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from tests.support.phantoms import person, template
from vae.data.phantom.anatomy import Body
from vae.data.phantom.spec import PhantomSpec

PEOPLE = 20
BARNES_HEALTHY, BARNES_ALZHEIMER = -1.41, -4.66
YEARS = 2.0


@cache
def rates(group: str) -> dict[str, np.ndarray]:
    """Percent a year of every volume, of twenty people of a group."""
    spec = PhantomSpec(patients_per_site=PEOPLE, diseased_patients_per_site=PEOPLE, visits=(1, 1), seed=3)
    first = 0 if group == "healthy" else PEOPLE + 20
    measured = []
    for index in range(first, first + PEOPLE):
        somebody = person(spec, index)
        assert (somebody.group == "diseased") == (group == "ill")
        twice = dataclasses.replace(somebody, ages=(somebody.ages[0], somebody.ages[0] + YEARS))
        before, after = Body(twice, template(spec)).volumes()
        measured.append({name: 100 * ((after[name] / before[name]) ** (1 / YEARS) - 1) for name in before})
    return {name: np.array([row[name] for row in measured]) for name in measured[0]}


@pytest.mark.parametrize(
    ("group", "published", "tolerance"), [("healthy", BARNES_HEALTHY, 0.2), ("ill", BARNES_ALZHEIMER, 0.5)]
)
def test_the_hippocampus_shrinks_at_the_published_rate(group, published, tolerance):
    rate = rates(group)["hippocampus_ml"]
    assert len(rate) >= 12
    assert rate.mean() == pytest.approx(published, abs=tolerance)
    assert ttest_1samp(rate, published).pvalue > 0.01
    # The test can fail: half the rate, half as much again, and the other group's rate are all rejected.
    for wrong in (
        0.5 * published,
        1.5 * published,
        BARNES_ALZHEIMER if group == "healthy" else BARNES_HEALTHY,
    ):
        assert ttest_1samp(rate, wrong).pvalue < 1e-4
        assert abs(rate.mean() - wrong) > tolerance


@pytest.mark.parametrize(("group", "designed", "tolerance"), [("healthy", 3.0, 0.6), ("ill", 9.0, 1.5)])
def test_the_ventricles_grow(group, designed, tolerance):
    rate = rates(group)["ventricle_ml"]
    assert np.all(rate > 0)
    assert rate.mean() == pytest.approx(designed, abs=tolerance)
    assert ttest_1samp(rate, -designed).pvalue < 1e-6


@pytest.mark.parametrize(("group", "designed", "tolerance"), [("healthy", -0.5, 0.1), ("ill", -2.0, 0.3)])
def test_the_cortex_thins(group, designed, tolerance):
    rate = rates(group)["cortex_ml"]
    assert rate.mean() == pytest.approx(designed, abs=tolerance)
    assert ttest_1samp(rate, 0.0).pvalue < 1e-6


def test_disease_is_faster_than_age_in_every_person():
    assert rates("ill")["hippocampus_ml"].max() < rates("healthy")["hippocampus_ml"].min()


def test_the_deep_grey_is_left_where_it_was():
    # A field that is not localised drags it along: the first prototype lost 23 % of the thalamus with the
    # hippocampus.
    for group in ("healthy", "ill"):
        assert abs(rates(group)["deep_grey_ml"].mean()) < 0.6
