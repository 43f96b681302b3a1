"""What a report refuses to hold, and how it names things."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from server.admission import RejectionCode
from server.report import (
    FEDERATED,
    FEDERATED_DP,
    Attendance,
    Panels,
    RejectedRow,
    SiteCurve,
    alone,
    status_of,
)
from tests.support.reports import image_report, panels, table_report, unprotected_report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds_completed": 31}, r"rounds_completed must be in 0\.\.30, not 31"),
        ({"rounds_completed": -1}, r"rounds_completed must be in 0\.\.30, not -1"),
        ({"sites": ("site-1", "site-1", "site-2", "site-3", "site-4")}, "a site occurs twice"),
        ({"sites": ("site-1", "site-2", "site-3")}, r"participation names unknown sites \['site-4'\]"),
        ({"weights_sha256": "abc"}, "64 hexadecimal digits"),
        ({"simulated": False}, "data of the sites"),
        (
            {"participation": (Attendance(round=1, site="site-1", status="late"),) * 2},
            "names a site twice in one round",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        replace(image_report(), **change)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0])
def test_delta_is_a_probability(delta):
    report = image_report()
    with pytest.raises(ValueError, match="delta must be in"):
        replace(report, privacy=replace(report.privacy, delta=delta))


def test_all_problems_are_said_at_once():
    with pytest.raises(ValueError, match=r"rounds_completed.*; .*weights_sha256"):
        replace(image_report(), rounds_completed=99, weights_sha256="x")


def test_a_real_run_holds_no_loss_of_a_site():
    report = replace(image_report(), simulated=False, curves=(), latents=())
    assert not report.curves
    with pytest.raises(ValueError, match="simulation only"):
        replace(report, curves=(SiteCurve(site="site-1", round=1, reconstruction=1.0, kl=1.0),))


def test_a_stranger_may_be_rejected():
    row = RejectedRow(round=1, site="mallory", reason="wrong-site")
    assert replace(image_report(), rejected=(row,)).rejected == (row,)


def test_arms_come_in_the_order_of_the_table():
    report = table_report(rounds=2)
    assert report.arms[0] == "predict-the-mean"
    assert report.arms[1:18] == tuple(alone(site) for site in report.sites)
    assert report.arms[18:] == ("federated", "federated-dp", "centralised")


def test_the_subject_is_the_private_model_where_there_is_one():
    assert image_report().subject == FEDERATED_DP
    assert unprotected_report().subject == FEDERATED


@pytest.mark.parametrize("name", ["reconstruction", "residual", "zmap", "truth"])
def test_panels_of_other_shapes_are_refused(name):
    good = panels(scans=2)
    with pytest.raises(ValueError, match=f"panels: {name} must have the shape of original"):
        replace(good, **{name: np.zeros((2, 8, 8), np.float32)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ("one",)}, "2 scans need as many labels, not 1"),
        ({"example": 2}, r"example must be in 0\.\.1, not 2"),
        ({"samples": np.zeros((4, 4))}, r"samples must be \[M, H, W\]"),
        ({"traversal_labels": ("a", "b")}, r"traversals must be \[K, T, H, W\] with \(K, T\) = \(2, 7\)"),
    ],
)
def test_panels_with_wrong_captions_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(panels(scans=2), **change)


def test_panels_need_a_scan():
    empty = np.zeros((0, 4, 4), np.float32)
    with pytest.raises(ValueError, match="N >= 1"):
        Panels(original=empty, reconstruction=empty, residual=empty, labels=())


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("no-reply", ("silent", "")),
        ("late", ("late", "")),
        ("site-failed:out-of-memory", ("failed", "out-of-memory")),
        ("not-finite", ("rejected", "not-finite")),
        ("anything: else", ("rejected", "anything: else")),
    ],
)
def test_a_reason_becomes_a_status(reason, expected):
    assert status_of(reason) == expected


def test_admissions_own_codes_are_understood():
    statuses = {code.value: status_of(code.value)[0] for code in RejectionCode}
    assert {code for code, status in statuses.items() if status != "rejected"} == {
        "no-reply",
        "late",
        "site-failed",
        "round-lost",
    }
