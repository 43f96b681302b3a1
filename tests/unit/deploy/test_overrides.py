"""Values from the command line."""

import pytest

from deploy.config import load_experiment
from deploy.documents import parse
from deploy.errors import ConfigError
from deploy.overrides import apply_overrides

TEXT = "seed: 1\nfederation: {rounds: 3}\narms: [mean, local]\nprivacy: null\n"


def applied(*overrides):
    document, problems = apply_overrides(parse(TEXT), overrides)
    assert problems == []
    return document.value


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=2", ("seed",), 2),
        ("federation.rounds=5", ("federation", "rounds"), 5),
        ("training.learning_rate=1e-4", ("training", "learning_rate"), 1e-4),
        ("faults.site-2.rounds=[1, 2]", ("faults", "site-2", "rounds"), [1, 2]),
        ("privacy={epsilon: 2}", ("privacy",), {"epsilon": 2}),
        ("privacy.epsilon=2", ("privacy", "epsilon"), 2),
        ("arms.1=federated", ("arms", 1), "federated"),
        ("name=", ("name",), None),
        ("name=a=b", ("name",), "a=b"),
        (" seed = 4", ("seed",), 4),
    ],
)
def test_values_are_put_in_place(override, path, value):
    found = applied(override)
    for part in path:
        found = found[part]
    assert found == value


def test_the_last_one_wins_and_the_document_stays():
    document = parse(TEXT)
    changed, _ = apply_overrides(document, ["seed=2", "seed=3"])
    assert changed.value["seed"] == 3
    assert document.value["seed"] == 1


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=3", ""])
def test_what_is_no_override(override):
    (problem,) = apply_overrides(parse(TEXT), [override])[1]
    assert "key=value" in problem.rule


@pytest.mark.parametrize("override", ["seed.x=3", "arms.7=mean", "arms.x=mean"])
def test_a_path_that_leads_nowhere(override):
    (problem,) = apply_overrides(parse(TEXT), [override])[1]
    assert problem.path == override.partition("=")[0]
    assert "leads" in problem.rule


@pytest.mark.parametrize("text", ["010", "[1", ".nan", "!!str x", "{a: 1, a: 2}"])
def test_values_follow_the_rules_of_the_file(text):
    (problem, *_) = apply_overrides(parse(TEXT), [f"seed={text}"])[1]
    assert (problem.path, problem.where) == ("seed", "--set")


def test_problems_of_an_override_say_that_it_came_from_the_command_line(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("data: {kind: toy}\nfederation: {rounds: 3, quorum: 0.5}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_experiment(file, ["federation.rounds=-3", "federation.quorum=77", "oops"])
    found = {(problem.where, problem.path) for problem in caught.value.problems}
    assert found == {("--set", "federation.rounds"), ("--set", "")}
    with pytest.raises(ConfigError) as caught:
        load_experiment(file, ["federation.quorum=77", "sed=1"])
    assert {(problem.where, problem.path) for problem in caught.value.problems} == {
        ("--set", "federation.quorum"),
        ("--set", "sed"),
    }
