"""A hospital's policy: everything wrong with one at once, and what a document of one is."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from multiprocessing.reduction import ForkingPickler

import pytest

from privacy.errors import PlanError
from privacy.policy import MAX_PATIENTS, Cap, Policy
from tests.support.policies import MODEL, OTHER, POLICY, make_policy

POSITIVE = "must be a finite number > 0"
BAD: list[tuple[str, list[object], str]] = [
    ("lifetime", [None, 8.0, {"epsilon": 8.0, "delta": 1e-5}], "must be a Cap"),
    ("per_run", [None, (4.0, 1e-6)], "must be a Cap"),
    ("min_noise_multiplier", [0, -1.0, math.nan, math.inf, "1", None, True], POSITIVE),
    ("max_sampling_probability", [0, 1.1, math.nan, "0.1", None], r"must be a number in \(0, 1\]"),
    ("max_steps_per_round", [0, 1.5, 10**7, True, None], "must be an integer from 1 to 1000000"),
    ("max_grad_norm", [0, math.inf, 10**400, None], POSITIVE),
    ("max_records_per_patient", [0, 2.0, None], "must be an integer >= 1"),
    ("unit", ["scan", "", None], "must be one of patient, record"),
    ("randomness", ["torch", None], "must be one of os, seeded"),
    ("min_patients", [0, 2.5, True, None], "must be an integer from 1 to 10000000000"),
    ("patients_bound", [0, 10**11, 10**400, None], "must be an integer from 1 to 10000000000"),
    ("models", [None, "all", [MODEL], {MODEL}, 3], "must be a set of hashes, or any; got"),
    ("metrics", [None, ["loss"], 3], "must be a mapping from name to least noise multiplier, got"),
    ("min_sites", [0, 1.0, None], "must be an integer >= 1"),
    ("max_runtime_s", [0, -1, math.inf, None], POSITIVE),
]
CASES = [(name, value, rule) for name, values, rule in BAD for value in values]


@pytest.mark.parametrize(
    ("name", "value", "rule"), CASES, ids=[f"{name}={value!r:.20}" for name, value, _ in CASES]
)
def test_a_bad_value_is_refused_by_name_and_rule(name, value, rule):
    with pytest.raises(PlanError, match=f"policy: {name} {rule}"):
        make_policy(**{name: value})


def test_every_field_has_a_bad_example_and_no_default():
    names = {field.name for field in dataclasses.fields(Policy)}
    assert {name for name, _, _ in BAD} == names
    for name in names:
        with pytest.raises(TypeError, match=name):
            Policy(**{key: value for key, value in POLICY.items() if key != name})  # type: ignore[arg-type]


def test_all_problems_are_reported_at_once():
    with pytest.raises(PlanError) as caught:
        make_policy(**{name: values[0] for name, values, _ in BAD})
    assert len(caught.value.problems) == len(BAD)


def test_a_cap_names_all_its_problems():
    with pytest.raises(PlanError) as caught:
        Cap(epsilon=0, delta=1)
    assert caught.value.problems == (
        "epsilon must be a finite number > 0, got 0",
        "delta must be a number in (0, 1), got 1",
    )
    assert str(caught.value).startswith("cap: epsilon")


def test_a_cap_is_read_strictly():
    assert Cap.from_dict({"epsilon": 1, "delta": 0.5}) == Cap(epsilon=1.0, delta=0.5)
    with pytest.raises(PlanError, match=r"^cap: delta is missing"):
        Cap.from_dict({"epsilon": 1})


@pytest.mark.parametrize("name", ["lifetime", "per_run"])
def test_delta_must_be_below_one_over_the_patients(name):
    """At delta = 1 / 5000 = 0.0002 one of 5000 patients may be published in full."""
    with pytest.raises(
        PlanError, match=rf"{name}\.delta must be below 1 / patients_bound = 0.0002, got 0.0002"
    ):
        make_policy(**{name: Cap(epsilon=1.0, delta=1 / 5000)})
    assert make_policy(**{name: Cap(epsilon=1.0, delta=math.nextafter(1 / 5000, 0))})


def test_a_minimum_that_no_cohort_can_reach_is_refused():
    with pytest.raises(PlanError, match="min_patients must be at most patients_bound = 5000, got 5001"):
        make_policy(min_patients=5001)
    assert make_policy(min_patients=5000).min_patients == 5000
    with pytest.raises(PlanError, match="min_patients must be at most patients_bound = 1, got 2"):
        make_policy(patients_bound=1, min_patients=2)


@pytest.mark.parametrize("wrong", ["A" * 64, "a" * 63, "a" * 65, "g" * 64, "", 3])
def test_a_model_is_a_hash(wrong):
    with pytest.raises(PlanError, match=rf"models must be SHA-256 hashes .* got {wrong!r:.20}"):
        make_policy(models=frozenset({MODEL, wrong}))


@pytest.mark.parametrize(
    ("metrics", "problem"),
    [
        ({"loss": 0}, "metrics.loss must be a finite number > 0, got 0"),
        ({"loss": math.nan}, "metrics.loss must be a finite number > 0, got nan"),
        ({"": 1.0}, "metrics must have names .* got ''"),
        ({"a b": 1.0}, "metrics must have names .* got 'a b'"),
        ({3: 1.0}, "metrics must have names .* got 3"),
    ],
)
def test_a_metric_has_a_name_and_noise(metrics, problem):
    with pytest.raises(PlanError, match=problem):
        make_policy(metrics=metrics)


def test_each_metric_is_told_its_problem():
    with pytest.raises(PlanError) as caught:
        make_policy(metrics={"a b": 1.0, "loss": 0, "kl": -1.0})
    assert [problem.split(" ")[0] for problem in caught.value.problems] == [
        "metrics",
        "metrics.loss",
        "metrics.kl",
    ]


def test_the_edges_are_allowed():
    assert make_policy(models="any").models == "any"
    assert make_policy(models=frozenset()).models == frozenset()
    assert dict(make_policy(metrics={}).metrics) == {}
    assert make_policy(max_sampling_probability=1, max_steps_per_round=1_000_000, min_sites=1)
    tiny = Cap(epsilon=1e-300, delta=1e-12)
    assert make_policy(patients_bound=MAX_PATIENTS, lifetime=tiny, per_run=tiny)


def test_a_policy_is_frozen_and_comparable():
    policy = make_policy()
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.min_sites = 1  # type: ignore[misc]
    with pytest.raises(TypeError, match="does not support item assignment"):
        policy.metrics["loss"] = 0.1  # type: ignore[index]
    assert policy == make_policy()
    assert hash(policy) == hash(make_policy())
    assert policy != make_policy(metrics={"loss": 5.5})


def test_what_was_given_cannot_be_changed_afterwards():
    metrics = {"loss": 5.0}
    policy = make_policy(metrics=metrics)
    metrics["loss"] = 0.1
    assert dict(policy.metrics) == {"loss": 5.0}


def test_a_policy_can_be_copied_and_sent_to_a_worker():
    policy = make_policy()
    assert copy.deepcopy(policy) == policy
    assert ForkingPickler.loads(ForkingPickler.dumps(policy)) == policy
    assert dataclasses.replace(policy, min_sites=4).min_sites == 4


# --- documents --------------------------------------------------------------------------------------------------


def test_a_policy_survives_json():
    for policy in (
        make_policy(),
        make_policy(models="any", metrics={}),
        make_policy(models=frozenset({OTHER, MODEL})),
    ):
        assert Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    assert make_policy(models=frozenset({OTHER, MODEL})).to_dict()["models"] == [MODEL, OTHER]


def test_the_hash_is_that_of_sorted_json():
    document = json.dumps(make_policy().to_dict(), sort_keys=True, separators=(",", ":"))
    assert make_policy().hash() == hashlib.sha256(document.encode()).hexdigest()


def test_equal_policies_have_equal_hashes_however_their_numbers_are_written():
    whole = make_policy(
        lifetime=Cap(epsilon=8, delta=1e-5), max_grad_norm=1, max_runtime_s=3600, metrics={"loss": 5}
    )
    assert whole == make_policy()
    assert whole.hash() == make_policy().hash()
    ones = {"min_noise_multiplier": 1, "max_sampling_probability": 1}
    assert make_policy(**ones).hash() == make_policy(**dict.fromkeys(ones, 1.0)).hash()


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Policy)])
def test_every_field_decides_the_hash(name):
    other: dict[str, object] = {
        "lifetime": Cap(epsilon=8.5, delta=1e-5),
        "per_run": Cap(epsilon=4.0, delta=2e-6),
        "unit": "record",
        "randomness": "seeded",
        "models": "any",
        "metrics": {},
    }
    value = other[name] if name in other else POLICY[name] * 0.5  # type: ignore[operator]
    changed = int(value) if isinstance(POLICY[name], int) else value  # type: ignore[call-overload]
    assert make_policy(**{name: changed}).hash() != make_policy().hash()


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Policy)])
def test_a_missing_key_is_refused(name):
    document = make_policy().to_dict()
    del document[name]
    with pytest.raises(PlanError, match=f"policy: {name} is missing"):
        Policy.from_dict(document)


def test_unknown_keys_are_refused_with_the_nearest_name():
    with pytest.raises(PlanError, match=r"'min_site' is unknown \(did you mean 'min_sites'"):
        Policy.from_dict({**make_policy().to_dict(), "min_site": 1})


@pytest.mark.parametrize("payload", [None, [], "any", 3])
def test_what_is_no_mapping_is_refused(payload):
    with pytest.raises(PlanError, match="policy: must be a mapping"):
        Policy.from_dict(payload)


def test_problems_of_caps_do_not_hide_others():
    document = {
        **make_policy().to_dict(),
        "lifetime": {"epsilon": -1, "delta": 1e-5},
        "per_run": {"epsilon": 1},
    }
    with pytest.raises(PlanError) as caught:
        Policy.from_dict({**document, "unit": "scan", "models": [MODEL, 3]})
    assert str(caught.value).startswith("policy: lifetime.epsilon")
    assert [problem.split(" ")[0] for problem in caught.value.problems] == [
        "lifetime.epsilon",
        "per_run.delta",
        "unit",
        "models",
    ]
