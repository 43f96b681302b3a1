"""Plots of a report as SVG texts: deterministic, without dates, without anything fetched.

Every figure carries its stamp inside the picture ("synthetic data", "no privacy claim"), so that a copy of it
does not lose it. Text stays text (the page's own font stack), names are never read as mathematics, and colour
is never the only carrier of meaning.

What it does not do: draw scans (`server.report.panels`) or decide what is good (`server.report.measures`).
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from server.report.document import (
    ALONE,
    CENTRALISED,
    FEDERATED,
    FEDERATED_DP,
    MEAN,
    Report,
    ResultRow,
    RoundEpsilon,
    SiteCurve,
)
from server.report.measures import arm_label, columns, measure, shown
from server.report.verdict import claim_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_SITES = 40
"""More sites than this are not drawn one by one; the page says how many were left out."""

INK, MUTED, RULE = "#1b2530", "#5b6875", "#d5dbe1"
BLUE, ORANGE, GREEN, VERMILION = "#0a5c8f", "#c65f00", "#00785a", "#b3261e"
_LINES = (BLUE, ORANGE, GREEN, "#8a3d7c", VERMILION, "#5b6875")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "grid.color": "#e8ecf0",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "figure.facecolor": "white",
}
_FONTS = "'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
_WIDTH = 10.8


def forest(report: Report, *, only: tuple[str, str] | None = None) -> str:
    """Return dots with 95 % intervals: one panel a metric, one line an arm, the baseline dashed.

    Args:
        report: With at least one result.
        only: Draws this (task, metric) alone, narrower, for the head of the page.
    """
    pairs = (only,) if only else columns(report)
    across = min(3, len(pairs))
    down = math.ceil(len(pairs) / across)
    height = 0.24 * len(report.arms) + 0.75
    with _canvas(report, 5.9 if only else _WIDTH, down * height) as figure:
        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        for axes, pair in zip(grid.flat, pairs, strict=False):
            _forest_panel(axes, report, *pair)
        for axes in grid.flat[len(pairs) :]:
            axes.set_visible(False)
    return _svg(figure)


def epsilon(report: Report) -> str:
    """Return epsilon by round (sites with one history share a line) and spent by site, by both accountants.

    Raises:
        ValueError: the report has no privacy facts.
    """
    if report.privacy is None:
        raise ValueError("a run without privacy has no epsilon to draw")
    rows = [row for row in report.privacy.per_site if row.site in set(drawn_sites(report))]
    stamp = "" if claim_of(report) == "dp" else "no privacy claim"
    with _canvas(report, _WIDTH, max(3.0, 0.24 * len(rows) + 1.0), stamp=stamp) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _epsilon_curves(left, _same_history(report.privacy.curve))
        place = np.arange(len(rows))
        for shift, label, colour, values in (
            (-0.19, "RDP", "#9cb9cf", [_finite(row.epsilon_rdp) for row in rows]),
            (0.19, "PLD", BLUE, [_finite(row.epsilon_pld) for row in rows]),
        ):
            right.barh(place + shift, values, height=0.36, color=colour, label=label)
        for row, at in zip(rows, place, strict=True):
            right.annotate(
                f" {_finite(row.epsilon_pld):.3g}" if _finite(row.epsilon_pld) > 0 else " no finite epsilon",
                (max(0.0, _finite(row.epsilon_pld)), at + 0.19),
                va="center",
                fontsize=7,
                color=INK,
            )
        right.set_yticks(place, [shown(row.site, 22) for row in rows])
        right.set_ylim(len(rows) - 0.4, -0.6)
        right.margins(x=0.14)
        right.set_title("Spent at the end of the run, by site")
        right.set_xlabel("epsilon (less is more private)")
        right.legend(
            loc="upper left", bbox_to_anchor=(0.62, 1.11), ncols=2, handlelength=1.0, columnspacing=1.0
        )
        right.grid(visible=True, axis="x")
    return _svg(figure)


def losses(report: Report) -> tuple[str, str]:
    """Return reconstruction loss and KL by round, one small panel a site on common axes."""
    return (
        _small_multiples(report, "reconstruction", "Reconstruction loss [nats a record]", BLUE),
        _small_multiples(report, "kl", "KL divergence [nats a record]", ORANGE),
    )


def latents(report: Report) -> str:
    """Return the KL of each latent dimension by round, largest at the top, and the number of active units."""
    rounds = [row.round for row in report.latents]
    table = np.array([row.kl_per_latent for row in report.latents], dtype=float).T
    order = np.argsort(-np.nan_to_num(table[:, -1]), kind="stable")
    with _canvas(report, _WIDTH, 3.1) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        image = left.imshow(
            table[order],
            aspect="auto",
            interpolation="nearest",
            cmap="viridis",
            extent=(rounds[0] - 0.5, rounds[-1] + 0.5, len(order) - 0.5, -0.5),
        )
        figure.colorbar(image, ax=left, label="KL [nats]", pad=0.02)
        if len(order) <= 24:
            left.set_yticks(range(len(order)), [f"z{index + 1}" for index in order], fontsize=7)
        left.set_title("KL of each latent dimension, largest at the top")
        left.set_xlabel("round")
        right.plot(
            rounds, [row.active_units for row in report.latents], color=BLUE, marker="o", markersize=2.5
        )
        right.set_ylim(0, table.shape[0] * 1.05)
        right.set_title(f"Active units, of {table.shape[0]}")
        right.set_xlabel("round")
        right.grid(visible=True)
        _whole_rounds(left, right)
    return _svg(figure)


def drawn_sites(report: Report) -> tuple[str, ...]:
    """Return the sites that are drawn one by one: all up to `MAX_SITES`, else those with most trouble."""
    trouble: dict[str, int] = defaultdict(int)
    for row in report.participation:
        trouble[row.site] += row.status != "admitted"
    if len(report.sites) <= MAX_SITES:
        return report.sites
    return tuple(sorted(report.sites, key=lambda site: -trouble[site])[:MAX_SITES])


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
    axes.set_title(shown(f"{facts.label}, {task}" if task else facts.label, 46))
    axes.set_xlabel(
        better + (", dotted: coin toss" if facts.chance is not None else ""), color=MUTED, fontsize=8
    )
    axes.set_yticks(range(len(report.arms)), [shown(arm_label(report, arm), 34) for arm in report.arms])
    axes.set_ylim(len(report.arms) - 0.5, -0.5)
    axes.grid(visible=True, axis="x")
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=5)
    for label, arm in zip(axes.get_yticklabels(), report.arms, strict=False):
        label.set_color(INK)
        label.set_fontweight("bold" if arm == report.subject else "normal")


def _dot(axes: Axes, row: ResultRow, place: int, *, strong: bool) -> None:
    """Draw one value with its interval."""
    colours = {MEAN: MUTED, FEDERATED: GREEN, FEDERATED_DP: BLUE, CENTRALISED: ORANGE}
    markers = {MEAN: "D", FEDERATED: "o", FEDERATED_DP: "o", CENTRALISED: "s"}
    colour = "#8a96a3" if row.arm.startswith(ALONE) else colours.get(row.arm, INK)
    if row.ci95 is not None and all(math.isfinite(edge) for edge in row.ci95):
        axes.plot(
            row.ci95, (place, place), color=colour, linewidth=3.0 if strong else 1.8, solid_capstyle="butt"
        )
    size = 6.5 if strong else 5.0
    axes.plot(
        row.value, place, markers.get(row.arm, "o"), color=colour, markersize=size, markeredgecolor="white"
    )


def _same_history(curve: Sequence[RoundEpsilon]) -> dict[tuple[tuple[int, float, float], ...], list[str]]:
    """Return history -> sites that share it: under one plan most sites spend the same."""
    history: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for row in sorted(curve, key=lambda row: row.round):
        history[row.site].append((row.round, row.epsilon_rdp, row.epsilon_pld))
    groups: dict[tuple[tuple[int, float, float], ...], list[str]] = defaultdict(list)
    for site, points in history.items():
        groups[tuple(points)].append(site)
    return groups


def _epsilon_curves(axes: Axes, groups: dict[tuple[tuple[int, float, float], ...], list[str]]) -> None:
    """Draw one pair of lines a history, labelled in a legend by their sites."""
    largest = sorted(groups.items(), key=lambda item: -item[0][-1][2])
    for index, (points, sites) in enumerate(largest):
        rounds = [point[0] for point in points]
        colour = _LINES[index % len(_LINES)]
        label = (
            ", ".join(shown(site, 16) for site in sites) if len(sites) <= 3 else f"{len(sites)} sites alike"
        )
        named = label if index < 8 else None
        axes.step(
            rounds, [_finite(p[2]) for p in points], where="post", color=colour, linewidth=1.8, label=named
        )
        axes.step(
            rounds, [_finite(p[1]) for p in points], where="post", color=colour, linewidth=1.0, linestyle="--"
        )
    if not groups:
        axes.annotate("no history was kept", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED)
    axes.set_title("Spent by round (solid: PLD, dashed: RDP)")
    axes.set_xlabel("round")
    axes.set_ylabel("epsilon")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True)
    _whole_rounds(axes)
    if groups:
        axes.legend(loc="lower right", handlelength=1.4)


def _small_multiples(report: Report, name: str, title: str, colour: str) -> str:
    """Return one panel a site: its own line in colour over the range of all sites in grey."""
    lines: dict[str, list[SiteCurve]] = defaultdict(list)
    for row in sorted(report.curves, key=lambda row: row.round):
        lines[row.site].append(row)
    sites = [site for site in drawn_sites(report) if site in lines]
    across = min(6, max(4, len(sites)))
    down = math.ceil(len(sites) / across)
    with _canvas(report, _WIDTH, 1.45 * down + 0.65) as figure:
        figure.suptitle(title, fontsize=9.5, fontweight="bold", x=0.01, ha="left")
        grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        band = _band([_line(lines[site], name) for site in sites])
        for axes, site in zip(grid.flat, sites, strict=False):
            axes.fill_between(*band, color="#e6eaee", linewidth=0, zorder=1)
            rounds, values = _line(lines[site], name)
            size = 2.0 if len(rounds) <= 40 else 0.0
            axes.plot(rounds, values, color=colour, linewidth=1.6, marker="o", markersize=size, zorder=3)
            axes.set_title(shown(site, 24), fontsize=8.5)
            axes.grid(visible=True)
            _whole_rounds(axes)
        for axes in grid.flat[len(sites) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel("round", fontsize=8)
    return _svg(figure)


def _line(rows: Sequence[SiteCurve], name: str) -> tuple[list[int], list[float]]:
    """Return rounds and values; what is not finite leaves a gap."""
    return [row.round for row in rows], [_finite(getattr(row, name), missing=math.nan) for row in rows]


def _band(lines: Sequence[tuple[list[int], list[float]]]) -> tuple[list[int], list[float], list[float]]:
    """Return rounds, and the lowest and the highest value of any site in each."""
    found: dict[int, list[float]] = defaultdict(list)
    for rounds, values in lines:
        for turn, value in zip(rounds, values, strict=True):
            if math.isfinite(value):
                found[turn].append(value)
    turns = sorted(found)
    return turns, [min(found[turn]) for turn in turns], [max(found[turn]) for turn in turns]


def _finite(value: float | None, missing: float = 0.0) -> float:
    """Return the value, or `missing` where there is none to draw."""
    return value if value is not None and math.isfinite(value) else missing


def _whole_rounds(*axes: Axes) -> None:
    """Put ticks at whole rounds only."""
    from matplotlib.ticker import MaxNLocator

    for one in axes:
        one.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


@contextmanager
def _canvas(report: Report, width: float, height: float, *, stamp: str = "") -> Iterator[Figure]:
    """Yield a figure [inches] in the house style, outside pyplot's global state, with its stamps."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Layout is measured in DejaVu; a name in another script is drawn by the browser's own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        words = [text for text in (stamp, "synthetic data" if report.synthetic else "") if text]
        if words:
            figure.text(0.998, 0.995, " · ".join(words), ha="right", va="top", fontsize=7.5, color=VERMILION)
        figure.draw_without_rendering()


def _svg(figure: Figure) -> str:
    """Return the figure as SVG without prolog, date or creator, in the page's fonts."""
    import matplotlib as mpl

    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    return re.sub(r"'DejaVu Sans'", _FONTS, text[text.index("<svg") :])
