"""What an experiment would cost each site, and what a site would answer, without opening any data."""

import dataclasses
import functools
import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.config import load_experiment
from deploy.errors import ConfigError
from deploy.plan import foresee
from deploy.table import render
from privacy.accounting import Release, epsilons
from privacy.errors import RefusalCode
from tests.support.studies import EXPERIMENT, ROUND, SITE, answer_of, codes, load_study, plan

ROOT = Path(__file__).parents[3]


@pytest.fixture
def load(tmp_path):
    return functools.partial(load_study, tmp_path)


@pytest.fixture
def answer(tmp_path):
    return functools.partial(answer_of, tmp_path)


# --- what it costs ----------------------------------------------------------------------------------------------


def test_the_cost_of_one_round_and_of_all_by_both_accountants(load):
    experiment, _ = load()
    outlook = foresee(experiment, {})
    assert (outlook.noise_multiplier, outlook.target, outlook.rounds) == (4.0, None, 4)
    assert [site.site for site in outlook.sites] == ["site-1", "site-2", "site-3"]
    for site in outlook.sites:
        assert site.one_round == epsilons([ROUND], 1e-5)
        assert site.all_rounds == epsilons([ROUND] * 4, 1e-5)
        assert 0 < site.one_round.pld < site.all_rounds.pld < site.all_rounds.rdp
        assert site.answer is None
    assert not outlook.is_refused


def test_noise_is_calibrated_to_a_target(load):
    experiment, _ = load(experiment=["privacy.noise_multiplier=null", "privacy.epsilon=3"])
    outlook = foresee(experiment, {})
    assert outlook.target == 3.0
    assert outlook.sites[0].all_rounds.pld == pytest.approx(3.0, rel=2e-3)
    assert "calibrated to epsilon 3" in render(outlook)


def test_banded_noise_costs_the_steps_that_a_patient_can_be_in(load):
    banded = ["privacy.mechanism=banded", "privacy.bands=2"]
    outlook = foresee(load(experiment=banded)[0], {})
    charged = dataclasses.replace(ROUND, steps=3)  # of five
    assert outlook.sites[0].one_round == epsilons([charged], 1e-5)
    assert outlook.sites[0].all_rounds == epsilons([charged] * 4, 1e-5)
    aimed = foresee(
        load(experiment=[*banded, "privacy.noise_multiplier=null", "privacy.epsilon=3"])[0], {}
    ).sites[0]
    assert aimed.all_rounds.pld == pytest.approx(3.0, rel=2e-3)
    assert (aimed.plan.mechanism, aimed.plan.bands, aimed.plan.steps) == ("banded", 2, 5)


def test_without_privacy_there_is_no_bound(load):
    experiment, _ = load(experiment=["privacy=null"])
    outlook = foresee(experiment, {})
    assert (outlook.noise_multiplier, outlook.sites[0].plan, outlook.sites[0].all_rounds) == (
        None,
        None,
        None,
    )
    assert "there is no bound" in render(outlook)
    assert not outlook.is_refused


def test_a_deployment_asks_for_noise_from_the_operating_system(load):
    experiment, _ = load()
    assert foresee(experiment, {}).sites[0].plan.randomness == "os"


def test_the_model_is_named_by_its_hash(load):
    experiment, _ = load()
    assert foresee(experiment, {}).model_hash == experiment.model_spec((8,)).hash()
    phantom = load_experiment(ROOT / "deploy/configs/simulate/default.yaml")
    expected = (len(phantom.data.channels), *phantom.data.to_spec().image_shape)
    stated = phantom.model_copy(
        update={
            "model": phantom.model.model_copy(update={"input_shape": expected}),
            "privacy": phantom.privacy.model_copy(update={"epsilon": None, "noise_multiplier": 1.0}),
        }
    )
    implied = stated.model_copy(update={"model": phantom.model})
    assert foresee(stated, {}).model_hash == foresee(implied, {}).model_hash is not None


def test_a_model_that_only_the_data_tell(tmp_path, load):
    _, files = load(site=["data={kind: table, source: {path: a.csv, features: [u], standardise: none}}"])
    text = EXPERIMENT.replace(
        "{kind: toy, sites: 3, features: 8}",
        "{kind: table, sites: {site-2: {path: none.csv, features: [u, v], standardise: none}}}",
    )
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    experiment = load_experiment(tmp_path / "own.yaml")
    assert foresee(experiment, {}).model_hash is None
    with pytest.raises(ConfigError, match=r"model\.input_shape: is required here"):
        foresee(experiment, files)
    stated = load_experiment(tmp_path / "own.yaml", ["model.input_shape=[2]"])
    assert foresee(stated, files).model_hash == stated.model_spec((2,)).hash()


# --- what a site would answer -----------------------------------------------------------------------------------


def test_a_site_that_has_nothing_against_it(answer):
    found = answer()
    assert (found.source, found.changes, found.objections) == ("site.yaml", (), ())
    (cohort,) = found.cohorts
    assert (cohort.cohort, cohort.spent, cohort.cap, cohort.delta, cohort.refused_in) == (
        "c0",
        0,
        8,
        1e-5,
        None,
    )
    assert found.notes == (
        "`models: any` lets the server choose what is trained; list hashes outside a simulation",
    )


def test_what_a_policy_would_tighten_and_what_that_costs(load):
    experiment, files = load(
        site=["policy.min_noise_multiplier=6", "policy.max_steps_per_round=2", "policy.per_run.delta=1e-6"]
    )
    site = foresee(experiment, files).sites[1]
    assert site.plan == plan(noise_multiplier=6.0, steps=2, delta=1e-6)
    assert [(change.field, change.asked, change.allowed) for change in site.answer.changes] == [
        ("steps", 5, 2),
        ("noise_multiplier", 4.0, 6.0),
        ("delta", 1e-5, 1e-6),
    ]
    tightened = Release(sampling_probability=0.05, noise_multiplier=6.0, steps=2)
    assert site.all_rounds == epsilons([tightened] * 4, 1e-6)


def test_every_objection_of_a_policy(answer):
    found = answer(
        experiment=["privacy=null"],
        site=["policy.min_sites=4", "policy.models=[]"],
    )
    assert codes(found) == [
        RefusalCode.POLICY_NO_PRIVACY,
        RefusalCode.POLICY_MODEL,
        RefusalCode.POLICY_SITES,
    ]
    assert "the run has 3 sites, min_sites is 4" in found.objections[2].sentence
    assert found.changes == found.cohorts == ()


def test_a_model_is_allowed_by_its_hash(answer, load):
    experiment, _ = load()
    allowed = experiment.model_spec((8,)).hash()
    assert codes(answer(site=[f"policy.models=[{allowed}]"])) == []
    refused = answer(site=[f"policy.models=[{'f' * 64}]"])
    assert codes(refused) == [RefusalCode.POLICY_MODEL]
    assert f"the model {allowed} is not among the 1 of models" in refused.objections[0].sentence


def test_single_records_are_no_unit_of_a_ledger(answer):
    records = ["privacy.unit=record", "privacy.max_records_per_patient=1"]
    found = answer(experiment=records, site=["policy.unit=record"])
    assert codes(found) == [RefusalCode.UNIT]
    assert "ask with `unit: patient`" in found.objections[0].sentence
    assert codes(answer(experiment=records)) == []  # the policy makes it one of patients


# --- matching files to sites ------------------------------------------------------------------------------------


def test_files_of_other_sites_are_named_together(load):
    experiment, files = load(site=["site=site-1"])
    _, others = load()
    config = others["site.yaml"]
    foreign = config.model_copy(update={"site": "sitee-3"})
    again = files["site.yaml"]
    with pytest.raises(ConfigError) as caught:
        foresee(experiment, {"a.yaml": again, "b.yaml": foreign, "c.yaml": again, "d.yaml": config})
    assert [str(problem) for problem in caught.value.problems] == [
        "site = sitee-3: b.yaml: the experiment has no such site; sites: site-1, site-2, site-3; "
        "did you mean `site-3`?",
        "site = site-1: c.yaml: this site has another file, a.yaml; give one of them",
    ]


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    (tmp_path / "study.yaml").write_text(EXPERIMENT, encoding="utf-8")
    (tmp_path / "site.yaml").write_text(SITE, encoding="utf-8")

    def invoke(*arguments):
        paths = [str(tmp_path / each) if str(each).endswith(".yaml") else str(each) for each in arguments]
        return CliRunner().invoke(app, ["plan", *paths])

    return invoke


def test_the_command_without_any_site(run):
    done = run("--config", "study.yaml")
    assert done.exit_code == 0, done.output
    assert "study: 3 sites, 4 rounds; no data were opened" in done.output
    assert done.output.count("no file given") == 3


def test_the_command_with_a_site_that_runs(run, tmp_path):
    done = run("--config", "study.yaml", "--site", "site.yaml")
    assert done.exit_code == 0, done.output
    assert "site-2 (" in done.output
    assert "cohort c0: epsilon 0.000 of 8 spent at delta 1e-05; all rounds fit" in done.output
    assert "note: `models: any`" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site.yaml", "study.yaml"]


def test_the_command_with_a_site_that_refuses(run, tmp_path):
    text = SITE.replace("min_sites: 3", "min_sites: 9").replace(
        "min_noise_multiplier: 1", "min_noise_multiplier: 5"
    )
    (tmp_path / "strict.yaml").write_text(text, encoding="utf-8")
    done = run("--config", "study.yaml", "--site", "strict.yaml")
    assert done.exit_code == 3
    assert "  tightens noise_multiplier: 4 -> 5\n" in done.output
    assert "  refuses, too-few-sites: the run has 3 sites, min_sites is 9; enrol more\n" in done.output
    as_json = run("--config", "study.yaml", "--site", "strict.yaml", "--json")
    assert as_json.exit_code == 3
    document = json.loads(as_json.output)
    assert document["is_refused"]
    assert document["sites"][1]["answer"]["objections"][0]["code"] == "too-few-sites"
    assert document["sites"][1]["plan"]["noise_multiplier"] == 5.0
    assert math.isfinite(document["sites"][0]["all_rounds"]["pld"])


def test_the_command_names_the_problems_of_all_files_at_once(run, tmp_path):
    (tmp_path / "bad.yaml").write_text(SITE.replace("min_sites", "min_site"), encoding="utf-8")
    (tmp_path / "worse.yaml").write_text(EXPERIMENT + "sed: 1\n", encoding="utf-8")
    done = run("--config", "worse.yaml", "--site", "bad.yaml", "--site", "none.yaml")
    assert done.exit_code == 2
    assert "did you mean `seed`?" in done.stderr
    assert "did you mean `min_sites`?" in done.stderr
    assert "none.yaml: 1 problem" in done.stderr


def test_the_command_refuses_a_file_of_another_site(run, tmp_path):
    (tmp_path / "other.yaml").write_text(SITE.replace("sites: 3}", "sites: 9}").replace("site-2", "site-9"))
    done = run("--config", "study.yaml", "--site", "other.yaml")
    assert done.exit_code == 2
    assert "site = site-9" in done.stderr


def test_the_command_says_that_no_noise_reaches_the_target(run):
    changes = ("privacy.noise_multiplier=null", "privacy.epsilon=1.0e-7", "privacy.delta=1.0e-12")
    overrides = [part for each in changes for part in ("--set", each)]
    done = run("--config", "study.yaml", *overrides)
    assert done.exit_code == 3
    assert "no noise multiplier up to" in done.stderr


def test_the_schema_of_a_site():
    printed = CliRunner().invoke(app, ["config", "schema", "--site"]).output
    assert json.loads(printed)["title"] == "SiteConfig"
