"""What is asked of a SuperLink, against a command line of Flower that answers from a script."""

import json
from types import SimpleNamespace

import pytest

from deploy.errors import ExitCode
from deploy.network import command, flower
from deploy.network.flower import CommandLine, RunState, SuperLinkError
from tests.support.federations import deploy, free_ports

EXPERIMENT = """\
name: rehearsal
data: {kind: toy, sites: 3, patients_per_site: 24, features: 6}
model: {family: vae, latent_size: 2, channels: [6], input_shape: [6]}
federation: {rounds: 1}
privacy: {epsilon: 8.0, delta: 1e-3, sampling_probability: 0.25, local_steps: 2, divisor: 6, learning_rate: 0.05}
"""


@pytest.fixture
def line(tmp_path, monkeypatch):
    """A command line, what it was asked, and what it answers."""
    asked, answers = [], {}
    made = CommandLine(SimpleNamespace(folder=tmp_path, command_line=tmp_path))

    def call(*words):
        asked.append(words)
        answer = answers[words[1] if words[0] == "supernode" else words[0]]
        body = answer(words) if callable(answer) else answer
        return SimpleNamespace(stdout=json.dumps({"success": True, **body}), stderr="")

    monkeypatch.setattr(made, "_call", call)
    return made, asked, answers


def test_keys_are_registered_once_changed_ones_anew_and_gone_ones_not_at_all(line, tmp_path):
    made, asked, answers = line
    numbers = iter(range(7, 20))
    answers |= {"register": lambda _: {"node-id": next(numbers)}, "unregister": {}}
    keys = {site: tmp_path / f"{site}.pub" for site in ("north", "south")}
    for file in keys.values():
        file.write_text(f"ecdsa {file.stem}")
    assert made.register(keys) == made.register(keys) == {"north": "7", "south": "8"}
    assert [words[1] for words in asked] == ["register", "register"]
    keys.pop("south")
    keys["north"].write_text("ecdsa another")
    asked.clear()
    assert made.register(keys) == made.registered() == {"north": "9"}
    assert [(words[1], words[2]) for words in asked] == [
        ("unregister", "7"), ("unregister", "8"), ("register", str(keys["north"])),
    ]  # fmt: skip


def _states(*states):
    left = list(states)
    return lambda _: {"runs": [{"run-id": 5, "status": left.pop(0), "status-details": ""}]}


def test_a_run_is_asked_for_seldom_and_at_once_when_it_has_told_its_outcome(line, monkeypatch):
    made, asked, answers = line
    now = [0.0]
    clock = SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds)
    )
    monkeypatch.setattr(flower, "time", clock)
    answers["ls"] = _states(*["running"] * 8, "finished:completed")
    seen = []
    ended = made.wait("5", lambda state: seen.append(state.status), lambda: now[0] > 40)
    assert ended.has_ended
    assert seen == ["running", "finished:completed"]
    assert now[0] < 43, "asked again as soon as there was an outcome"
    assert len(asked) == 9


def test_where_nobody_answers_the_way_out_is_named(line):
    made, _, answers = line
    answers["ls"] = {
        "success": False,
        "error-message": "Using SuperLink: centre\n\nConnection to the SuperLink is unavailable. Please",
    }
    with pytest.raises(SuperLinkError, match="does not answer; start it: `python -m deploy serve`"):
        made.runs()


def test_a_submission_that_reaches_nobody_makes_and_forgets_nothing(tmp_path):
    project = tmp_path / "p"
    (tmp_path / "e.yaml").write_text(EXPERIMENT)
    port = str(free_ports(10))
    deploy("init", project, "--config", tmp_path / "e.yaml", "--no-front", "--port", port)
    results = tmp_path / "results"
    results.mkdir()
    (results / "outcome.json").write_text("{}")
    there = project / "centre" / "centre.yaml"
    for out in (results, tmp_path / "new"):
        done = deploy("submit", "--centre", there, "--out", out, project / "experiment.yaml", check=False)
        assert done.returncode == ExitCode.FAILED
        assert "start it: `python -m deploy serve`" in done.stderr
    assert (results / "outcome.json").read_text() == "{}"
    assert not (tmp_path / "new").exists()


def test_a_run_that_nobody_knows_is_named(line):
    made, _, answers = line
    answers["ls"] = _states("running")
    with pytest.raises(SuperLinkError, match="run 6: the SuperLink does not know it"):
        made.run("6")


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [
        ("finished:completed", {"ended": "done", "weights": "ab"}, ExitCode.DONE),
        ("finished:failed", {"ended": "quorum-lost", "message": "too few"}, ExitCode.QUORUM_LOST),
        ("finished:failed", {"ended": "failed", "message": "no answer"}, ExitCode.FAILED),
        ("finished:stopped", None, ExitCode.FAILED),
        ("finished:completed", None, ExitCode.FAILED),
    ],
)
def test_the_exit_code_is_of_this_runs_outcome(tmp_path, capsys, status, told, code):
    if told is not None:
        (tmp_path / "outcome.json").write_text(json.dumps(told))
    run = RunState(run_id="5", status=status, details="stopped by hand")
    assert command._conclude(run, tmp_path, tmp_path / "centre.yaml") == code
    if code is not ExitCode.DONE:
        said = capsys.readouterr().err
        assert (told or {}).get("message", "stopped by hand") in said
        assert f"deploy logs 5 --centre {tmp_path / 'centre.yaml'}" in said
