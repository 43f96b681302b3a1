"""Release of mean and spread: what one patient can move, what it costs, and that nothing else is released."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting import CURVE_INTERVAL, epsilons
from privacy.errors import PlanError
from privacy.linear import LinearPlan, calibrate_linear, release_mean, release_spread, split_noise
from privacy.noise import SeededRandomness
from vae.data.cohort import Cohort

PLAN = LinearPlan(
    mean_noise_multiplier=1e-9,
    spread_noise_multiplier=1e-9,
    mean_norm=1.5,
    spread_norm=0.7,
    num_patients=4.0,
    max_records_per_patient=40,
    randomness="seeded",
)
CENTRE = np.array([0.1, -0.2, 0.3])


def _cohort(patients):
    """Return a cohort of lists of records."""
    return Cohort.from_records(
        name="x",
        patients=[f"{index:03d}" for index, records in enumerate(patients) for _ in records],
        values=np.array([record for records in patients for record in records], np.float32),
    )


def _released(patients, plan=PLAN, basis=None):
    options = {"plan": plan, "centre": CENTRE, "basis": basis}
    mean = release_mean(_cohort(patients), randomness=SeededRandomness(0, "a"), **options)
    return mean, release_spread(_cohort(patients), randomness=SeededRandomness(0, "a"), **options)


VALUE = st.one_of(st.floats(-1e6, 1e6, width=32), st.sampled_from([0.0, math.nan, math.inf, -math.inf, 3e38]))
RECORDS = st.lists(st.lists(VALUE, min_size=3, max_size=3), min_size=1, max_size=40)
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 2)))[0].T


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(st.lists(RECORDS, min_size=1, max_size=3), RECORDS, st.booleans())
def test_one_patient_moves_each_sum_by_no_more_than_its_bound(others, patient, reduced):
    """Whatever the number and values of the records: the patient comes last, so all others draw the same numbers."""
    basis = BASIS if reduced else None
    without, with_ = _released(others, basis=basis), _released([*others, patient], basis=basis)
    moved = [np.linalg.norm(b - a) * PLAN.num_patients for a, b in zip(without, with_, strict=True)]
    assert moved[0] <= PLAN.mean_norm * (1 + 1e-6)
    assert moved[1] <= PLAN.spread_norm**2 * (1 + 1e-6)


def test_the_bounds_are_reached_so_the_test_could_tell_a_looser_clip():
    far = [[100.0, 0.0, 0.0]]
    (mean, spread), (mean_far, spread_far) = (
        _released([[CENTRE.tolist()]]),
        _released([[CENTRE.tolist()], far]),
    )
    assert np.linalg.norm(mean_far - mean) * 4 == pytest.approx(1.5, rel=1e-4)
    assert np.linalg.norm(spread_far - spread) * 4 == pytest.approx(0.49, rel=1e-4)


def test_records_of_a_patient_are_averaged_and_duplicates_change_nothing():
    one, two = [[0.2, 0.0, 0.1]], [[0.4, -0.3, 0.3], [0.0, -0.1, 0.5]]
    np.testing.assert_allclose(_released([one, two])[0], _released([one, two * 7])[0], atol=1e-6)
    np.testing.assert_allclose(
        _released([one, two])[1],
        (
            np.outer(one[0] - CENTRE, one[0] - CENTRE)
            + sum(np.outer(np.array(r) - CENTRE, np.array(r) - CENTRE) for r in two) / 2
        )
        / 4,
        atol=1e-6,
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_patient_with_a_value_that_is_not_finite_counts_for_nothing():
    good = [[0.2, 0.0, 0.1]]
    for value in (math.nan, math.inf):
        broken = [[0.2, 0.0, 0.1], [value, 0.0, 0.0]]
        for found, expected in zip(_released([good, broken]), _released([good]), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_the_divisor_is_the_public_constant_whatever_the_number_of_patients():
    patient = [[0.4, -0.2, 0.3]]
    apart = [_released([patient] * count)[0][0] - CENTRE[0] for count in (1, 3)]
    assert apart == pytest.approx([0.3 / 4, 0.9 / 4], rel=1e-4)


def test_mean_and_spread_cost_together_what_one_release_does():
    delta, noise = 1e-5, 2.0
    plan = dataclasses.replace(
        PLAN,
        **dict(
            zip(
                ("mean_noise_multiplier", "spread_noise_multiplier"),
                split_noise(noise, mean_share=0.3),
                strict=True,
            )
        ),
    )
    both = epsilons(plan.releases(), delta, interval=CURVE_INTERVAL)
    one = epsilons(
        [dataclasses.replace(plan.releases()[0], noise_multiplier=noise)], delta, interval=CURVE_INTERVAL
    )
    assert both.rdp == pytest.approx(one.rdp, rel=1e-3)
    assert both.pld == pytest.approx(one.pld, rel=1e-2)


def test_calibrated_noise_spends_the_target_and_hardly_less():
    mean, spread = calibrate_linear(epsilon=3.0, delta=1e-3, mean_share=0.5)
    plan = dataclasses.replace(PLAN, mean_noise_multiplier=mean, spread_noise_multiplier=spread)
    assert 2.9 < epsilons(plan.releases(), 1e-3).pld <= 3.0 * (1 + 2e-3)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, math.nan])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(PlanError, match="mean_share"):
        split_noise(1.0, mean_share=share)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"randomness": SeededRandomness(0, "a"), "plan": dataclasses.replace(PLAN, randomness="os")},
            "'os'",
        ),
        ({"centre": np.zeros((2, 2))}, "centre must be"),
        ({"centre": np.array([math.nan, 0, 0])}, "centre must be"),
        ({"basis": np.eye(4)[:2]}, r"basis must be \[k0, 3\]"),
        ({"basis": 2 * BASIS}, "orthonormal"),
    ],
)
def test_what_does_not_fit_is_refused(change, problem):
    options = {
        "plan": PLAN,
        "centre": CENTRE,
        "basis": None,
        "randomness": SeededRandomness(0, "a"),
        **change,
    }
    for release in (release_mean, release_spread):
        with pytest.raises(PlanError, match=problem):
            release(_cohort([[[0.0, 0.0, 0.0]]]), **options)


@pytest.mark.parametrize("field", ["mean_noise_multiplier", "mean_norm", "spread_norm", "num_patients"])
def test_a_constant_out_of_range_is_named(field):
    with pytest.raises(PlanError, match=field):
        dataclasses.replace(PLAN, **{field: 0.0})
