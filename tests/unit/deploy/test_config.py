"""From a file to an experiment, or to every problem of it at once."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deploy.config import Experiment, json_schema, load_experiment
from deploy.documents import parse
from deploy.errors import ConfigError, Problem
from deploy.sections import Federation
from tests.support.experiments import experiment as small
from vae.errors import ModelSpecError

TOY = "data: {kind: toy, sites: 3}\n"


@pytest.fixture
def load(tmp_path):
    def load_text(text, *overrides):
        file = tmp_path / "experiment.yaml"
        file.write_text(text, encoding="utf-8")
        return load_experiment(file, overrides)

    return load_text


@pytest.fixture
def problems(load):
    def problems_of(text, *overrides):
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return caught.value.problems

    return problems_of


def test_the_smallest_file_takes_every_default(load):
    experiment = load(TOY)
    assert experiment.name == "experiment"
    assert experiment.site_names == ("site-1", "site-2", "site-3")
    assert experiment.privacy is None
    assert experiment.arms == ("mean", "local", "federated", "centralised")
    assert experiment.engine.kind == "local"


def test_the_private_arm_applies_with_a_privacy_section(load):
    experiment = load(TOY + "privacy: {epsilon: 3, divisor: 4}\n")
    assert experiment.arms == ("mean", "local", "federated", "federated-dp", "centralised")


def test_an_experiment_is_frozen(load):
    experiment = load(TOY)
    with pytest.raises(ValidationError, match="frozen"):
        experiment.seed = 2
    with pytest.raises(ValidationError, match="frozen"):
        experiment.federation.rounds = 2


def test_every_problem_at_once_in_the_order_of_the_file(problems):
    text = """\
name: bad name
sed: 3
engine: {workers: 0}
data:
  kind: phantom
  visits: [3]
  slabs: 1
  channels: [pet, t1]
model: {family: beta_vae, channels: [16, 0]}
federation:
  rounds: "3"
  quorum: 1.5
  weights: {site-9: 2.0}
training: 3
privacy: {epsilon: 3.0, noise_multiplier: 1.0, delta: 2.0}
arms: [mean, federated-pd]
faults:
  dropout: 2
  sitee-1: {update: nan}
  site-2: {updat: nan, rounds: all}
"""
    found = [(problem.where, problem.path, problem.suggestion) for problem in problems(text)]
    assert found == [
        ("line 1", "name", ""),
        ("line 2", "sed", "seed"),
        ("line 3", "engine.workers", ""),
        ("line 6", "data.visits[1]", ""),
        ("line 7", "data.slabs", "slab"),
        ("line 8", "data.channels[1]", "t1w"),
        ("line 9", "model.family", "beta-vae"),
        ("line 9", "model.channels[1]", ""),
        ("line 11", "federation.rounds", ""),
        ("line 12", "federation.quorum", ""),
        ("line 14", "training", ""),
        ("line 15", "privacy.delta", ""),
        ("line 16", "arms[1]", "federated-dp"),
        ("line 18", "faults.dropout", ""),
        ("line 20", "faults.site-2.updat", "update"),
    ]


def test_a_message_holds_line_key_value_rule_and_suggestion(problems):
    (problem,) = problems(TOY + "model: {family: vea}\n")
    assert str(problem) == (
        'line 2: model.family = "vea": must be one of vae, beta-vae or cvae; did you mean `vae`?'
    )


def test_the_text_of_the_error_lists_everything(problems, load, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(TOY + "seed: -1\nsid: 1\n")
    assert str(caught.value).splitlines()[0] == f"{tmp_path}/experiment.yaml: 2 problems"
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "path", "rule"),
    [
        ("seed: 1.0", "seed", "whole number"),
        ("seed: true", "seed", "whole number"),
        ('seed: "1"', "seed", "whole number"),
        ("training: {learning_rate: true}", "training.learning_rate", "must be a number"),
        ("training: {learning_rate: no}", "training.learning_rate", "must be a number"),
        ("training: {learning_rate: 0}", "training.learning_rate", "> 0"),
        ("federation: {quorum: 0}", "federation.quorum", ">= 1"),
        ("federation: {strategy: median, sharing: yes}", "federation.sharing", "one of all"),
        ("model: {channels: []}", "model.channels", "at least 1"),
        ("model: {channels: 16}", "model.channels", "a list"),
        ("report: [1]", "report", "dictionary"),
        ("faults: {site-1: {crash: yes}}", "faults.site-1.crash", "true or false"),
        ("faults: {site-1: {drop: true, rounds: some}}", "faults.site-1.rounds", "a list, or all"),
        ("faults: {site-1: 3}", "faults.site-1", "dictionary"),
        ("federation: {weights: {site-1: 0, site-2: 1, site-3: 1}}", "federation.weights.site-1", "> 0"),
        (
            "privacy: {epsilon: 1, divisor: 3, sampling_probability: 1.5}",
            "privacy.sampling_probability",
            "<= 1",
        ),
    ],
)
def test_types_and_ranges_are_strict(problems, text, path, rule):
    (problem,) = problems(TOY + text)
    assert problem.path == path
    assert rule in problem.rule
    assert problem.where == "line 2"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("seed: 1", "data"),
        ("data: {sites: 3}", "data.kind"),
        ("data: {kind: phantoms}", "data.kind"),
        ("data: 3", "data"),
        ("[1, 2]", ""),
        ("", "data"),
        ("just text", ""),
    ],
)
def test_files_without_usable_data(problems, text, path):
    assert path in [problem.path for problem in problems(text)]


def test_the_nearest_kind_of_data_is_suggested(problems):
    (problem,) = problems("data: {kind: phantoms}")
    assert problem.suggestion == "phantom"
    assert "toy, phantom, abide, nifti, dicom, table" in problem.rule


def test_an_unknown_key_hides_no_other_problem_of_its_section(problems):
    found = problems(TOY + "federation: {rouns: 3, quorum: 9, strategy: fedprox}\n")
    assert {problem.path for problem in found} == {
        "federation.rouns",
        "federation.quorum",
        "federation.proximal_mu",
    }


def test_the_resolved_file_loads_to_an_equal_experiment(load):
    text = TOY + "name: '010'\nfaults: {dropout: 0.1, site-2: {update: nan, rounds: [1]}}\nseed: 3\n"
    experiment = load(text)
    again = load(experiment.resolved_yaml())
    assert again == experiment
    assert again.hash() == experiment.hash()


def test_an_experiment_survives_json(load):
    experiment = load(TOY + "privacy: {epsilon: 3, divisor: 4}\nfaults: {site-2: {drop: true}}\n")
    again = Experiment.model_validate_json(experiment.model_dump_json())
    assert again == experiment
    assert again.faults.sites["site-2"].drop


@pytest.mark.parametrize(
    "override",
    [
        "engine.kind=ray",
        "engine.workers=2",
        "engine.device=cpu",
        "name=other",
        "report.panels=1",
        "arms=[mean]",
    ],
)
def test_the_hash_leaves_out_what_changes_no_weight(load, override):
    assert load(TOY, override).hash() == load(TOY).hash()


@pytest.mark.parametrize(
    "override",
    [
        "seed=2",
        "federation.rounds=9",
        "data.seed=1",
        "model.latent_size=3",
        "training.local_steps=3",
        "faults.dropout=0.1",
        "privacy={epsilon: 1, divisor: 2}",
        "federation.weight_average=0.9",
        "training.trainable=biases",
        "training.schedule=cosine",
        "training.warmup_steps=3",
    ],
)
def test_the_hash_tells_experiments_apart(load, override):
    assert load(TOY, override).hash() != load(TOY).hash()


def test_options_that_came_later_leave_the_hash_as_it_was_where_they_are_not_used():
    """The hash seeds a simulation: taken down before there were schedules, subsets, averages and versions."""
    engine = {"grad_engine": "vmap"}  # the default of then: another engine rounds otherwise
    assert small(privacy=engine).hash() == "2ae0a4309719bb6d8ecae98ad8f274cbdb3d8c07ebb58776167c88578c7e21dd"
    without = small(privacy=None, arms=["federated"])
    assert without.hash() == "33e69965640f3fea926e25952874c83b5838f585c8ee712997c4387f22e24d03"
    written_out = Experiment.model_validate_json(small().model_dump_json())
    assert written_out.hash() == small().hash()


def test_the_hash_is_that_of_written_out_defaults(load):
    assert load(TOY + "federation: {rounds: 10}\n").hash() == load(TOY).hash()


def test_relative_paths_count_from_the_file(load, tmp_path):
    text = "data: {kind: nifti, sites: {north: {root: scans/a, preparation: {shape: [9, 9, 9]}}}}"
    assert load(text).data.sites["north"].root == str(tmp_path / "scans/a")
    assert load(text.replace("scans/a", "/abs/b")).data.sites["north"].root == "/abs/b"


def test_sites_needed():
    fraction = Federation(quorum=0.5)
    assert [fraction.sites_needed(n) for n in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]
    assert Federation(quorum=1.0).sites_needed(7) == 7
    assert Federation(quorum=3).sites_needed(7) == 3
    assert Federation(quorum=0.1).sites_needed(3) == 1
    assert Federation(quorum=0.1 + 0.2).sites_needed(10) == 3  # 0.30000000000000004 x 10 is no fourth site


@given(st.integers(1, 500), st.floats(0.001, 1.0))
def test_a_fraction_is_met_and_not_exceeded_by_a_whole_site(num_sites, fraction):
    needed = Federation(quorum=fraction).sites_needed(num_sites)
    assert 1 <= needed <= num_sites
    assert needed >= fraction * num_sites - 1e-6
    assert needed - 1 < fraction * num_sites


def test_the_model_follows_from_configuration_and_data(load):
    experiment = load(TOY + "model: {family: beta-vae, beta: 4, channels: [5], latent_size: 2}\n")
    spec = experiment.model_spec((8,), 3)
    assert (spec.input_shape, spec.beta, spec.channels, spec.num_covariates) == ((8,), 4.0, (5,), 0)
    conditional = load("data: {kind: toy, covariates: 2}\nmodel: {family: cvae}\n")
    assert conditional.model_spec((8,), 2).num_covariates == 2
    with pytest.raises(ModelSpecError, match="covariates"):
        conditional.model_spec((8,), 0)


def test_the_schema_describes_the_sections_and_is_current():
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Experiment.model_fields)
    shipped = Path(__file__).parents[3] / "deploy/configs/schema.json"
    assert json.loads(shipped.read_text(encoding="utf-8")) == schema, "run `make schema`"


def test_the_schema_accepts_and_rejects_as_the_loader_does(load):
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(json_schema())
    good = TOY + "privacy: {epsilon: 3, divisor: 4}\nfaults: {dropout: 0.1, site-2: {update: nan}}\n"
    load(good)
    assert validator.is_valid(parse(good).value)
    for bad in (
        "sed: 1",
        "seed: -1",
        "model: {family: vea}",
        "faults: {site-2: {updat: nan}}",
        "data: {kind: toy, x: 1}",
    ):
        assert not validator.is_valid({**parse(good).value, **parse(bad).value}), bad


def test_nothing_infinite_gets_in_by_code_either():
    with pytest.raises(ValidationError, match="finite"):
        Federation(deadline_s=math.inf)


def test_problems_print_without_what_they_lack():
    assert str(Problem(path="", rule="must be UTF-8 text")) == "file: must be UTF-8 text"
