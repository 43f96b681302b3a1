"""How public patients play the sites: nobody twice, other hospitals where there are any, the sites' noise."""

from dataclasses import replace

import numpy as np
import pytest

from deploy.tune.standins import StandIn, deal, played
from privacy.plan import PrivacyPlan
from vae.errors import DataError

PLAN = PrivacyPlan(
    sampling_probability=0.25,
    steps=4,
    noise_multiplier=1.5,
    max_grad_norm=2.0,
    divisor=14.0,
    delta=1e-3,
    randomness="seeded",
)


def sites(count, patients):
    return {f"site-{index + 1}": float(patients) for index in range(count)}


def owners(dealt):
    """Return every (hospital, patient) of every part, as often as it is used."""
    parts = [*dealt.start.items(), *dealt.scored.items()]
    parts += [(one.host, one.patients) for one in dealt.standins.values()]
    return [(host, int(patient)) for host, patients in parts for patient in patients]


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ({"a": 200, "b": 200, "c": 200, "d": 200}, sites(4, 56)),
        ({"a": 60}, sites(3, 24)),
        ({"a": 40, "b": 90, "c": 30}, sites(5, 8)),
        ({"a": 9, "b": 9}, sites(2, 50)),
    ],
)
def test_every_public_patient_is_in_one_part(counts, wanted):
    dealt = deal(counts, wanted, seed=3)
    used = owners(dealt)
    everybody = [(name, patient) for name, count in counts.items() for patient in range(count)]
    assert sorted(used) == sorted(everybody)
    assert list(dealt.standins) == list(wanted)
    assert all(len(patients) for patients in (*dealt.start.values(), *dealt.scored.values()))


def test_stand_ins_are_of_other_hospitals_than_the_pre_training():
    dealt = deal({"a": 200, "b": 200, "c": 200, "d": 200}, sites(4, 56), seed=3)
    assert dealt.is_apart
    assert dealt.is_full
    assert {one.host for one in dealt.standins.values()} == set(dealt.scored)
    assert set(dealt.start) == {"c", "d"}
    assert [len(one.patients) for one in dealt.standins.values()] == [56] * 4
    # 2 hosts x 200: 50 to judge on, 2 stand-ins of 56 in the room of 75 each, 38 left over
    assert {len(patients) for patients in dealt.scored.values()} == {200 - 2 * 56}


def test_a_single_hospital_is_split_by_patient_and_says_so():
    dealt = deal({"a": 100}, sites(2, 50), seed=3)
    assert not dealt.is_apart
    assert not dealt.is_full  # 50 to pre-train on, 12 to judge on, 19 for each stand-in
    assert [len(one.patients) for one in dealt.standins.values()] == [19, 19]


def test_the_split_is_by_the_seed_alone():
    counts, wanted = {"b": 30, "a": 30}, sites(1, 8)
    one = deal(counts, wanted, seed=3)
    assert owners(one) == owners(deal(dict(reversed(counts.items())), wanted, seed=3))
    assert owners(one) != owners(deal(counts, wanted, seed=4))


def test_a_cohort_that_cannot_play_the_sites_is_refused():
    with pytest.raises(DataError, match=r"12 patients of 1 public hospitals are too few .* 4 sites"):
        deal({"a": 12}, sites(4, 10), seed=0)


@pytest.mark.parametrize("size", [56, 40, 14, 5])
def test_a_stand_in_has_the_noise_of_its_site_on_the_mean(size):
    made = played(PLAN, StandIn(host="a", patients=np.arange(size), asked=56.0))
    noise = made.noise_multiplier * made.max_grad_norm / made.divisor
    assert noise == pytest.approx(1.5 * 2.0 / 14.0)
    # as many patients a step as at the site: 0.25 x 56 = 14, or all there are
    assert made.sampling_probability * size == pytest.approx(min(14, size))
    assert made.divisor == pytest.approx(min(14, size))
    if size >= 14:
        assert made.noise_multiplier == pytest.approx(1.5)


def test_a_stand_in_takes_as_many_patients_of_a_part_as_its_site():
    banded = replace(PLAN, mechanism="banded", bands=2, divisor=7.0)
    made = played(banded, StandIn(host="a", patients=np.arange(40), asked=56.0))
    assert made.sampling_probability * 40 / 2 == pytest.approx(7.0)
    assert made.divisor == pytest.approx(7.0)
    assert made.noise_multiplier == pytest.approx(1.5)
