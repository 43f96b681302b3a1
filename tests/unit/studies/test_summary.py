"""Means, intervals, paired differences, shares of a gap: against hand-made figures."""

import math

import numpy as np
import pytest

from deploy.studies.definition import load_study
from deploy.studies.running import Scores
from deploy.studies.summary import estimate, summarise
from tests.support.toy_studies import write_toy_study


@pytest.fixture
def plan(tmp_path):
    return load_study(write_toy_study(tmp_path))


def _scores(plan, errors, epsilon=0.9):
    """Return figures: the error of each line, plus the seed's number so that pairing shows."""
    made = {}
    for cell in plan.cells:
        results = made.setdefault(cell.run, {})
        value = errors(cell)
        if value is not None:
            results.setdefault(cell.arm, {})["reconstruction"] = {"mse": value}
    return {run: Scores(results=results, epsilon=epsilon, seconds=2.0) for run, results in made.items()}


def _error(cell):
    base = {"mean": 10.0, "federated": 6.0, "loud": 9.0 if cell.epsilon == 1.0 else 7.0, "given": 11.0}
    return base[cell.line] + 100.0 * cell.seed


def _row(summary, line, epsilon=None, group="ten"):
    (found,) = (row for row in summary.rows if (row.group, row.line, row.epsilon) == (group, line, epsilon))
    return found


def test_the_interval_is_students():
    found = estimate([1.0, 2.0, 4.0])
    half = 4.302652729911275 * np.std([1.0, 2.0, 4.0], ddof=1) / math.sqrt(3)
    assert (found.mean, found.num) == (pytest.approx(7 / 3), 3)
    assert (found.low, found.high) == (pytest.approx(7 / 3 - half), pytest.approx(7 / 3 + half))


def test_one_seed_has_no_interval_and_none_no_figure():
    assert math.isinf(estimate([3.0]).high)
    assert estimate([]) is None
    assert estimate([1.0, math.nan]) is None


def test_the_interval_covers_the_mean_of_normal_samples_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = np.mean([e.low <= 0.0 <= e.high for e in (estimate(rng.normal(size=4)) for _ in range(2000))])
    assert 0.93 < covered < 0.97
    normal_width = np.mean([abs(x.mean()) <= 1.96 * x.std(ddof=1) / 2 for x in rng.normal(size=(2000, 4))])
    assert normal_width < 0.9  # the normal interval would not: the check can tell


def test_differences_are_paired_by_seed(plan):
    """Seeds differ by 100, lines by a few: unpaired, nothing could be told apart."""
    found = _row(summarise(plan, _scores(plan, _error)), "loud", 8.0)
    assert found.values[0].high - found.values[0].low > 100
    assert (found.differences[0].mean, found.differences[0].low) == (pytest.approx(-3.0), pytest.approx(-3.0))


def test_the_share_of_the_gap_is_that_of_the_same_seed(plan):
    summary = summarise(plan, _scores(plan, _error))
    assert _row(summary, "loud", 8.0).share.mean == pytest.approx(0.75)
    assert _row(summary, "loud", 1.0).share.mean == pytest.approx(0.25)
    assert _row(summary, "given").share.mean == pytest.approx(-0.25)
    assert _row(summary, "mean").share is None
    assert _row(summary, "federated").share is None


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        (_error, "met"),
        (lambda cell: _error(cell) + (2.5 if cell.line == "loud" else 0.0), "missed"),
        (lambda cell: _error(cell) + (2.0 * (cell.seed - 11) if cell.line == "loud" else 0.0), "open"),
    ],
)
def test_an_aim_is_met_only_if_the_whole_interval_says_so(plan, errors, verdict):
    (outcome,) = summarise(plan, _scores(plan, errors)).outcomes
    assert outcome.verdict == verdict


def test_what_no_run_has_is_missing_not_zero(plan):
    summary = summarise(plan, _scores(plan, lambda cell: None if cell.line == "loud" else _error(cell)))
    assert _row(summary, "loud", 8.0).values == (None, None)
    assert summary.outcomes[0].verdict == "open"


def test_spent_is_of_private_lines_alone(plan):
    summary = summarise(plan, _scores(plan, _error, epsilon=0.9))
    assert _row(summary, "loud", 1.0).spent == 0.9
    assert _row(summary, "mean").spent is None
    assert summary.seconds == 2.0 * len(plan.runs)
