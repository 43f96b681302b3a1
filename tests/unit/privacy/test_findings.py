"""What an audit concludes from scores: which claims fall, which stand, and what it says of both."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from privacy import bounds
from privacy.accounting import PldAccountant, RdpAccountant, Release
from privacy.bounds import BoolArray, FloatArray
from privacy.findings import CANNOT_SEE, SEES_MODEL, SEES_STEPS, AuditResult, judge, profile_of

DELTA = 1e-5
CLAIM = Release(sampling_probability=1.0, noise_multiplier=2.0, steps=4)
"""One Gaussian of mu = sqrt(4) / 2 = 1: epsilon 4.38 at delta 1e-5."""


def scores_of(mu: float, count: int, seed: int = 0) -> tuple[FloatArray, BoolArray]:
    """Return the best scores [1, m] of canaries in Gaussian noise of mu, and their coins."""
    rng = np.random.default_rng(seed)
    included = rng.random(count) < 0.5
    return (mu * (mu * (included - 0.5) + rng.standard_normal(count)))[None], included


def judged(scores: FloatArray, included: BoolArray, **changes: object) -> AuditResult:
    given: dict[str, object] = {
        "claimed": (CLAIM,),
        "delta": DELTA,
        "steps": 4,
        "confidence": 0.95,
        "sees_steps": True,
        "started": time.monotonic(),
    }
    return judge(scores, included, **(given | changes))  # type: ignore[arg-type]


def test_a_true_claim_stands_and_the_bounds_lie_below_it():
    found = judged(*scores_of(1.0, 2000))
    assert not found.violated
    assert found.epsilon_pld == pytest.approx(PldAccountant().epsilon([CLAIM], DELTA))
    assert found.epsilon_rdp == pytest.approx(RdpAccountant().epsilon([CLAIM], DELTA))
    assert found.claimed_epsilon == found.epsilon_pld
    assert 0.3 * found.epsilon_pld < found.lower_bound_fdp < found.epsilon_pld
    assert 0.5 < found.lower_bound <= found.epsilon_pld
    assert found.lower_bound < found.lower_bound_gaussian < found.epsilon_pld
    assert 0 < found.clopper_pearson < found.gaussian_estimate < found.epsilon_pld + 1
    assert 0.7 < found.auc < 0.82  # Phi(mu / sqrt 2) = 0.76
    assert (found.num_canaries, found.steps, found.confidence) == (2000, 4, 0.95)
    assert abs(found.num_included - 1000) < 100
    assert found.sees == SEES_STEPS


def test_a_claim_of_too_much_noise_falls():
    found = judged(*scores_of(3.0, 2000))
    assert found.violated
    assert found.lower_bound_fdp > found.epsilon_pld
    assert found.auc > 0.95


def test_either_test_alone_refutes(monkeypatch: pytest.MonkeyPatch):
    by_curve = judged(*scores_of(2.0, 2000))
    assert by_curve.violated
    assert by_curve.lower_bound < by_curve.epsilon_pld
    monkeypatch.setattr(bounds, "fdp_rejects", lambda *_, **__: False)
    by_count = judged(*scores_of(9.0, 2000))
    assert by_count.violated
    assert by_count.lower_bound > by_count.epsilon_pld
    assert by_count.lower_bound_fdp == 0.0
    assert not judged(*scores_of(2.0, 2000)).violated


def test_the_two_that_decide_share_the_failure_and_their_candidates_share_it_again(
    monkeypatch: pytest.MonkeyPatch,
):
    asked: dict[str, list[float]] = {"one_run_bound": [], "fdp_rejects": []}

    def recorded(name: str) -> Callable[..., Any]:
        right = getattr(bounds, name)

        def call(*arguments: Any, failure: float, **more: Any) -> Any:
            asked[name].append(failure)
            return right(*arguments, failure=failure, **more)

        return call

    for name in asked:
        monkeypatch.setattr(bounds, name, recorded(name))
    monkeypatch.setattr(bounds, "fdp_bound", lambda *_, **__: 0.0)  # of the family, which decides nothing
    judged(scores_of(1.0, 200)[0].repeat(2, axis=0), scores_of(1.0, 200)[1], confidence=0.88)
    # 0.12 for two tests, each of 2 scores x 3 shares
    assert [round(each, 12) for each in asked["one_run_bound"]] == [0.01] * 6
    assert {round(each, 12) for each in asked["fdp_rejects"]} == {0.01}


def test_scores_that_say_nothing_bound_nothing():
    rng = np.random.default_rng(0)
    included = rng.random(500) < 0.5
    for scores in (rng.standard_normal((1, 500)), np.zeros((1, 500)), np.full((1, 500), np.nan)):
        found = judged(scores, included)
        assert not found.violated
        assert (found.lower_bound, found.lower_bound_fdp, found.lower_bound_gaussian) == (0.0, 0.0, 0.0)
        assert abs(found.auc - 0.5) < 0.06


def test_the_area_under_the_curve_counts_ties_half():
    scores = np.array([[2.0, 1.0, 1.0, 0.0]])
    assert judged(scores, np.array([True, True, False, False])).auc == 0.875
    assert judged(scores, np.array([True] * 4)).auc == 0.5


def test_further_scores_cost_a_part_of_the_confidence_and_may_find_more():
    blunt, included = np.zeros((1, 1000)), scores_of(3.0, 1000)[1]
    sharp = scores_of(3.0, 1000)[0]
    alone, both = judged(sharp, included), judged(np.concatenate([blunt, sharp]), included)
    assert both.violated
    assert 0 < both.lower_bound < alone.lower_bound
    assert both.auc == 0.5  # of the first score


def test_the_more_confident_the_weaker():
    scores, included = scores_of(1.0, 1000)
    careful, bold = (judged(scores, included, confidence=level) for level in (0.999, 0.8))
    assert careful.lower_bound < bold.lower_bound
    assert careful.lower_bound_fdp < bold.lower_bound_fdp


def test_one_model_gives_no_rates():
    found = judged(*scores_of(1.0, 500), sees_steps=False)
    assert found.clopper_pearson is None
    assert found.gaussian_estimate is None
    assert found.sees == SEES_MODEL


def test_a_claim_far_from_the_truth_is_told_from_it():
    """However careless: sigma a hundred times too large, and privacy that is much better than claimed."""
    careless = judged(*scores_of(1.0, 1000), claimed=(dataclasses.replace(CLAIM, noise_multiplier=200.0),))
    assert careless.violated
    assert careless.lower_bound_fdp > 1.0
    modest = judged(*scores_of(0.3, 1000), claimed=(dataclasses.replace(CLAIM, noise_multiplier=0.2),))
    assert not modest.violated
    assert modest.lower_bound_fdp < 1.5


def test_a_profile_is_made_of_upper_bounds_of_the_accountant():
    profile = profile_of([CLAIM])
    assert len(profile.epsilons) == len(profile.deltas) == 10
    exact = PldAccountant()
    for epsilon, delta in zip(profile.epsilons, profile.deltas, strict=True):
        assert exact.epsilon([CLAIM], delta) <= epsilon + 1e-9


def test_a_curve_reaches_below_the_failure_of_its_test():
    usual = profile_of([CLAIM])
    assert profile_of([CLAIM], failure=10 * usual.deltas[0]) == usual
    finer = profile_of([CLAIM], failure=1e-6)
    assert finer.deltas[0] <= 1e-7 < 3 * finer.deltas[0]
    assert finer.deltas[-10:] == usual.deltas
    assert all(below < above for below, above in itertools.pairwise(finer.deltas))


@pytest.mark.parametrize("confidence", [0.95, 0.99, 0.999, 0.9999])
def test_coins_that_are_all_guessed_refute_with_any_usual_confidence(confidence: float):
    scores, included = scores_of(1.0, 1000)
    certain = np.where(included, 9.0, -9.0)[None]
    small = (dataclasses.replace(CLAIM, steps=1),)
    assert judged(certain, included, claimed=small, confidence=confidence).violated
    assert not judged(scores, included, confidence=confidence).violated


@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_the_bound_without_assumption_is_zero_where_delta_is_large(confidence: float):
    included = np.arange(1000) % 2 == 0
    certain = np.where(included, 9.0, -9.0)[None]
    failure = 1 - confidence
    assert judged(certain, included, confidence=confidence, delta=failure / 40).lower_bound == 0.0
    assert judged(certain, included, confidence=confidence, delta=failure / 80).lower_bound > 0.5


def test_it_is_json_with_what_it_assumes_and_cannot_see():
    found = judged(*scores_of(1.0, 200))
    document = json.loads(json.dumps(found.to_dict()))
    assert document["claimed"] == [CLAIM.to_dict()]
    assert document["claimed_epsilon"] == found.epsilon_pld
    assert document["violated"] is False
    assert document["cannot_see"] == list(CANNOT_SEE)
    assert any(text.startswith("lower_bound:") for text in document["assumes"])


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, float("nan")])
def test_a_confidence_outside_its_range_is_refused(confidence: float):
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        judged(*scores_of(1.0, 10), confidence=confidence)


@pytest.mark.parametrize("claimed", [(), (dataclasses.replace(CLAIM, steps=0),)])
def test_no_claim_cannot_be_tested(claimed: tuple[Release, ...]):
    with pytest.raises(ValueError, match="a claim of at least one step"):
        judged(*scores_of(1.0, 10), claimed=claimed)
