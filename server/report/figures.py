"""Plots of a run: epsilon by round and site, losses by site, use of the latent dimensions.

What it does not do: results (`server.report.arms`), scans (`server.report.panels`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from server.report.canvas import BLUE, GREEN, INK, MUTED, ORANGE, VERMILION, WIDTH, canvas, finite, svg
from server.report.document import Report, RoundEpsilon, SiteCurve
from server.report.promise import claim_of
from server.report.words import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MAX_SITES = 24
"""More sites than this are not drawn one by one; the page says how many were left out."""

_LINES = (BLUE, ORANGE, GREEN, "#8a3d7c", VERMILION, "#5b6875")


def epsilon(report: Report) -> str:
    """Return epsilon by round (sites with one history share a line) and spent by site, by both accountants.

    Raises:
        ValueError: the report has no privacy facts.
    """
    if report.privacy is None:
        raise ValueError("a run without privacy has no epsilon to draw")
    rows = [row for row in report.privacy.per_site if row.site in set(drawn_sites(report))]
    stamp = "" if claim_of(report) == "dp" else "no privacy claim"
    with canvas(report, WIDTH, max(3.0, 0.24 * len(rows) + 1.0), stamp=stamp) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _epsilon_curves(left, _same_history(report.privacy.curve))
        place = np.arange(len(rows))
        for shift, label, colour, values in (
            (-0.19, "RDP", "#9cb9cf", [finite(row.epsilon_rdp) for row in rows]),
            (0.19, "PLD", BLUE, [finite(row.epsilon_pld) for row in rows]),
        ):
            right.barh(place + shift, values, height=0.36, color=colour, label=label)
        for row, at in zip(rows, place, strict=True):
            end = max(finite(row.epsilon_pld), finite(row.epsilon_rdp))
            text = f" {row.epsilon_pld:.2f}" if finite(row.epsilon_pld) else " no finite epsilon"
            right.annotate(text, (end, at), va="center", fontsize=7.5, color=INK)
        capped = [(row.cap, at) for row, at in zip(rows, place, strict=True) if row.cap is not None]
        if capped:
            ends, places = zip(*capped, strict=True)
            right.vlines(
                ends, np.array(places) - 0.42, np.array(places) + 0.42, color=INK, lw=1.8, label="cap"
            )
        right.set_yticks(place, [shown(row.site, 22) for row in rows])
        right.set_ylim(len(rows) - 0.4, -0.6)
        right.margins(x=0.14)
        right.set_title("Spent in all (figure: PLD)")
        right.set_xlabel("epsilon (less is more private)")
        right.legend(
            loc="upper right", bbox_to_anchor=(1.02, 1.11), ncols=3, handlelength=1.0, columnspacing=1.0
        )
        right.grid(visible=True, axis="x")
    return svg(figure)


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
    with canvas(report, WIDTH, 3.1) as figure:
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
    return svg(figure)


def drawn_sites(report: Report) -> tuple[str, ...]:
    """Return the sites that are drawn one by one: all up to `MAX_SITES`, else those with most trouble."""
    trouble: dict[str, int] = defaultdict(int)
    for row in report.participation:
        trouble[row.site] += row.status != "admitted"
    if len(report.sites) <= MAX_SITES:
        return report.sites
    return tuple(sorted(report.sites, key=lambda site: -trouble[site])[:MAX_SITES])


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
    ranked = sorted(groups.items(), key=lambda item: -item[0][-1][2])
    few = len(ranked) <= len(_LINES)
    for index, (points, sites) in enumerate(ranked):
        label = (
            ", ".join(shown(site, 16) for site in sites) if len(sites) <= 3 else f"{len(sites)} sites alike"
        )
        colour = _LINES[index] if few else "#a9c3d6"
        if not few and points in (ranked[0][0], ranked[-1][0]):
            label, colour = (f"most: {label}", VERMILION) if index == 0 else (f"least: {label}", GREEN)
        elif not few:
            label = "_"
        rounds = [point[0] for point in points]
        strong = few or label != "_"
        look: dict[str, Any] = {"where": "post", "color": colour, "zorder": 3 if strong else 2}
        axes.step(
            rounds, [finite(p[2]) for p in points], linewidth=1.8 if strong else 0.8, label=label, **look
        )
        if strong:
            axes.step(rounds, [finite(p[1]) for p in points], linewidth=1.0, linestyle="--", **look)
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
    with canvas(report, WIDTH, 1.45 * down + 0.65) as figure:
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
    return svg(figure)


def _line(rows: Sequence[SiteCurve], name: str) -> tuple[list[int], list[float]]:
    """Return rounds and values; what is not finite leaves a gap."""
    return [row.round for row in rows], [finite(getattr(row, name), missing=math.nan) for row in rows]


def _band(lines: Sequence[tuple[list[int], list[float]]]) -> tuple[list[int], list[float], list[float]]:
    """Return rounds, and the lowest and the highest value of any site in each."""
    found: dict[int, list[float]] = defaultdict(list)
    for rounds, values in lines:
        for turn, value in zip(rounds, values, strict=True):
            if math.isfinite(value):
                found[turn].append(value)
    turns = sorted(found)
    return turns, [min(found[turn]) for turn in turns], [max(found[turn]) for turn in turns]


def _whole_rounds(*axes: Axes) -> None:
    """Put ticks at whole rounds only."""
    from matplotlib.ticker import MaxNLocator

    for one in axes:
        one.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
