"""`python -m deploy`: what it prints, and what it returns to the shell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.errors import ExitCode
from deploy.folders import CACHE_VARIABLE, cache_folder

ROOT = Path(__file__).resolve().parents[3]
SMOKE = str(ROOT / "deploy/configs/simulate/smoke.yaml")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def tables(tmp_path):
    """Two sites' tables, one of them with a fault in every second row."""
    rows = "".join(f"p{n},{n / 10},1\n" for n in range(20))
    (tmp_path / "north.csv").write_text("participant_id,u,v\n" + rows, encoding="utf-8")
    (tmp_path / "south.csv").write_text(
        "participant_id,u,v\n" + rows.replace(",1\n", ",\n", 10), encoding="utf-8"
    )
    site = "{{path: {}.csv, features: [u, v], standardise: none}}"
    config = tmp_path / "own.yaml"
    sites = f"north: {site.format('north')}, south: {site.format('south')}"
    config.write_text(f"data: {{kind: table, sites: {{{sites}}}}}\n", encoding="utf-8")
    return config


def test_exit_codes_are_the_documented_ones():
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "FAILED": 1,
        "CONFIGURATION": 2,
        "REFUSED_BY_PRIVACY": 3,
        "QUORUM_LOST": 4,
        "DATA_NOT_READY": 5,
    }


def test_a_valid_configuration():
    done = run("config", "check", SMOKE)
    assert done.exit_code == 0
    assert "valid; toy data, 3 sites" in done.output


def test_a_configuration_with_problems_names_them_all(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("data: {kind: toy}\nsed: 1\nmodel: {family: vea}\n", encoding="utf-8")
    done = run("config", "check", file)
    assert done.exit_code == 2
    assert "did you mean `seed`" in done.stderr
    assert "did you mean `vae`" in done.stderr
    assert run("config", "check", tmp_path / "none.yaml").exit_code == 2


def test_overrides_and_the_resolved_file():
    done = run("config", "check", SMOKE, "--set", "seed=7", "--resolved")
    assert done.exit_code == 0
    assert "seed: 7\n" in done.output
    assert run("config", "check", SMOKE, "--set", "seed=-7").exit_code == 2


def test_the_schema_is_json():
    assert json.loads(run("config", "schema").output)["title"] == "Experiment"


def test_a_ready_site(tables, tmp_path):
    done = run("data", "check", "--config", tables, "--site", "north", "--cache", tmp_path / "cache")
    assert done.exit_code == 0, done.output
    assert "verdict          ready" in done.output
    assert "20 usable of 20" in done.output


def test_one_site_that_is_not_ready_sets_the_exit_code(tables, tmp_path):
    done = run("data", "check", "--config", tables, "--cache", tmp_path / "cache", "--json")
    assert done.exit_code == 5
    reports = json.loads(done.output)
    assert [(report["name"], report["ready"]) for report in reports] == [("north", True), ("south", False)]


def test_names_of_refused_rows_only_with_details(tables, tmp_path):
    arguments = ("data", "check", "--config", tables, "--site", "south", "--cache", tmp_path / "cache")
    plain, details = run(*arguments), run(*arguments, "--details")
    assert plain.exit_code == details.exit_code == 5
    assert "do not share" in details.output
    assert "do not share" not in plain.output


def test_a_source_that_cannot_be_used_at_all(tables, tmp_path):
    (tmp_path / "north.csv").unlink()
    done = run("data", "check", "--config", tables, "--site", "north", "--cache", tmp_path / "cache")
    assert done.exit_code == 5
    assert "north" in done.stderr


def test_a_site_that_does_not_exist(tables):
    done = run("data", "check", "--config", tables, "--site", "nort")
    assert done.exit_code == 2
    assert "did you mean `north`" in done.stderr


def test_data_that_are_made_need_no_check():
    done = run("data", "check", "--config", SMOKE)
    assert done.exit_code == 2
    assert "nothing to check" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["config", "chek"], ["data", "check"], ["config", "check", "--colour"]]
)
def test_wrong_use_is_a_configuration_error(arguments):
    assert run(*arguments).exit_code == 2


def test_as_a_person_runs_it_without_loading_a_framework():
    """`--help` answers without importing torch or Flower."""
    code = "import sys, deploy.cli; sys.exit(bool({'torch', 'flwr', 'monai', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "deploy", "config", "--help"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "schema" in done.stdout


def test_the_cache_may_be_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert cache_folder() == Path(os.environ["XDG_CACHE_HOME"]) / "federated-vae"
