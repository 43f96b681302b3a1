"""`python -m deploy plan --tune` as a person meets it: table, JSON, the written file, and every refusal."""

import json
import shlex

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.config import load_experiment
from tests.support.commands import strict_json, write_config

PUBLIC = {
    "data": {"kind": "toy", "sites": 4, "patients_per_site": 60, "features": 5, "seed": 9},
    "steps": 60,
    "learning_rate": 0.02,
}
PRIVACY = {
    "epsilon": 2.0,
    "delta": 1e-3,
    "sampling_probability": 0.4,
    "local_steps": 8,
    "divisor": 8.0,
    "learning_rate": 1e-5,
}


@pytest.fixture
def config(tmp_path):
    path = write_config(tmp_path, public=PUBLIC, privacy=None)
    loaded = strict_json(path.read_text())
    path.write_text(json.dumps({**loaded, "privacy": PRIVACY}))
    return path


def call(config, *arguments):
    return CliRunner().invoke(
        app, ["plan", "--config", str(config), *arguments, "--cache", str(config.parent / "cache")]
    )


def test_a_choice_as_table_as_json_and_as_a_file(config):
    tuned = config.parent / "tuned.yaml"
    done = call(config, "--tune", "--trials", "2", "--seeds", "1", "--write", str(tuned))
    assert done.exit_code == 0, done.output
    for part in (
        "no site's data were opened",
        "public start alone",
        "without privacy, at the choice's steps and rate",
        "choice, as a part of the configuration:",
        "This costs no privacy",
        "as good as the public data resemble",
        "Patients a site: 20, by privacy.divisor / privacy.sampling_probability.",
    ):
        assert part in done.stdout
    assert "trial 2/2: " in done.stderr
    before, after = load_experiment(config), load_experiment(tuned)
    _only_tuned_fields_differ(before, after)

    found = strict_json(call(config, "--tune", "--trials", "2", "--seeds", "1", "--json").stdout)
    assert set(found) == {
        "experiment", "epsilon", "delta", "rounds", "patients", "patients_origin", "public", "public_start",
        "plain_training", "plain_training_as_chosen", "kept_gain", "choice", "overrides", "notes", "trials",
    }  # fmt: skip
    assert found["patients"] == pytest.approx({"site-1": 20.0, "site-2": 20.0, "site-3": 20.0})
    assert [trial["score"] for trial in found["trials"]] == sorted(
        trial["score"] for trial in found["trials"]
    )
    assert all(trial["epsilon"] <= 2.0 for trial in found["trials"])
    assert found["overrides"]
    assert load_experiment(config, found["overrides"]) == after  # the words say what the file says
    line = next(line for line in done.stdout.splitlines() if line.startswith("or: python simulate.py"))
    assert shlex.split(line)[6::2] == found["overrides"]


def _only_tuned_fields_differ(before, after):
    """Check that the two experiments are one but for what is tuned."""
    tuned = {
        "privacy": {
            "sampling_probability", "local_steps", "max_grad_norm", "learning_rate", "optimiser", "trainable",
            "divisor",
        },
        "federation": {"weight_average"},
    }  # fmt: skip
    old, new = before.model_dump(), after.model_dump()
    differing = set()
    for section, value in old.items():
        if not isinstance(value, dict):
            assert new[section] == value
            continue
        for field in value:
            if new[section][field] != value[field]:
                differing.add((section, field))
    assert differing <= {(section, field) for section, fields in tuned.items() for field in fields}
    assert differing


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--tune", "--set", "public=null"], "public: is required by --tune"),
        (
            ["--tune", "--set", "privacy.epsilon=null", "--set", "privacy.noise_multiplier=1"],
            "privacy.epsilon: is required by --tune",
        ),
        (["--trials", "3"], "--trials, --cache: goes with --tune alone"),
        (["--tune", "--site", "north.yaml"], "--site: goes without --tune"),
        (["--tune", "--write", "nowhere/at/all.yaml"], "its folder is not there"),
        (["--tune", "--patients", "1"], "--patients"),
        (["--tune", "--rounds", "1", "--set", "privacy.warmup_steps=8"], "privacy.warmup_steps"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_opened(config, arguments, text):
    done = call(config, *arguments)
    assert done.exit_code == 2
    assert text in done.stderr
    assert not (config.parent / "cache").exists()


def test_a_file_that_is_there_is_not_overwritten(config):
    before = config.read_text()
    done = call(config, "--tune", "--write", str(config))
    assert done.exit_code == 2
    assert "is there already" in done.stderr
    assert config.read_text() == before


def test_public_data_that_are_too_few_end_with_their_own_code(config):
    done = call(config, "--tune", "--set", "public.data.sites=1", "--set", "public.data.patients_per_site=8")
    assert done.exit_code == 5
    assert "too few" in done.stderr
