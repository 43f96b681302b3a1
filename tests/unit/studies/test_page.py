"""The page of a study: what stands on it, and that it fetches and runs nothing."""

import html
import json
import re

import pytest

from deploy.studies.definition import load_study
from deploy.studies.page import render, text_table, to_json, write_study
from deploy.studies.running import Scores
from deploy.studies.summary import summarise
from tests.support.toy_studies import write_toy_study

ERRORS = {"mean": 10.0, "federated": 6.0, "loud": 7.0, "given": 11.0}


@pytest.fixture
def summary(tmp_path):
    plan = load_study(write_toy_study(tmp_path))
    scores = {}
    for cell in plan.cells:
        made = scores.setdefault(cell.run, Scores(results={}, epsilon=7.9, seconds=1.0))
        made.results[cell.arm] = {"reconstruction": {"mse": ERRORS[cell.line] + 0.1 * (cell.seed - 11)}}
    return summarise(plan, scores)


def test_aims_stand_on_top_with_their_outcome(summary):
    page = render(summary)
    assert "loud, ten, epsilon 8: 75 % (75 to 75) of the gap closed; the aim was 50 %: met." in page
    assert page.index("the aim was") < page.index("<table")


def test_text_from_outside_is_escaped_and_nothing_is_fetched(summary):
    page = render(summary)
    assert "Does &lt;b&gt;it&lt;/b&gt; work?" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "default-src 'none'" in html.unescape(page)


def test_the_same_summary_gives_the_same_bytes(summary):
    assert render(summary) == render(summary)


def test_a_metric_without_figures_is_not_available(summary):
    assert "n/a" in render(summary)


def test_the_numbers_are_json_without_infinities(summary, tmp_path):
    page = write_study(summary, tmp_path / "out")
    found = json.loads((page.parent / "study.json").read_text())
    assert found == json.loads(to_json(summary))
    assert found["aims"][0]["verdict"] == "met"
    row = next(row for row in found["rows"] if row["line"] == "loud")
    assert row["values"][0]["mean"] == pytest.approx(7.05)


def test_the_text_table_has_a_row_a_line(summary):
    lines = text_table(summary).splitlines()
    assert sum(line.startswith("| loud | 8 |") for line in lines) == 2
    assert any("7.05" in line and "75 % (75 to 75)" in line for line in lines)
