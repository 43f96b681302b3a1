"""Rates of membership attacks: by hand, against known intervals, and as often right as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from privacy.membership import Memorisation, auc_interval, calibrate, judge_membership, judge_memorisation


def test_calibration_takes_away_what_models_without_the_patient_make_of_them():
    nan = math.nan
    reference = np.array([[1.0, 2.0, nan], [3.0, nan, 5.0]])
    assert calibrate(np.array([10.0, 10.0, 10.0]), reference).tolist() == [8.0, 8.0, 5.0]


def test_a_patient_without_a_reference_is_refused():
    with pytest.raises(ValueError, match="every patient needs a model"):
        calibrate(np.zeros(2), np.array([[1.0, math.nan]]))
    for shape in ((2,), (1, 3)):
        with pytest.raises(ValueError, match=r"must be \[R, 2\]"):
            calibrate(np.zeros(2), np.zeros(shape))


def test_the_area_is_the_share_of_pairs_that_are_in_order_ties_half():
    found = judge_membership(np.array([3.0, 1.0]), np.array([2.0, 1.0, 0.0]))
    # 3 beats all three; 1 beats one, ties one: 4.5 of 6.
    assert found.auc.value == 0.75
    assert (found.num_members, found.num_non_members, found.fpr, found.level) == (2, 3, 0.01, 0.95)
    assert not found.is_resolved


def test_the_rate_is_that_of_the_lowest_threshold_that_is_allowed():
    others = np.arange(200.0)  # at 1 %, two of them may lie above: the threshold is 197
    members = np.array([197.0, 197.5, 198.0, 500.0, 3.0])
    found = judge_membership(members, others, fpr=0.01)
    assert found.true_positive_rate.value == 0.6
    assert found.is_resolved
    assert judge_membership(members, np.arange(99.0), fpr=0.01).is_resolved is False
    assert judge_membership(members, np.arange(100.0), fpr=0.01).is_resolved is True


def test_ties_with_the_threshold_are_no_detections():
    found = judge_membership(np.array([1.0, 1.0, 2.0]), np.ones(100))
    assert found.true_positive_rate.value == pytest.approx(1 / 3)


def test_the_interval_of_a_rate_is_the_exact_one():
    found = judge_membership(np.array([9.0] * 3 + [0.0] * 7), np.arange(8.0)).true_positive_rate
    assert found.low == pytest.approx(stats.beta.ppf(0.025, 3, 8))
    assert found.high == pytest.approx(stats.beta.ppf(0.975, 4, 7))
    nobody = judge_membership(np.zeros(5), np.arange(8.0)).true_positive_rate
    assert (nobody.value, nobody.low) == (0.0, 0.0)
    assert nobody.high == pytest.approx(1 - 0.025 ** (1 / 5))


@pytest.mark.parametrize("area", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_the_interval_of_an_area_solves_newcombes_equation_at_both_ends(area: float):
    share = auc_interval(area, 40, 60)
    assert 0.0 <= share.low <= area <= share.high <= 1.0
    z = 1.959964
    for end in (share.low, share.high):
        if end in (0.0, 1.0):
            continue
        spread = 1 + 49 * (1 - end) / (2 - end) + 49 * end / (1 + end)
        assert abs(area - end) == pytest.approx(z * math.sqrt(end * (1 - end) * spread / 2400), rel=1e-4)
    mirrored = auc_interval(1 - area, 40, 60)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - share.high, 1 - share.low))


def test_an_area_of_one_leaves_room_and_fewer_patients_leave_more():
    assert 0.8 < auc_interval(1.0, 20, 20).low < auc_interval(1.0, 200, 200).low < 1.0
    wide, narrow = auc_interval(0.6, 20, 20, level=0.99), auc_interval(0.6, 20, 20, level=0.8)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_interval_covers_the_true_area_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth = float(stats.norm.cdf(1.0 / math.sqrt(2)))
    hits = 0
    for _ in range(1000):
        share = judge_membership(rng.normal(1.0, 1.0, 30), rng.normal(0.0, 1.0, 40)).auc
        hits += share.low <= truth <= share.high
    assert 0.93 <= hits / 1000 <= 0.98


@pytest.mark.parametrize(
    ("members", "others", "match"),
    [
        ([], [1.0], "members and non-members"),
        ([1.0], [], "members and non-members"),
        ([math.nan], [1.0], "finite"),
        ([1.0], [math.inf], "finite"),
    ],
)
def test_scores_that_cannot_be_judged_are_refused(members: list[float], others: list[float], match: str):
    with pytest.raises(ValueError, match=match):
        judge_membership(np.array(members), np.array(others))


@pytest.mark.parametrize("wrong", [{"fpr": 0.0}, {"fpr": 1.0}, {"level": 0.0}, {"level": 1.0}])
def test_rates_outside_their_range_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        judge_membership(np.array([1.0]), np.array([0.0]), **wrong)


# --- copies -----------------------------------------------------------------------------------------------


def memorised(train: list[float], held_out: list[float], **changes: object) -> Memorisation:
    count = len(train)
    given: dict[str, object] = {
        "train_patient": np.arange(count) % 10,
        "held_out_patient": np.arange(count) % 10,
        "num_train": 10,
        "num_held_out": 10,
        "seed": 0,
    }
    return judge_memorisation(np.array(train), np.array(held_out), **(given | changes))  # type: ignore[arg-type]


def test_the_share_counts_samples_nearer_to_training_patients_ties_half():
    found = memorised([1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 3.0, 5.0])
    assert found.share == 0.625
    assert (found.median_train, found.median_held_out, found.num_samples) == (2.5, 2.5, 4)
    assert found.expected == 0.5
    assert memorised([1.0], [2.0], num_train=10, num_held_out=30, level=0.9).expected == 0.25


def test_copies_are_suspicious():
    found = memorised([0.0] * 100, [1.0] * 100)
    assert found.share == 1.0
    assert found.is_suspicious
    assert found.p_value < 0.01


def test_one_patient_whom_all_samples_resemble_is_no_proof():
    """All hits on one training patient: under exchange of patients that happens half of the time."""
    found = memorised([0.0] * 100, [1.0] * 100, train_patient=np.zeros(100, np.int64))
    assert found.share == 1.0
    assert not found.is_suspicious
    assert 0.4 < found.p_value < 0.6


def test_equal_nearness_is_not_suspicious_and_the_range_lies_around_what_is_expected():
    rng = np.random.default_rng(1)
    found = memorised(rng.random(400).tolist(), rng.random(400).tolist())
    assert not found.is_suspicious
    assert found.low < found.expected < found.high
    assert found.p_value > 0.01


def test_a_p_value_is_never_zero_and_permutations_repeat():
    found = memorised([0.0] * 100, [1.0] * 100, num_permutations=50)
    assert found.p_value >= 1 / 51
    assert memorised([0.0] * 9, [1.0] * 9, seed=4) == memorised([0.0] * 9, [1.0] * 9, seed=4)


@pytest.mark.parametrize(("train", "held_out"), [([], []), ([1.0], [1.0, 2.0])])
def test_distances_that_do_not_belong_together_are_refused(train: list[float], held_out: list[float]):
    with pytest.raises(ValueError, match="memorisation needs samples"):
        memorised(train, held_out)
