"""How well a run's model does with and without noise, from the `report.json` beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.audit.document import Cost, Utility, UtilityRow
from server.report.document import (
    FEDERATED,
    FEDERATED_DP,
    MEAN,
    WARM_START,
    DifferenceRow,
    Interval,
    ModelFacts,
    PrivacyFacts,
    Report,
    ResultRow,
    SitePrivacy,
    Timings,
)
from server.report.measures import arm_label, column_label, columns, compare, difference, measure

_ARMS = (MEAN, WARM_START, FEDERATED, FEDERATED_DP)
MAX_MEASURES = 6


def read_utility(path: Path) -> Utility | None:
    """Return what a run's report says of the arms that matter here; None if there is none, or it says nothing.

    Args:
        path: Of `report.json`.
    """
    try:
        report = _report_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    pairs = columns(report)[:MAX_MEASURES]
    rows = tuple(
        UtilityRow(
            arm=arm_label(report, arm),
            measure=column_label(report, task, metric),
            value=row.value,
            low=None if row.ci95 is None else row.ci95[0],
            high=None if row.ci95 is None else row.ci95[1],
        )
        for task, metric in pairs
        for arm in _ARMS
        for row in report.results
        if (row.arm, row.task, row.metric) == (arm, task, metric)
    )
    costs = tuple(cost for task, metric in pairs if (cost := _cost(report, task, metric)) is not None)
    return Utility(rows=rows, costs=costs) if rows else None


def _cost(report: Report, task: str, metric: str) -> Cost | None:
    """Return what noise costs in a measure, None if the report does not compare the two arms."""
    found = difference(report, FEDERATED_DP, FEDERATED, task, metric)
    if found is None:
        return None
    value, ci95 = found
    return Cost(
        measure=column_label(report, task, metric),
        value=value,
        low=None if ci95 is None else ci95[0],
        high=None if ci95 is None else ci95[1],
        outcome=compare(value, ci95, measure(report, metric).better),
    )


def _report_of(document: Mapping[str, Any]) -> Report:
    """Return as much of a report as its measures need."""
    results = [row for row in document["results"] if row["value"] is not None]
    differences = [row for row in document["differences"] if row["value"] is not None]
    claims = [row["claim"] for row in document["privacy"]["per_site"]]
    return Report(
        name="audit",
        created="",
        seed=0,
        engine="",
        rounds_planned=0,
        rounds_completed=0,
        sites=tuple(str(index) for index in range(len(claims))),
        model=ModelFacts(family="", parameters=0, latent_size=1, input_shape=(1,), sharing="all"),
        privacy=PrivacyFacts(
            unit="patient",
            delta=0.5,
            per_site=tuple(
                SitePrivacy(site=str(index), epsilon_rdp=None, epsilon_pld=None, steps=0, claim=claim)
                for index, claim in enumerate(claims)
            ),
        ),
        results=tuple(
            ResultRow(
                arm=row["arm"],
                task=row["task"],
                metric=row["metric"],
                value=float(row["value"]),
                ci95=_interval(row["ci95"]),
            )
            for row in results
        ),
        differences=tuple(
            DifferenceRow(
                arm_a=row["arm_a"],
                arm_b=row["arm_b"],
                task=row["task"],
                metric=row["metric"],
                value=float(row["value"]),
                ci95=_interval(row["ci95"]),
            )
            for row in differences
        ),
        timings=Timings(wall_s=0, train_cpu_s=0, overhead_s_per_round=0),
        synthetic=False,
        data_note="",
        weights_sha256=None,
    )


def _interval(ci95: Any) -> Interval | None:  # noqa: ANN401 - JSON
    """Return an interval that is one."""
    if not isinstance(ci95, list) or any(edge is None for edge in ci95):
        return None
    low, high = ci95
    return float(low), float(high)
