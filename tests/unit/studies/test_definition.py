"""The file of a study: which runs it needs, in what order overrides hold, and every problem by name."""

import pytest

from deploy.errors import ConfigError
from deploy.studies.definition import load_study
from tests.support.toy_studies import BASE, STUDY, write_toy_study


@pytest.fixture
def plan(tmp_path):
    return load_study(write_toy_study(tmp_path))


def test_every_combination_is_a_cell(plan):
    assert len(plan.cells) == 2 * (1 + 1 + 2 + 1) * 2
    assert {(cell.line, cell.epsilon) for cell in plan.cells} == {
        ("mean", None), ("federated", None), ("loud", 1.0), ("loud", 8.0), ("given", None),
    }  # fmt: skip


def test_lines_that_differ_in_their_arm_alone_are_one_run(plan):
    """mean, federated and given (in the first group) have one experiment, with all three arms."""
    by_line = {cell.line: cell.run for cell in plan.cells if (cell.group, cell.seed) == ("ten", 11)}
    assert by_line["mean"] == by_line["federated"] == by_line["given"] != by_line["loud"]
    assert set(plan.runs[by_line["mean"]].arms) == {"mean", "federated", "federated-dp"}
    assert len(plan.runs) == 2 * (3 + 4)


def test_overrides_hold_in_order_group_line_within_epsilon_seed(plan):
    def experiment(group, line, epsilon, seed):
        key = next(
            cell.run
            for cell in plan.cells
            if (cell.group, cell.line, cell.epsilon, cell.seed) == (group, line, epsilon, seed)
        )
        return plan.runs[key]

    assert experiment("twenty", "given", None, 11).data.patients_per_site == 20
    assert experiment("twenty", "given", None, 11).privacy.divisor == 8
    assert experiment("ten", "given", None, 11).privacy.divisor == 4
    loud = experiment("ten", "loud", 8.0, 12)
    assert (loud.privacy.epsilon, loud.privacy.noise_multiplier) == (8.0, None)
    assert (loud.seed, loud.data.seed) == (12, 12)


BROKEN = [
    ("against: mean", "against: meen", "against", "no such line; did you mean `mean`"),
    ("{twenty:", "{twnty:", "lines[3].within.twnty", "no such group"),
    ("metric: mse\n  start", "metric: mae\n  start", "gap.metric", "no such metric"),
    ("end: federated", "end: fed", "gap.end", "no such line"),
    ("{group: ten, line: loud", "{group: eleven, line: loud", "gap.aims[0].group", "no such group"),
    ("{group: ten, line: loud", "{group: ten, line: quiet", "gap.aims[0].line", "no such line"),
    ("name: given", "name: mean", "lines[3].name", "earlier line"),
    ("seeds: [11, 12]", "seeds: [11]", "seeds", "at least 2"),
]


@pytest.mark.parametrize(("found", "changed", "path", "rule"), BROKEN, ids=[row[2] for row in BROKEN])
def test_a_broken_rule_is_named(tmp_path, found, changed, path, rule):
    assert found in STUDY
    with pytest.raises(ConfigError) as caught:
        load_study(write_toy_study(tmp_path, STUDY.replace(found, changed)))
    (problem,) = caught.value.problems
    assert problem.path == path
    assert rule in str(problem)


def test_an_experiment_that_cannot_run_is_named_before_any_runs(tmp_path):
    text = STUDY.replace("privacy.divisor=8", "privacy.divisor=-8")
    with pytest.raises(ConfigError, match=r"changed for given in twenty") as caught:
        load_study(write_toy_study(tmp_path, text))
    assert caught.value.problems[0].path == "privacy.divisor"


def test_a_study_can_be_made_smaller_on_the_command_line(tmp_path):
    plan = load_study(write_toy_study(tmp_path), ["seeds=[3, 4, 5]", "groups={ten: []}", "lines.3.within={}"])
    assert plan.study.seeds == (3, 4, 5)
    assert len(plan.cells) == 15


def test_the_experiment_is_found_beside_the_study(tmp_path):
    (tmp_path / "deep").mkdir()
    study = write_toy_study(tmp_path / "deep", STUDY, BASE)
    assert load_study(study).study.experiment == str(tmp_path / "deep" / "base.yaml")
