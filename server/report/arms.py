"""Plots of results: every arm with its interval, and by degree of the disease.

Colour is never the only carrier of meaning: arms have names, markers and line styles of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from server.report.canvas import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    VERMILION,
    WIDTH,
    canvas,
    finite,
    svg,
)
from server.report.document import (
    ALONE,
    CENTRALISED,
    FEDERATED,
    FEDERATED_DP,
    MEAN,
    SITE_MEAN,
    WARM_START,
    Report,
    ResultRow,
)
from server.report.measures import arm_label, column_label, columns, degrees, measure
from server.report.words import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    MEAN: MUTED,
    SITE_MEAN: MUTED,
    WARM_START: PURPLE,
    FEDERATED: GREEN,
    FEDERATED_DP: BLUE,
    CENTRALISED: ORANGE,
}
_MARKERS = {MEAN: "D", SITE_MEAN: "v", WARM_START: "^", FEDERATED: "o", FEDERATED_DP: "o", CENTRALISED: "s"}


def forest(report: Report, *, only: tuple[str, str] | None = None) -> str:
    """Return dots with 95 % intervals: one panel a metric, one line an arm, the baseline dashed.

    Args:
        report: With at least one result.
        only: Draws this (task, metric) alone, narrower, for the head of the page.
    """
    pairs = (only,) if only else charted(report)
    across = min(3, len(pairs))
    down = math.ceil(len(pairs) / across)
    height = 0.24 * len(report.arms) + 0.75
    with canvas(report, 5.9 if only else WIDTH, down * height) as figure:
        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        for axes, pair in zip(grid.flat, pairs, strict=False):
            _forest_panel(axes, report, *pair)
        for axes in grid.flat[len(pairs) :]:
            axes.set_visible(False)
    return svg(figure)


def severity(report: Report) -> str:
    """Return one panel a family of metrics: how well each arm does, by degree of the disease.

    Raises:
        ValueError: no metric is known at three degrees.
    """
    families = degrees(report)
    if not families:
        raise ValueError("no metric is known at three degrees of disease")
    across = min(3, len(families))
    down = math.ceil(len(families) / across)
    with canvas(report, WIDTH, 2.9 * down + 0.35) as figure:
        grid = figure.subplots(down, across, squeeze=False)
        for axes, ((task, stem), family) in zip(grid.flat, families.items(), strict=False):
            _severity_panel(axes, report, task, family)
            axes.set_title(shown(column_label(report, task, stem), 46))
        for axes in grid.flat[len(families) :]:
            axes.set_visible(False)
        lines, names = grid.flat[0].get_legend_handles_labels()
        figure.legend(lines, names, loc="outside lower center", ncols=6)
    return svg(figure)


def charted(report: Report) -> tuple[tuple[str, str], ...]:
    """Return the metrics that `forest` draws: all but those that `severity` draws as curves."""
    curves = {(task, metric) for (task, _), family in degrees(report).items() for _, metric in family}
    rest = tuple(pair for pair in columns(report) if pair not in curves)
    return rest or columns(report)


def _forest_panel(axes: Axes, report: Report, task: str, metric: str) -> None:
    """Draw the arms of one metric."""
    rows = {row.arm: row for row in report.results if (row.task, row.metric) == (task, metric)}
    facts = measure(report, metric)
    for place, arm in enumerate(report.arms):
        if arm in rows and math.isfinite(rows[arm].value):
            _dot(axes, rows[arm], place, strong=arm == report.subject)
        else:
            axes.annotate("n/a", (0.5, place), xycoords=("axes fraction", "data"), va="center", color=MUTED)
    if MEAN in rows and math.isfinite(rows[MEAN].value):
        axes.axvline(rows[MEAN].value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    if facts.chance is not None:
        axes.axvline(facts.chance, color=VERMILION, linewidth=0.9, linestyle=":", zorder=1)
    better = {"higher": "right is better", "lower": "left is better", "neither": "no better or worse"}[
        facts.better
    ]
    axes.set_title(shown(column_label(report, task, metric), 46))
    axes.set_xlabel(
        better + (", dotted: coin toss" if facts.chance is not None else ""), color=MUTED, fontsize=8
    )
    axes.set_yticks(range(len(report.arms)), [shown(arm_label(report, arm), 30) for arm in report.arms])
    axes.set_ylim(len(report.arms) - 0.5, -0.5)
    axes.grid(visible=True, axis="x")
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=5)
    for label, arm in zip(axes.get_yticklabels(), report.arms, strict=False):
        label.set_color(INK)
        label.set_fontweight("bold" if arm == report.subject else "normal")


def _severity_panel(axes: Axes, report: Report, task: str, family: Sequence[tuple[float, str]]) -> None:
    """Draw one curve an arm, with the intervals of the baseline and of the model that the report is about."""
    facts = measure(report, family[0][1])
    rows = {(row.arm, row.metric): row for row in report.results if row.task == task}
    for arm in report.arms:
        known = [(degree, rows[arm, name]) for degree, name in family if (arm, name) in rows]
        places, values = [degree for degree, _ in known], [finite(row.value, math.nan) for _, row in known]
        single = arm.startswith(ALONE)
        look: dict[str, Any] = {"color": "#c3ccd4" if single else _COLOURS.get(arm, INK)}
        look |= {"linewidth": 2.2 if arm == report.subject else 1.0 if single else 1.5}
        look |= {"linestyle": {MEAN: "--", SITE_MEAN: ":"}.get(arm, "-"), "zorder": 1 if single else 3}
        first = single and not any(line.get_label() == "Each site alone" for line in axes.lines)
        label = "Each site alone" if first else "_" if single else arm_label(report, arm)
        axes.plot(
            places, values, marker="" if single else _MARKERS.get(arm, "o"), markersize=4, label=label, **look
        )
        if arm in (MEAN, report.subject) and all(row.ci95 for _, row in known):
            low, high = zip(*(row.ci95 for _, row in known if row.ci95), strict=True)
            axes.fill_between(places, low, high, color=look["color"], alpha=0.14, linewidth=0)
    if facts.chance is not None:
        axes.axhline(facts.chance, color=VERMILION, linewidth=0.9, linestyle=":", zorder=1)
    better = {"higher": "higher is better", "lower": "lower is better", "neither": ""}[facts.better]
    toss = ", dotted: coin toss" if facts.chance is not None else ""
    axes.set_xlabel(f"degree of the disease [%]  ({better}{toss})", fontsize=8)
    axes.grid(visible=True)


def _dot(axes: Axes, row: ResultRow, place: int, *, strong: bool) -> None:
    """Draw one value with its interval."""
    colour = "#8a96a3" if row.arm.startswith(ALONE) else _COLOURS.get(row.arm, INK)
    if row.ci95 is not None and all(math.isfinite(edge) for edge in row.ci95):
        axes.plot(
            row.ci95, (place, place), color=colour, linewidth=3.0 if strong else 1.8, solid_capstyle="butt"
        )
    size = 6.5 if strong else 5.0
    axes.plot(
        row.value, place, _MARKERS.get(row.arm, "o"), color=colour, markersize=size, markeredgecolor="white"
    )
