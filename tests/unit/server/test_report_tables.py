"""Tables and the summary: numbers as people read them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from server.report import MEAN, OWN_PATIENTS, Attendance, ResultRow, alone, summary_text
from server.report.tables import ROUNDS_PER_BLOCK, arm_rows, attendance, comparisons, fates, glance, heads
from server.report.words import count, decimals, interval, listed, number, shortened, shown, small
from tests.support.reports import image_report, table_report, unprotected_report

IMAGE = image_report(rounds=3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "n/a"),
        (math.nan, "n/a"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (0.0, "0"),
        (0.71349, "0.713"),
        (0.5, "0.500"),
        (-0.004481, "−0.00448"),
        (0.00001234, "1.23e-05"),
        (12.345, "12.3"),
        (212.4, "212"),
        (199432.0, "199,432"),
    ],
)
def test_numbers_have_three_digits(value, expected):
    assert number(value) == expected


def test_signs_and_places():
    assert number(0.1, signed=True) == "+0.100"
    assert number(-0.1, signed=True) == "−0.100"
    assert number(0.0, signed=True) == "0"
    assert number(-0.00049, places=3) == "0.000"  # not "−0.000"
    assert number(1234.5, places=1) == "1,234.5"


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (0.1, 3),  # +-0.05   -> 0.xxx
        (0.0012, 5),  # +-0.0006 -> 0.00966
        (30.0, 0),  # +-15
        (3.0, 1),  # +-1.5
    ],
)
def test_decimals_follow_the_interval(width, expected):
    assert decimals([width]) == expected


def test_decimals_without_an_interval_are_unknown():
    assert decimals([]) is None
    assert decimals([0.0, math.nan, math.inf]) is None


def test_words():
    assert interval(None) == "no interval"
    assert interval((0.1, 0.25), places=2) == "0.10 to 0.25"
    assert small(1e-5) == "0.00001"
    assert small(1e-12) == "1.0e−12"
    assert (count(1, "site"), count(1200, "site")) == ("1 site", "1,200 sites")
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(shortened(list("abcdef"), 3)) == "a, b and 4 more"
    assert shown("a\u202eb\x00c\n") == "a\ufffdb\ufffdc\ufffd"
    assert shown("x" * 100, 10) == "x" * 9 + "…"


def rows(metric, **values):
    return tuple(
        ResultRow(arm=arm.replace("_", "-"), task="anomaly", metric=metric, value=value, ci95=None)
        for arm, value in values.items()
    )


@pytest.mark.parametrize(
    ("metric", "winner"), [("auroc", "centralised"), ("mse", "federated"), ("healthiness", None)]
)
def test_the_best_value_is_marked_by_direction(metric, winner):
    table = arm_rows(replace(IMAGE, results=rows(metric, federated=0.6, centralised=0.8, other=math.nan)))
    best = [row.label for row in table if row.cells[0].best]
    named = {"centralised": ["Centralised, no privacy"], "federated": ["Federated, no privacy"], None: []}
    assert best == named[winner]


def test_equal_values_are_both_best_and_a_lone_one_is_not():
    tie = arm_rows(replace(IMAGE, results=rows("auroc", federated=0.6, centralised=0.6)))
    assert [row.cells[0].best for row in tie] == [True, True]
    lone = arm_rows(replace(IMAGE, results=rows("auroc", federated=0.6)))
    assert [row.cells[0].best for row in lone] == [False]


def test_baseline_and_subject_are_marked_once():
    table = arm_rows(IMAGE)
    assert [row.label for row in table if row.baseline] == ["Predict the mean"]
    assert [row.label for row in table if row.subject] == ["Federated with DP"]
    assert all(len(row.cells) == len(heads(IMAGE)) for row in table)


def test_arms_are_named_in_words():
    arms = {alone("NYU"): 0.1, alone(OWN_PATIENTS): 0.2, "novel": 0.3}
    rows_ = tuple(ResultRow(arm=arm, task="t", metric="mse", value=value) for arm, value in arms.items())
    labels = [row.label for row in arm_rows(replace(IMAGE, results=rows_))]
    assert labels == ["NYU alone", "Each site alone, own patients", "novel"]


def test_an_arm_without_a_metric_has_an_empty_cell():
    table = arm_rows(replace(IMAGE, results=rows("auroc", federated=0.6) + rows("mse", centralised=0.1)))
    assert [[cell is None for cell in row.cells] for row in table] == [[False, True], [True, False]]


def test_comparisons_with_the_baseline_come_first():
    outcomes = comparisons(IMAGE)
    against = [MEAN in (row.arm_b,) for row in IMAGE.differences]
    assert sum(against) == 15
    assert all("Predict the mean" in row.label for row in outcomes[:15])
    assert not any("Predict the mean" in row.label for row in outcomes[15:])
    assert {row.outcome for row in outcomes} == {"better", "worse", "unclear", "unknown"}


def test_attendance_comes_in_blocks_with_gaps_shown():
    cells = (
        Attendance(round=1, site="site-1", status="admitted"),
        Attendance(round=ROUNDS_PER_BLOCK + 1, site="site-2", status="failed", detail="timed-out"),
    )
    blocks = attendance(replace(IMAGE, participation=cells))
    assert [len(block.rounds) for block in blocks] == [ROUNDS_PER_BLOCK, 1]
    assert blocks[1].rows[1] == ("site-2", (("failed", "F", "site-2, round 51: failed: timed-out"),))
    assert blocks[1].rows[0] == ("site-1", ((None, "", "site-1, round 51: not asked"),))


def test_every_status_has_its_own_mark():
    from server.report.document import STATUSES
    from server.report.tables import MARKS, MEANINGS

    assert set(MARKS) == set(MEANINGS) == set(STATUSES)
    assert len(set(MARKS.values())) == len(STATUSES)


def test_losses_are_counted_by_site_and_reason():
    cells = (
        *(Attendance(round=n, site="site-1", status="failed", detail="timed-out") for n in (1, 2)),
        Attendance(round=3, site="site-1", status="late"),
        Attendance(round=1, site="site-2", status="silent"),
        Attendance(round=1, site="site-3", status="admitted"),
    )
    assert fates(replace(IMAGE, participation=cells)) == (
        ("site-1", (("failed: timed-out", 2), ("late", 1))),
        ("site-2", (("no answer", 1),)),
    )


def test_a_whole_reason_as_detail_is_not_said_twice():
    cells = (
        Attendance(round=1, site="site-1", status="failed", detail="site-failed:timed-out"),
        Attendance(round=1, site="site-2", status="late", detail="late"),
        Attendance(round=1, site="site-3", status="silent", detail="no-reply"),
        Attendance(round=1, site="site-4", status="rejected", detail="not-finite"),
    )
    assert [reasons for _, reasons in fates(replace(IMAGE, participation=cells))] == [
        (("failed: timed-out", 1),),
        (("late", 1),),
        (("no answer", 1),),
        (("refused: not-finite", 1),),
    ]


def test_at_a_glance():
    assert glance(IMAGE)[1] == ("3 of 3", "rounds completed")
    assert glance(IMAGE)[2][1] == "epsilon (PLD), delta 0.00001"
    assert "no claim" in glance(table_report(rounds=2))[2][1]
    assert glance(unprotected_report())[2] == ("none", "privacy")


def test_the_summary_has_verdict_table_and_path():
    text = summary_text(table_report(rounds=4), Path("runs/abide/report.html"))
    lines = text.splitlines()
    assert lines[0] == "abide: simulation"
    assert lines[1].startswith("! SEEDED SIMULATION: NO PRIVACY CLAIM")
    assert lines[-1] == "Report: runs/abide/report.html"
    assert sum(" alone" in line for line in lines) == 17
    assert "Predict the mean            0.741 [0.678 to 0.808]" in text
    assert all(len(line) < 120 for line in lines if not line.startswith(("-", "!")))


def test_the_summary_of_many_measures_is_cut_and_says_so():
    text = summary_text(IMAGE)
    assert "12 more measures in the report" in text
    assert "AUROC (Z-map, 30 %)" in text
    assert "Report:" not in text


def test_the_summary_of_nothing_is_short():
    text = summary_text(replace(IMAGE, results=(), differences=()))
    assert "Nothing was evaluated" in text
