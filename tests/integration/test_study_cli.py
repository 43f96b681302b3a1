"""A study from the command line: run, gone on with, and refused."""

import json

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from tests.support.toy_studies import STUDY, write_toy_study

SMALL = ["--set", "groups={ten: []}", "--set", "lines.3.within={}", "--set", "lines.2.epsilons=[8]"]


@pytest.fixture
def command(tmp_path):
    path = write_toy_study(tmp_path)

    def run(*arguments, file=path):
        options = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), *arguments]
        return CliRunner().invoke(app, ["study", str(file), *options])

    return run, tmp_path


def test_a_study_runs_once_and_is_read_back(command):
    run, folder = command
    done = run(*SMALL)
    assert done.exit_code == 0, done.output
    assert "| loud | 8 |" in done.output
    found = json.loads((folder / "out" / "study.json").read_text())
    loud = next(row for row in found["rows"] if row["line"] == "loud")
    assert 7.5 < loud["spent"] <= 8.0
    assert loud["values"][0]["num"] == 2
    marks = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("runs/*/scores.json")}
    assert len(marks) == found["num_runs"] == 4
    first, second, *_ = marks
    first.unlink()
    lacking = json.loads(second.read_text())
    lacking["results"].popitem()  # as an earlier study would leave it that asked for fewer arms
    second.write_text(json.dumps(lacking))
    again = run(*SMALL)
    assert "4 runs, 2 finished before" in again.output
    assert json.loads((folder / "out" / "study.json").read_text())["rows"] == found["rows"]
    kept = [path for path, mark in marks.items() if path.stat().st_mtime_ns == mark]
    assert len(kept) == 2


def test_a_dry_run_checks_and_runs_nothing(command):
    run, folder = command
    done = run("--dry-run")
    assert done.exit_code == 0
    assert "20 cells, 14 runs; every experiment is valid" in done.output
    assert not (folder / "out").exists()


def test_what_cannot_run_ends_with_its_exit_code(command):
    run, folder = command
    bad = folder / "bad.yaml"
    bad.write_text(STUDY.replace("arm: federated-dp, epsilons", "arm: federated-pd, epsilons"))
    done = run(file=bad)
    assert done.exit_code == 2
    assert "changed for loud in ten at epsilon 1" in done.output
    assert not (folder / "out").exists()
