"""The verdict says what the numbers show and no more, above all when the news is bad."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.report import (
    CENTRALISED,
    FEDERATED,
    FEDERATED_DP,
    MEAN,
    Attendance,
    DifferenceRow,
    MetricFacts,
    RejectedRow,
    ResultRow,
    banner,
    cautions,
    verdict,
)
from server.report.measures import HEALTHINESS, PARITY, compare, degrees, measure, primary
from server.report.promise import claim_of, up
from server.report.verdict import findings
from tests.support.reports import image_report, table_report, unprotected_report

BASE = image_report(rounds=3)


def with_difference(value, ci95, *, metric="auroc", report=BASE, values=(0.7, 0.6), flip=False):
    """Return a report with one metric, and the difference of the private model to the mean."""
    private, mean = values
    arms = (MEAN, FEDERATED_DP) if flip else (FEDERATED_DP, MEAN)
    return replace(
        report,
        primary=None,
        results=(
            ResultRow(arm=FEDERATED_DP, task="anomaly", metric=metric, value=private, ci95=(0.65, 0.75)),
            ResultRow(arm=MEAN, task="anomaly", metric=metric, value=mean, ci95=(0.55, 0.65)),
        ),
        differences=(
            DifferenceRow(
                arm_a=arms[0], arm_b=arms[1], task="anomaly", metric=metric, value=value, ci95=ci95
            ),
        ),
    )


def refusing(*rows, cap=3.0):
    """Return a report in which some sites had no budget left: rows of (round, site)."""
    privacy = replace(BASE.privacy, per_site=tuple(replace(row, cap=cap) for row in BASE.privacy.per_site))
    refused = tuple(
        Attendance(round=number, site=site, status="failed", detail="budget-exhausted")
        for number, site in rows
    )
    taken = {(row.round, row.site) for row in refused}
    others = tuple(row for row in BASE.participation if (row.round, row.site) not in taken)
    return replace(BASE, privacy=privacy, participation=(*others, *refused))


def said(report):
    return " ".join(verdict(report))


# --- does it beat the baseline? -------------------------------------------------------------------------------


def test_better_than_the_mean_is_said_with_its_figures():
    text = said(with_difference(0.1, (0.05, 0.15)))
    assert "The federated model with differential privacy beats predicting the mean image on AUROC." in text
    # width 0.10, half of it 0.05: two digits of that are three decimals
    assert "AUROC: 0.700 against 0.600, difference +0.100 (+0.050 to +0.150)." in text


def test_worse_than_the_mean_is_said_as_plainly():
    report = with_difference(0.012, (0.008, 0.016), metric="mse", values=(0.023, 0.011))
    text = said(report)
    assert "ends worse than predicting the mean image on mean squared error." in text
    assert "beats" not in text
    assert [finding.tone for finding in findings(report) if "ends worse" in finding.text] == ["bad"]


def test_an_interval_with_zero_is_no_difference_and_no_equality():
    text = said(with_difference(0.03, (-0.01, 0.07)))
    assert "shows no clear difference from predicting the mean image" in text
    assert "beats" not in text
    assert "equal" not in text


@pytest.mark.parametrize("ci95", [None, (math.nan, 0.2), (0.1, math.inf)])
def test_without_a_usable_interval_nothing_is_judged(ci95):
    text = said(with_difference(0.1, ci95))
    assert "has not been compared, with an interval, to predicting the mean image" in text
    assert "beats" not in text


def test_without_a_difference_nothing_is_judged():
    report = replace(with_difference(0.1, (0.05, 0.15)), differences=())
    assert "has not been compared" in said(report)


def test_a_difference_given_the_other_way_round_means_the_same():
    # mean - private = -0.1 (-0.15 to -0.05)  <=>  private - mean = +0.1 (+0.05 to +0.15)
    assert said(with_difference(-0.1, (-0.15, -0.05), flip=True)) == said(with_difference(0.1, (0.05, 0.15)))


def test_a_table_has_no_mean_image():
    report = with_difference(0.3, (0.2, 0.4), metric="mse", report=table_report(rounds=2))
    assert "ends worse than predicting the mean on" in said(report)
    assert "image" not in said(report)


def test_a_metric_without_direction_is_never_judged():
    text = said(with_difference(0.1, (0.05, 0.15), metric="healthiness"))
    assert "beats" not in text
    assert "worse" not in text


def test_drawing_well_is_not_detecting():
    report = with_difference(0.01, (-0.05, 0.07))
    better = with_difference(-0.01, (-0.02, -0.005), metric="mse")
    both = replace(
        report, results=report.results + better.results, differences=report.differences + better.differences
    )
    assert "drawing well is not detecting" in said(both)
    assert "drawing well is not detecting" not in said(report)


def test_a_coin_toss_is_called_one():
    report = with_difference(0.1, (0.05, 0.15))
    coin = replace(report, results=(replace(report.results[0], ci95=(0.46, 0.58)), report.results[1]))
    assert "not clearly better than a coin toss on AUROC" in said(coin)
    below = replace(report, results=(replace(report.results[0], ci95=(0.3, 0.4)), report.results[1]))
    assert "not clearly better than a coin toss" in said(below)
    assert "coin toss" not in said(report)


def test_the_price_of_privacy_and_of_federation():
    report = with_difference(0.1, (0.05, 0.15))
    gaps = [
        DifferenceRow(
            arm_a=FEDERATED_DP,
            arm_b=FEDERATED,
            task="anomaly",
            metric="auroc",
            value=-0.08,
            ci95=(-0.1, -0.06),
        ),
        DifferenceRow(
            arm_a=CENTRALISED,
            arm_b=FEDERATED_DP,
            task="anomaly",
            metric="auroc",
            value=0.01,
            ci95=(-0.02, 0.04),
        ),
    ]
    text = said(replace(report, differences=(*report.differences, *gaps)))
    assert "On AUROC it is worse than the same training without noise." in text
    assert "On AUROC it is not clearly different from training on all data in one place." in text


def test_many_measures_are_counted_and_the_bad_ones_named_with_figures():
    report = image_report(rounds=3)
    worse = tuple(
        replace(row, value=0.01, ci95=(0.005, 0.015))
        if row.metric == "mse_brain" and row.arm_b == MEAN
        else row
        for row in report.differences
    )
    text = said(replace(report, differences=worse))
    assert "It ends worse than predicting the mean image on mean squared error (in the brain)." in text
    assert re.search(r"beats predicting the mean image on \d+ other measures: .* and \d more\.", text)


@given(
    value=st.floats(-1, 1),
    low=st.floats(-1, 1),
    high=st.floats(-1, 1),
    metric=st.sampled_from(["auroc", "mse", "dice_30", "healthiness", "unheard_of"]),
)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_beats_and_worse_only_where_the_interval_excludes_zero(value, low, high, metric):
    ci95 = (min(low, high), max(low, high))
    text = said(with_difference(value, ci95, metric=metric))
    sign = {"auroc": 1, "dice_30": 1, "mse": -1}.get(metric, 0)
    excludes = ci95[0] > 0 or ci95[1] < 0
    assert ("beats predicting" in text) == (excludes and sign * ci95[0] > 0)
    assert ("ends worse" in text) == (excludes and sign * ci95[0] < 0)


@pytest.mark.parametrize(
    ("ci95", "better", "expected"),
    [
        ((0.1, 0.2), "higher", "better"),
        ((0.1, 0.2), "lower", "worse"),
        ((-0.2, -0.1), "lower", "better"),
        ((-0.2, -0.1), "higher", "worse"),
        ((0.0, 0.2), "higher", "unclear"),
        ((-0.1, 0.0), "lower", "unclear"),
        ((0.1, 0.2), "neither", "unknown"),
        (None, "higher", "unknown"),
    ],
)
def test_compare(ci95, better, expected):
    assert compare(0.1, ci95, better) == expected


# --- how private is it? ---------------------------------------------------------------------------------------


def with_privacy(report=BASE, **sites):
    """Return a report whose sites have other facts: site_1={"claim": "none"}."""
    rows = tuple(replace(row, **sites.get(row.site.replace("-", "_"), {})) for row in report.privacy.per_site)
    return replace(report, privacy=replace(report.privacy, per_site=rows))


def test_a_promise_is_made_for_the_site_that_spent_most():
    report = with_privacy(site_3={"epsilon_pld": 6.7691, "epsilon_rdp": 7.3285})
    text = said(report)
    # e^6.7691 = 870.6; every rounded bound is rounded up
    assert "for every patient, epsilon is at most 6.77 (delta = 0.00001)" in text
    assert "by a factor of at most 871" in text
    assert "except with a probability of 1 in 100,000" in text
    assert "RDP accountant gives 7.33. Most was spent at site-3." in text
    assert banner(report) is None


@given(st.floats(1e-6, 1e6))
@settings(deadline=None, derandomize=True)
def test_a_rounded_bound_is_still_a_bound(bound):
    shown = float(up(bound).replace(",", ""))
    assert shown >= bound * (1 - 1e-6)
    assert shown <= bound + (0.011 if bound < 100 else 1.0)


@pytest.mark.parametrize(
    "report", [image_report(claim="seeded", rounds=3), with_privacy(site_2={"claim": "seeded"})]
)
def test_seeded_noise_makes_no_claim(report):
    assert claim_of(report) == "seeded"
    assert "SEEDED SIMULATION: NO PRIVACY CLAIM" in banner(report).text
    assert "No privacy claim is made" in said(report)
    assert "taking part changes the odds" not in said(report)
    assert "with differential privacy" not in said(report)


@pytest.mark.parametrize(
    "report",
    [
        unprotected_report(),
        with_privacy(site_2={"claim": "none"}),
        replace(BASE, privacy=replace(BASE.privacy, per_site=())),
    ],
)
def test_no_noise_is_no_privacy(report):
    assert claim_of(report) == "none"
    assert banner(report).tone == "bad"
    assert "No privacy is promised to anyone" in said(report)
    assert "taking part changes the odds" not in said(report)


def test_a_large_epsilon_is_not_sold_as_a_promise():
    report = with_privacy(site_1={"epsilon_pld": 50.0, "epsilon_rdp": 55.0})
    assert "more than a million" in said(report)
    assert "promises little" in said(report)
    assert "promises little" not in said(BASE)


def test_an_infinite_epsilon_is_not_a_promise():
    report = with_privacy(site_1={"epsilon_pld": math.inf})
    assert "report no finite epsilon" in said(report)


def test_the_unit_is_said_and_a_record_is_no_patient():
    report = replace(BASE, privacy=replace(BASE.privacy, unit="record"))
    assert "for every record" in said(report)
    assert "a patient with several scans is protected less" in said(report)


def test_accountants_that_disagree_are_reported():
    report = with_privacy(site_2={"epsilon_pld": 2.0, "epsilon_rdp": 1.9})
    assert "The two accountants disagree" not in said(BASE)
    assert "The two accountants disagree" in said(report)


def test_rdp_stands_in_for_a_missing_pld():
    report = with_privacy(**{f"site_{n}": {"epsilon_pld": None} for n in range(1, 5)})
    assert "epsilon is at most" in said(report)
    assert "PLD" not in said(report)
    assert "By the RDP accountant. Most was spent at" in said(report)


def test_a_site_without_any_epsilon_spoils_the_promise():
    report = with_privacy(site_2={"epsilon_pld": None, "epsilon_rdp": None})
    assert "report no finite epsilon" in said(report)
    assert "epsilon is at most" not in said(report)


# --- who, how long, what was lost -----------------------------------------------------------------------------


def test_who_trained_what():
    assert said(BASE).startswith(
        "4 simulated sites (site-1, site-2, site-3, site-4) trained a beta-VAE with 199,432 parameters together"
    )
    real = replace(BASE, simulated=False, curves=(), latents=())
    assert said(real).startswith("4 hospitals (")
    assert said(table_report(rounds=2)).startswith("17 simulated sites trained a variational autoencoder")


def test_a_run_that_stopped_early_is_bad_news():
    report = replace(BASE, rounds_planned=30)
    assert "but stopped after 3 of 30 planned rounds" in said(report)
    assert findings(report)[0].tone == "bad"


def test_losses_and_refusals_are_counted_by_name():
    cells = tuple(
        Attendance(round=1, site=site, status=status)
        for site, status in zip(BASE.sites, ("admitted", "rejected", "late", "silent"), strict=True)
    )
    rows = (
        RejectedRow(round=1, site="site-2", reason="not-finite"),
        RejectedRow(round=1, site="site-3", reason="late"),
        RejectedRow(round=1, site="site-4", reason="no-reply"),
    )
    text = said(replace(BASE, participation=cells, rejected=rows))
    assert "3 of 4 contributions were lost (1 rejected, 1 late, 1 without an answer)." in text
    assert "1 update refused before aggregation, so not in the model: site-2 (1)." in text


def test_nothing_lost_is_not_mentioned():
    text = said(replace(BASE, participation=(), rejected=()))
    assert "lost" not in text
    assert "refused" not in text


def test_nothing_evaluated_is_said():
    assert "Nothing was evaluated" in said(replace(BASE, results=(), differences=()))


# --- what the numbers do not show -----------------------------------------------------------------------------


def test_cautions_stand_where_their_metric_is_shown():
    assert PARITY in cautions(with_difference(0.1, (0.0, 0.2), metric="mse"))
    assert HEALTHINESS in cautions(with_difference(0.1, (0.0, 0.2), metric="healthiness_truth"))
    assert not {PARITY, HEALTHINESS} & set(cautions(with_difference(0.1, (0.0, 0.2))))
    assert any("synthetic" in text for text in cautions(BASE))
    assert not any("synthetic" in text for text in cautions(table_report(rounds=2)))
    assert any("about one in twenty" in text for text in cautions(BASE))
    assert any("each hospital sees only its own" in text for text in cautions(BASE))
    assert any("seed 7" in text for text in cautions(BASE))


def test_a_metric_of_ones_own_needs_its_facts():
    report = with_difference(0.1, (0.05, 0.15), metric="glow")
    assert "beats" not in said(report)
    facts = MetricFacts(name="glow", label="glow", better="higher", caution="Glow is not gold.")
    assert "beats predicting the mean image on glow" in said(replace(report, metrics=(facts,)))
    assert "Glow is not gold." in cautions(replace(report, metrics=(facts,)))


@pytest.mark.parametrize(
    ("metric", "label", "better"),
    [
        ("auroc", "AUROC", "higher"),
        ("auroc_zmap_30", "AUROC (Z-map, 30 %)", "higher"),
        ("auroc_mse", "AUROC (squared error)", "higher"),
        ("auroc_residual_within_site", "AUROC (residual, within a site)", "higher"),
        ("mse_brain", "mean squared error (in the brain)", "lower"),
        ("dice_5", "Dice overlap (5 %)", "higher"),
        ("healthiness_truth", "healthiness (truth)", "neither"),
        ("mysterious_number", "mysterious number", "neither"),
    ],
)
def test_metrics_have_names_and_directions(metric, label, better):
    facts = measure(BASE, metric)
    assert (facts.label, facts.better) == (label, better)


def test_the_primary_metric_is_the_one_asked_for_else_a_detection():
    assert primary(BASE) == ("anomaly", "auroc_zmap_30")
    assert primary(replace(BASE, primary=("no", "such"))) == ("anomaly", "auroc_zmap_5")
    assert primary(replace(BASE, primary=None, results=())) is None


def test_families_by_degree():
    families = degrees(BASE)
    assert set(families) == {("anomaly", "auroc_zmap"), ("anomaly", "dice")}
    assert [degree for degree, _ in families["anomaly", "dice"]] == [5.0, 10.0, 30.0, 50.0, 70.0]


@pytest.mark.parametrize("report", [BASE, table_report(rounds=2), unprotected_report()])
def test_nobody_is_called_anonymous(report):
    text = " ".join((*verdict(report), *cautions(report))).lower()
    assert "anonym" not in text
    assert "guarantee" not in text


# --- budgets --------------------------------------------------------------------------------------------------


def test_who_refused_for_want_of_budget_is_named_with_the_first_such_round_and_the_cap():
    first, second = BASE.sites[:2]
    text = said(refusing((3, first), (2, first), (3, second)))
    assert (
        "Refused to train further, because it would have cost a patient more than allowed: "
        f"{first} (round 2, its cap is 3), {second} (round 3, its cap is 3)." in text
    )
    assert "no data are opened, and nothing is spent" in text
    assert f"{first} (round 2)." in said(refusing((2, first), cap=None))


def test_another_failure_is_no_refusal_of_a_budget():
    assert "more than allowed" not in said(BASE)
    assert "more than allowed" not in said(unprotected_report())
