"""The frontier of a study: error against epsilon, a curve a line, with intervals; yardsticks as horizontal lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploy.studies.summary import Row, Summary
from server.report.canvas import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, VERMILION, WIDTH, canvas, svg

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, "#7a5c00", "#00698a", "#9c2c77")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)))
PANELS_ACROSS = 3


def frontier(summary: Summary) -> str:
    """Return a panel a group: the first metric by epsilon, with 95 % intervals over seeds.

    Args:
        summary: Of the study.
    """
    groups = list(summary.study.groups)
    across = min(PANELS_ACROSS, len(groups))
    down = math.ceil(len(groups) / across)
    with canvas(summary, WIDTH, 3.9 * down + 0.9) as figure:
        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        for axes, group in zip(grid.flat, groups, strict=False):
            _panel(axes, summary, group)
        for axes in grid.flat[len(groups) :]:
            axes.set_visible(False)
        grid.flat[0].set_ylabel(summary.study.metrics[0].label)
        marks: dict[str, Artist] = {}
        for axes in grid.flat[: len(groups)]:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                marks.setdefault(label, handle)
        figure.legend(list(marks.values()), list(marks), loc="outside lower center", ncols=4)
    return svg(figure)


def _panel(axes: Axes, summary: Summary, group: str) -> None:
    """Draw one group."""
    rows = [row for row in summary.rows if row.group == group]
    names = list(dict.fromkeys(row.line for row in summary.rows))
    private = [name for name in names if any(row.epsilon for row in summary.rows if row.line == name)]
    epsilons = sorted({row.epsilon for row in summary.rows if row.epsilon is not None})
    for place, name in enumerate(private):
        _curve(axes, [row for row in rows if row.line == name], name, place, len(private))
    for place, name in enumerate(name for name in names if name not in private):
        found = next((row.values[0] for row in rows if row.line == name), None)
        if found is not None:
            axes.axhline(
                found.mean,
                color=MUTED if place else INK,
                linestyle=_DASHES[place % len(_DASHES)],
                linewidth=1.1,
                label=name,
                zorder=1,
            )
    if epsilons:
        axes.set_xscale("log")
        axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
        axes.minorticks_off()
    axes.set_xlabel("epsilon of each patient (more is less private)", fontsize=8)
    axes.set_title(group)
    axes.grid(visible=True, axis="y")


def _curve(axes: Axes, rows: Sequence[Row], name: str, place: int, of: int) -> None:
    """Draw one private line; curves are moved apart a little, so that intervals do not hide each other."""
    known = [
        (row.epsilon, row.values[0]) for row in rows if row.epsilon is not None and row.values[0] is not None
    ]
    shift = 1.035 ** (place - (of - 1) / 2)
    axes.errorbar(
        [epsilon * shift for epsilon, _ in known if epsilon],
        [found.mean for _, found in known if found],
        yerr=[
            [_length(found.mean - found.low) for _, found in known if found],
            [_length(found.high - found.mean) for _, found in known if found],
        ],
        markersize=4.5,
        **look_of(place),
        linewidth=1.6,
        elinewidth=1.0,
        capsize=2,
        label=name,
        zorder=3,
    )


def look_of(place: int) -> dict[str, Any]:
    """Return colour and marker of a private line: no two of the first 64 have both in common."""
    turn, colour = divmod(place, len(_COLOURS))
    look = {"color": _COLOURS[colour], "marker": _MARKERS[(colour + turn) % len(_MARKERS)]}
    return {**look, "markerfacecolor": "white"} if turn else look


def _length(value: float) -> float:
    """Return the length of an arm of an interval; none where it has no end."""
    return value if math.isfinite(value) else 0.0
