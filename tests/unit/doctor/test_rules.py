"""Check of the policy: each generous line is a warning that says what it means for patients, and only that line."""

import pytest

from deploy.doctor import rules
from deploy.site import load_site
from tests.support.audits import SPEC
from tests.support.doctors import look, only, visit
from tests.support.shared import ROOT

SANE = {"min_sites: 1": "min_sites: 3"}
MODELS = f"models: [{SPEC.hash()}]"


def test_a_policy_as_it_should_be(tmp_path):
    assert only(rules.policy, visit(tmp_path, **SANE)).severity == "ok"


def test_the_example_that_is_shipped_is_sane(tmp_path):
    there = visit(tmp_path)
    shipped = load_site(ROOT / "deploy/configs/site/hospital.yaml")
    object.__setattr__(there, "site", shipped)
    assert only(rules.policy, there).severity == "ok"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("lifetime: {epsilon: 3.0", "lifetime: {epsilon: 11", "`policy.lifetime.epsilon` 11 promises a patient next"),
        ("lifetime: {epsilon: 3.0, delta: 1.0e-5}", "lifetime: {epsilon: 3, delta: 5.0e-5}", "a chance in ten"),
        ("min_noise_multiplier: 0.8", "min_noise_multiplier: 0.29", "so little noise"),
        ("max_sampling_probability: 0.1", "max_sampling_probability: 0.9", "most patients are part of every step"),
        ("randomness: os", "randomness: seeded", "no patient is protected"),
        ("unit: patient", "unit: record", "protects single scans"),
        (MODELS, "models: any", "lets the server choose"),
        ("max_records_per_patient: 8", "max_records_per_patient: 1000000", "any number of a patient's scans"),
        (MODELS, f"{MODELS}\n  metrics: {{loss: 0.1}}", "`policy.metrics.loss` 0.1"),
        ("min_sites: 3", "min_sites: 1", "the aggregate is its own update"),
        ("min_patients: 10", "min_patients: 9", "on a handful"),
    ],
)  # fmt: skip
def test_each_generous_line_is_told_alone(tmp_path, old, new, words):
    changes = {"min_sites: 1": new} if old == "min_sites: 3" else {**SANE, old: new}
    found = only(rules.policy, visit(tmp_path, **changes))
    assert found.severity == "warning"
    assert words in found.found
    assert "`policy." in found.found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lifetime: {epsilon: 3.0", "lifetime: {epsilon: 10"),
        ("min_noise_multiplier: 0.8", "min_noise_multiplier: 0.3"),
        ("max_sampling_probability: 0.1", "max_sampling_probability: 0.5"),
        ("max_records_per_patient: 8", "max_records_per_patient: 1000"),
        (MODELS, f"{MODELS}\n  metrics: {{loss: 0.3}}"),
    ],
)
def test_what_is_at_its_limit_is_not_told(tmp_path, old, new):
    assert only(rules.policy, visit(tmp_path, **SANE, **{old: new})).severity == "ok"


def test_all_of_it_at_once(tmp_path):
    changes = {"lifetime: {epsilon: 3.0": "lifetime: {epsilon: 50", MODELS: "models: any"}
    there = visit(tmp_path, **changes, **{"randomness: os": "randomness: seeded"})
    assert [each.severity for each in look(rules.policy, there)] == ["warning"] * 4


def test_no_model_is_a_note(tmp_path):
    sane, noted = look(rules.policy, visit(tmp_path, **SANE, **{MODELS: "models: []"}))
    assert (sane.severity, noted.severity) == ("ok", "note")
