"""A policy decides for a site: tightened, or refused with a code."""

import dataclasses

import pytest

from client.decide import decide_by
from privacy.errors import RefusalCode, RefusedError
from privacy.unsafe import NoPrivacy, UnsafeWarning
from tests.support.site_ledgers import POLICY
from tests.unit.client.test_site import PLAN, SPEC


def _request(**changes):
    from client.contract import LearningPlan, TrainRequest

    fields = {
        "run_id": "run", "round": 1, "base_hash": "0" * 64, "model": SPEC, "sharing": "all", "plan": PLAN,
        "learning": LearningPlan(learning_rate=0.1), "num_sites": 2,
    }  # fmt: skip
    return TrainRequest(**{**fields, **changes})


def test_a_request_within_the_policy_is_followed_as_it_is():
    assert decide_by(POLICY)(_request()) == PLAN


def test_what_is_too_loose_is_tightened():
    policy = dataclasses.replace(POLICY, min_noise_multiplier=2.0, max_steps_per_round=1)
    assert decide_by(policy)(_request()) == dataclasses.replace(PLAN, noise_multiplier=2.0, steps=1)


@pytest.mark.parametrize(
    ("policy", "request_", "code"),
    [
        ({"models": frozenset({"0" * 64})}, {}, RefusalCode.POLICY_MODEL),
        ({"min_sites": 3}, {}, RefusalCode.POLICY_SITES),
    ],
)
def test_what_cannot_be_tightened_is_refused(policy, request_, code):
    with pytest.raises(RefusedError) as refused:
        decide_by(dataclasses.replace(POLICY, **policy))(_request(**request_))
    assert refused.value.code is code


def test_training_without_privacy_is_refused():
    with pytest.warns(UnsafeWarning):
        plain = NoPrivacy(steps=1, batch_patients=2)
    with pytest.raises(RefusedError) as refused:
        decide_by(POLICY)(_request(plan=plain))
    assert refused.value.code is RefusalCode.POLICY_NO_PRIVACY


def test_all_objections_are_told_at_the_site():
    policy = dataclasses.replace(POLICY, models=frozenset({"0" * 64}), min_sites=3)
    with pytest.raises(RefusedError, match=r"not among the 1 of models.*min_sites is 3"):
        decide_by(policy)(_request())
