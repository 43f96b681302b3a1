"""From a hospital's file to its configuration and policy, or to every problem of it at once."""

import dataclasses
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from deploy.documents import dump_yaml, load_yaml, parse
from deploy.errors import ConfigError
from deploy.site import PolicySection, SiteConfig, load_site, site_schema
from deploy.sources import DicomData, NiftiData, TableData
from privacy.accounting import Release
from privacy.filters import FixedPlan, RenyiFilter
from privacy.policy import Cap, Policy

CONFIGS = Path(__file__).parents[3] / "deploy/configs"
MODEL = "a" * 64
KEY = "b" * 64
POLICY = f"""\
policy:
  lifetime: {{epsilon: 8.0, delta: 1.0e-6}}
  per_run: {{epsilon: 4, delta: 1.0e-7}}
  min_noise_multiplier: 0.8
  max_sampling_probability: 0.1
  max_steps_per_round: 200
  max_grad_norm: 1.0
  max_records_per_patient: 8
  unit: patient
  randomness: os
  min_patients: 50
  patients_bound: 100000
  models: [{MODEL}]
  metrics: {{loss: 5}}
  min_sites: 3
  max_runtime_s: 3600
"""
HEAD = """\
site: site-2
dataset: dementia
data: {kind: toy, sites: 3}
ledger: state/ledger.sqlite
salt: salt
key: key.pem
"""
TEXT = HEAD + POLICY


@pytest.fixture
def load(tmp_path):
    def load_text(text, *overrides):
        file = tmp_path / "site.yaml"
        file.write_text(text, encoding="utf-8")
        return load_site(file, overrides)

    return load_text


@pytest.fixture
def problems(load):
    def problems_of(text, *overrides):
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return caught.value.problems

    return problems_of


def test_a_file_becomes_a_policy(load):
    assert load(TEXT).to_policy() == Policy(
        lifetime=Cap(epsilon=8.0, delta=1e-6),
        per_run=Cap(epsilon=4.0, delta=1e-7),
        min_noise_multiplier=0.8,
        max_sampling_probability=0.1,
        max_steps_per_round=200,
        max_grad_norm=1.0,
        max_records_per_patient=8,
        unit="patient",
        randomness="os",
        min_patients=50,
        patients_bound=100_000,
        models=frozenset({MODEL}),
        metrics={"loss": 5.0},
        min_sites=3,
        max_runtime_s=3600.0,
    )


def test_the_section_has_the_fields_of_the_policy():
    assert list(PolicySection.model_fields) == [field.name for field in dataclasses.fields(Policy)]


def test_the_rest_of_the_file(load, tmp_path):
    config = load(TEXT + f"approvers: [{KEY}]\n")
    assert (config.site, config.dataset, config.approvers) == ("site-2", "dementia", (KEY,))
    assert config.ledger == str(tmp_path / "state/ledger.sqlite")
    assert config.salt == str(tmp_path / "salt")
    assert config.key == str(tmp_path / "key.pem")
    assert config.study_data().kind == "toy"


def test_a_site_is_frozen(load):
    config = load(TEXT)
    with pytest.raises(ValidationError, match="frozen"):
        config.site = "site-1"
    with pytest.raises(ValidationError, match="frozen"):
        config.policy.min_sites = 1


def test_overrides(load, problems):
    assert load(TEXT, "policy.min_sites=5").to_policy().min_sites == 5
    (problem,) = problems(TEXT, "policy.min_site=5")
    assert (problem.where, problem.path, problem.suggestion) == ("--set", "policy.min_site", "min_sites")


@pytest.mark.parametrize(
    "name", [name for name in PolicySection.model_fields if name not in ("models", "metrics")]
)
def test_no_rule_of_a_policy_has_a_default(problems, name):
    lines = [line for line in TEXT.splitlines() if not line.startswith(f"  {name}:")]
    (problem,) = problems("\n".join(lines))
    assert (problem.path, problem.rule) == (f"policy.{name}", "is required")


@pytest.mark.parametrize("name", ["site", "dataset", "data", "ledger", "salt", "key"])
def test_what_a_site_needs_is_required(problems, name):
    lines = [line for line in TEXT.splitlines() if not line.startswith(f"{name}:")]
    (problem,) = problems("\n".join(lines))
    assert (problem.path, problem.rule) == (name, "is required")


@pytest.mark.parametrize("text", [HEAD, HEAD + "policy:\n", HEAD + "policy: none\n"])
def test_without_a_policy_there_is_no_site(problems, text):
    (problem,) = problems(text)
    assert problem.path == "policy"


def test_models_and_metrics_may_be_left_out_and_then_there_are_none(load):
    lines = [line for line in TEXT.splitlines() if not line.startswith(("  models:", "  metrics:"))]
    policy = load("\n".join(lines)).to_policy()
    assert policy.models == frozenset()
    assert dict(policy.metrics) == {}


def test_any_model(load, problems):
    assert load(TEXT, "policy.models=any").to_policy().models == "any"
    (problem,) = problems(TEXT, "policy.models=all")
    assert (problem.path, problem.rule) == ("policy.models", "must be a list, or any")


def test_every_problem_at_once_in_the_order_of_the_file(problems):
    text = f"""\
site: site 2
datasett: dementia
data: {{kind: table, source: {{path: a.csv, features: [], standardize: none}}}}
ledger: 3
salt: salt
key: key.pem
approvers: [{KEY}, abc]
rule: {{kind: renyi-filter, order: 1}}
policy:
  lifetime: {{epsilon: 0, delta: 1.0e-6}}
  per_run: {{epsilon: 4, delta: 1}}
  min_noise_multiplyer: 0.8
  max_sampling_probability: 1.1
  max_steps_per_round: 2.5
  max_grad_norm: yes
  max_records_per_patient: 0
  unit: patients
  randomness: 0s
  min_patients: true
  patients_bound: -1
  models: [{MODEL}, xyz]
  metrics: {{loss: 0, "a b": 1}}
  min_sites: "3"
  max_runtime_s: 0
"""
    found = [(problem.where, problem.path, problem.suggestion) for problem in problems(text)]
    assert found == [
        ("", "dataset", ""),
        ("line 1", "site", ""),
        ("line 2", "datasett", "dataset"),
        ("line 3", "data.source.features", ""),
        ("line 3", "data.source.standardize", "standardise"),
        ("line 4", "ledger", ""),
        ("line 7", "approvers[1]", ""),
        ("line 8", "rule.order", ""),
        ("line 9", "policy.min_noise_multiplier", ""),
        ("line 10", "policy.lifetime.epsilon", ""),
        ("line 11", "policy.per_run.delta", ""),
        ("line 12", "policy.min_noise_multiplyer", "min_noise_multiplier"),
        ("line 13", "policy.max_sampling_probability", ""),
        ("line 14", "policy.max_steps_per_round", ""),
        ("line 15", "policy.max_grad_norm", ""),
        ("line 16", "policy.max_records_per_patient", ""),
        ("line 17", "policy.unit", "patient"),
        ("line 18", "policy.randomness", "os"),
        ("line 19", "policy.min_patients", ""),
        ("line 20", "policy.patients_bound", ""),
        ("line 21", "policy.models[1]", ""),
        ("line 22", "policy.metrics.loss", ""),
        ("line 22", "policy.metrics.a b", ""),
        ("line 23", "policy.min_sites", ""),
        ("line 24", "policy.max_runtime_s", ""),
    ]


@pytest.mark.parametrize(
    ("override", "path", "value", "rule"),
    [
        (
            "policy.lifetime.delta=1.0e-5",
            "policy.lifetime.delta",
            "1e-05",
            "below 1 / patients_bound = 1e-05",
        ),
        ("policy.per_run.delta=0.1", "policy.per_run.delta", "0.1", "must be below 1 / patients_bound"),
        ("policy.min_patients=100001", "policy.min_patients", "100001", "at most patients_bound = 100000"),
        (
            "policy.patients_bound=100000000000",
            "policy.patients_bound",
            "100000000000",
            "from 1 to 10000000000",
        ),
        ("policy.models=[abc]", "policy.models[0]", '"abc"', "must be 64 hexadecimal digits in lower case"),
        (f"approvers=[{'B' * 64}]", "approvers[0]", f'"{"B" * 55} ...', "must be 64 hexadecimal digits"),
        (f"approvers=[{KEY}, {KEY}]", "approvers[1]", f'"{KEY[:55]} ...', "is the key of approvers[0]"),
        ("salt=key.pem", "key", '"key.pem"', "is the same file as `salt`"),
        (
            "key=./state/../state/ledger.sqlite",
            "key",
            '"./state/../state/ledger.sqlite"',
            "same file as `ledger`",
        ),
        ("site=site-4", "site", '"site-4"', "toy data are made for site-1 to site-3"),
        ("data={kind: phantom, sites: 1}", "site", '"site-2"', "phantom data are made for site-1 to site-1"),
        (
            "data.kind=nifty",
            "data.kind",
            '"nifty"',
            "must be one of nifti, dicom, table, toy, phantom, abide",
        ),
        ("data.kind=ftp", "data.kind", '"ftp"', "must be one of nifti, dicom, table, toy, phantom, abide"),
        ("rule={kind: fixed}", "rule.kind", '"fixed"', "must be one of renyi-filter, fixed-plan"),
        ("rule={order: 8}", "rule.kind", "", "is required: one of renyi-filter, fixed-plan"),
        ("rule={kind: renyi-filter, order: 2000}", "rule.order", "2000", "must be <= 1024"),
        ("rule={kind: fixed-plan}", "rule.schedule", "", "is required"),
        ("rule={kind: fixed-plan, schedule: []}", "rule.schedule", "[]", "at least 1"),
        ("data={kind: table, source: {path: a, features: [u, u]}}", "data.source", "", "u"),
    ],
)
def test_rules_between_fields_and_of_single_ones(problems, override, path, value, rule):
    (problem,) = problems(TEXT, override)
    assert (problem.path, problem.value) == (path, value)
    assert rule in problem.rule


def test_the_nearest_names_are_suggested(problems):
    (kind,) = problems(TEXT, "data.kind=nifty")
    assert kind.suggestion == "nifti"
    (rule,) = problems(TEXT, "rule={kind: fixed-plans, schedule: []}")
    assert rule.suggestion == "fixed-plan"
    text = TEXT.replace(
        "{kind: toy, sites: 3}", "{kind: nifti, source: {rot: x, preparation: {shape: [9, 9, 9]}}}"
    )
    assert {problem.path: problem.suggestion for problem in problems(text)} == {
        "data.source.root": "",
        "data.source.rot": "root",
    }
    text = (
        TEXT
        + "rule: {kind: fixed-plan, schedule: [{step: 3, sampling_probability: 0.1, noise_multiplier: 1}]}\n"
    )
    assert {problem.path: problem.suggestion for problem in problems(text)} == {
        "rule.schedule[0].steps": "",
        "rule.schedule[0].step": "steps",
    }


@pytest.mark.parametrize("text", ["", "[1, 2]", "just text"])
def test_what_is_no_dictionary_names_what_is_needed(problems, text):
    found = problems(text)
    if text:
        assert found[0].rule == (
            "must be a dictionary (key: value) with at least `site`, `dataset`, `data`, `ledger`, `salt`, `key`, "
            "`policy`"
        )
    else:
        assert {problem.path for problem in found} == {
            "site", "dataset", "data", "ledger", "salt", "key", "policy",
        }  # fmt: skip


def test_a_renyi_filter_at_a_given_order_or_one_chosen_from_the_cap(load):
    given = load(TEXT + "rule: {kind: renyi-filter, order: 9}\n").to_filter()
    assert given == RenyiFilter(epsilon=8.0, delta=1e-6, order=9)
    chosen = load(TEXT).to_filter()
    assert isinstance(chosen, RenyiFilter)
    assert chosen.order == 4  # round(1 + 2 ln(1e6) / 8) = round(4.45)


def test_a_fixed_plan(load):
    text = (
        TEXT
        + "rule: {kind: fixed-plan, schedule: [{sampling_probability: 0.1, noise_multiplier: 1, steps: 3}]}\n"
    )
    release = Release(sampling_probability=0.1, noise_multiplier=1.0, steps=3)
    assert load(text).to_filter() == FixedPlan(schedule=(release,), epsilon=8.0, delta=1e-6)


def test_own_data_become_a_study_of_this_site_alone(load, tmp_path):
    here = "held_out: 0.2, source: {root: scans, preparation: {shape: [9, 9, 9]}}"
    for kind, study in (("nifti", NiftiData), ("dicom", DicomData)):
        data = load(TEXT.replace("kind: toy, sites: 3", f"kind: {kind}, {here}")).study_data()
        assert isinstance(data, study)
        assert data.held_out == 0.2
        assert data.sites["site-2"].root == str(tmp_path / "scans")
    table = "kind: table, source: {path: a.csv, features: [u], standardise: none}"
    data = load(TEXT.replace("kind: toy, sites: 3", table)).study_data()
    assert isinstance(data, TableData)
    assert data.to_specs()["site-2"].path == str(tmp_path / "a.csv")


# --- what is shipped --------------------------------------------------------------------------------------------


def test_the_example_loads_and_leaves_out_nothing():
    file = CONFIGS / "site/hospital.yaml"
    config = load_site(file)
    given = load_yaml(file)
    assert set(given) == set(SiteConfig.model_fields)
    assert set(given["policy"]) == set(PolicySection.model_fields)
    policy = config.to_policy()
    assert (policy.unit, policy.randomness, dict(policy.metrics)) == ("patient", "os", {})
    assert policy.min_sites > 1
    assert all(file.read_text(encoding="utf-8").count(f"  {name}:") == 1 for name in given["policy"])


def test_the_example_points_editors_to_the_schema():
    first = (CONFIGS / "site/hospital.yaml").read_text(encoding="utf-8").splitlines()[0]
    schema = first.removeprefix("# yaml-language-server: $schema=")
    assert (CONFIGS / "site" / schema).resolve() == CONFIGS / "site-schema.json"


def test_the_schema_is_current():
    shipped = json.loads((CONFIGS / "site-schema.json").read_text(encoding="utf-8"))
    renew = "run `python -m deploy config schema --site > deploy/configs/site-schema.json`"
    assert shipped == site_schema(), renew
    assert shipped["title"] == "SiteConfig"


def test_the_schema_accepts_and_rejects_as_the_loader_does(load):
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(site_schema())
    good = parse(TEXT).value
    load(TEXT)
    assert validator.is_valid(good)
    for changed in (
        {"policy": {}},
        {"site": ""},
        {"sit": "x"},
        {"approvers": ["abc"]},
        {"rule": {"kind": "x"}},
    ):
        assert not validator.is_valid({**good, **changed}), changed
        with pytest.raises(ConfigError):
            load(dump_yaml({**good, **changed}))
