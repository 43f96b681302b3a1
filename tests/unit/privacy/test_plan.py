"""The plan: validation of everything at once, strict reading, the release it stands for."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from privacy.accounting import Release
from privacy.errors import PlanError
from privacy.plan import PrivacyPlan, mechanism_name, plan_from_dict
from privacy.unsafe import NoPrivacy, UnsafeWarning

GOOD: dict[str, object] = {
    "sampling_probability": 0.04,
    "steps": 45,
    "noise_multiplier": 1.5,
    "max_grad_norm": 1.0,
    "divisor": 20.0,
    "delta": 1e-5,
}

BAD: list[tuple[str, list[object], str]] = [
    (
        "sampling_probability",
        [0, -0.1, 1.1, math.nan, math.inf, "0.04", None, True],
        r"must be a number in \(0, 1\]",
    ),
    ("steps", [-1, 1.5, "45", None, True, 10**7, 10**400], "must be an integer from 0 to 1000000"),
    ("noise_multiplier", [0, -1.0, math.nan, math.inf, "1.5", False], "must be a finite number > 0"),
    ("max_grad_norm", [0, -1.0, math.nan, math.inf, -math.inf, 10**400], "must be a finite number > 0"),
    ("divisor", [0, -20.0, math.nan, math.inf, None], "must be a finite number > 0"),
    ("delta", [0, 1, 1.0, -1e-5, math.nan, "1e-5"], r"must be a number in \(0, 1\)"),
    ("unit", ["scan", "", None, 1], "must be one of patient, record"),
    ("max_records_per_patient", [0, -1, 2.0, None, True], "must be an integer >= 1"),
    ("neighbouring", ["zero_out", None], "must be one of add_remove, replace_one"),
    ("randomness", ["torch", None], "must be one of os, seeded"),
    ("grad_engine", ["ghost", None], "must be one of bookkeeping, opacus, vmap"),
    ("mechanism", ["ghost", None], "must be one of independent, banded, discrete"),
    ("bands", [0, 2, 1.0, True, None, "1"], "goes with mechanism banded alone"),
]
CASES = [(name, value, rule) for name, values, rule in BAD for value in values]


def make(**changes: object) -> PrivacyPlan:
    return PrivacyPlan(**{**GOOD, **changes})  # type: ignore[arg-type]


def test_defaults_are_the_careful_ones():
    plan = make()
    assert (plan.unit, plan.neighbouring, plan.randomness) == ("patient", "add_remove", "os")
    assert (plan.max_records_per_patient, plan.grad_engine) == (8, "bookkeeping")


@pytest.mark.parametrize(
    ("name", "value", "rule"), CASES, ids=[f"{name}={value!r:.20}" for name, value, _ in CASES]
)
def test_a_bad_value_is_refused_by_name_and_rule(name: str, value: object, rule: str):
    with pytest.raises(PlanError, match=f"{name} {rule}, got"):
        make(**{name: value})


def test_every_field_has_a_bad_example():
    assert {name for name, _, _ in BAD} == {field.name for field in dataclasses.fields(PrivacyPlan)}


def test_all_problems_are_reported_at_once():
    with pytest.raises(PlanError) as caught:
        make(**{name: values[0] for name, values, _ in BAD})
    assert len(caught.value.problems) == len(BAD)
    assert str(caught.value).startswith("privacy plan: sampling_probability must be")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sampling_probability", 1),
        ("sampling_probability", 5e-324),
        ("steps", 0),
        ("steps", 1_000_000),
        ("delta", 0.999),
        ("noise_multiplier", 1e-3),
        ("divisor", 0.5),
        ("max_records_per_patient", 2**31 - 1),
    ],
)
def test_the_edges_are_allowed(name: str, value: object):
    assert getattr(make(**{name: value}), name) == value


def test_unit_record_needs_one_record_a_unit():
    with pytest.raises(
        PlanError, match="unit record needs max_records_per_patient = 1 and a cohort grouped by record"
    ):
        make(unit="record")
    assert make(unit="record", max_records_per_patient=1).unit == "record"


def test_the_plan_is_frozen_keyword_only_and_comparable():
    plan = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.noise_multiplier = 0.1  # type: ignore[misc]
    with pytest.raises(TypeError):
        PrivacyPlan(0.04, 45, 1.5, 1.0, 20.0, 1e-5)  # type: ignore[misc]
    assert plan == make()
    assert hash(plan) == hash(make())
    assert plan != make(noise_multiplier=1.6)


def test_the_release_carries_what_is_accounted_and_nothing_else():
    assert make().release() == Release(sampling_probability=0.04, noise_multiplier=1.5, steps=45)
    assert make(max_grad_norm=9.0, divisor=1.0, delta=0.1).release() == make().release()


def test_the_release_carries_the_relation_of_the_plan():
    assert make(neighbouring="replace_one").release().neighbouring == "replace_one"
    assert make(neighbouring="replace_one").release() != make().release()


def test_the_plan_survives_json_bit_for_bit():
    plan = make(noise_multiplier=1.1000000000000003, delta=1e-7, randomness="seeded", grad_engine="opacus")
    document = json.loads(json.dumps(plan.to_dict()))
    assert document["kind"] == "patient-dp"
    assert PrivacyPlan.from_dict(document) == plan
    assert plan_from_dict(document) == plan


@pytest.mark.parametrize("name", sorted(make().to_dict()))
def test_a_missing_key_is_refused_even_if_it_has_a_default(name: str):
    document = make().to_dict()
    del document[name]
    with pytest.raises(PlanError, match=f"{name} is missing"):
        PrivacyPlan.from_dict(document)


def test_unknown_keys_are_refused_with_the_nearest_name():
    document = make().to_dict() | {"noise_multiplyer": 0.1, "zzz": 1}
    with pytest.raises(PlanError) as caught:
        PrivacyPlan.from_dict(document)
    assert caught.value.problems == (
        "'noise_multiplyer' is unknown (did you mean 'noise_multiplier'?)",
        "'zzz' is unknown",
    )


@pytest.mark.parametrize("payload", [None, [], "plan", 3, [("kind", "patient-dp")]])
def test_something_that_is_no_mapping_is_refused(payload: object):
    with pytest.raises(PlanError, match="must be a mapping"):
        PrivacyPlan.from_dict(payload)
    with pytest.raises(PlanError, match="kind must be 'patient-dp' or 'none', got None"):
        plan_from_dict(payload)


@pytest.mark.parametrize("kind", ["none", "dp", "", None, 1])
def test_another_kind_is_refused(kind: object):
    with pytest.raises(PlanError, match="kind must be 'patient-dp'"):
        PrivacyPlan.from_dict(make().to_dict() | {"kind": kind})


def test_a_bad_value_in_a_document_is_refused_like_any_other():
    with pytest.raises(PlanError, match="noise_multiplier must be a finite number > 0, got 0"):
        plan_from_dict(make().to_dict() | {"noise_multiplier": 0})


def test_the_tag_chooses_the_kind_of_plan():
    with pytest.warns(UnsafeWarning):
        plan = plan_from_dict({"kind": "none", "steps": 3, "batch_patients": 4})
    assert isinstance(plan, NoPrivacy)
    with pytest.raises(PlanError, match="'noise_multiplier' is unknown"):
        plan_from_dict({"kind": "none", "steps": 3, "batch_patients": 4, "noise_multiplier": 1.0})


def test_a_tag_cannot_turn_privacy_off_silently():
    # A document of a private plan whose tag was changed on the way does not become plain training.
    with pytest.raises(PlanError, match="unknown"):
        plan_from_dict(make().to_dict() | {"kind": "none"})


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"grad_engine": "bookkeeping"}, "grad_engine must be vmap or opacus with mechanism discrete"),
        ({"noise_multiplier": 1e-4}, "noise_multiplier must be from 0.000976562 to 4096"),
        ({"noise_multiplier": 5000.0}, "noise_multiplier must be from 0.000976562 to 4096"),
        ({"bands": 2}, "bands goes with mechanism banded alone"),
    ],
)
def test_a_discrete_plan_needs_what_its_lattice_needs(changes: dict[str, object], rule: str):
    with pytest.raises(PlanError, match=rule):
        make(**{"mechanism": "discrete", "grad_engine": "vmap", **changes})


def test_a_discrete_plan_costs_what_the_gaussian_of_its_noise_costs_and_says_what_it_is():
    plan = make(mechanism="discrete", grad_engine="vmap")
    assert plan.release() == make().release()
    assert PrivacyPlan.from_dict(plan.to_dict()) == plan
    assert mechanism_name(plan) == "patient-level DP-SGD, discrete Gaussian noise"
