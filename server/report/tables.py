"""The tables of a report: all arms side by side, comparisons, who took part in which round; the summary.

Values only; the page's template turns them into HTML.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from server.report.document import (
    MEAN,
    SITE_MEAN,
    WARM_START,
    Attendance,
    Report,
    ResultRow,
    Status,
    status_of,
)
from server.report.figures import drawn_sites
from server.report.measures import (
    Comparison,
    arm_label,
    column_label,
    column_places,
    columns,
    compare,
    measure,
    primary,
)
from server.report.promise import banner, claim_of, most_spent
from server.report.verdict import verdict
from server.report.words import decimals, interval, number, shown, small, up

ROUNDS_PER_BLOCK = 50
MARKS: dict[Status, str] = {
    "admitted": "·",
    "failed": "F",
    "rejected": "R",
    "late": "L",
    "silent": "–",
    "unused": "Q",
}
MEANINGS: dict[Status, str] = {
    "admitted": "in the model",
    "failed": "the site failed (code only, no text)",
    "rejected": "refused before aggregation",
    "late": "after the deadline",
    "silent": "no answer",
    "unused": "admitted, but the round had no quorum",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One metric of one arm; `best` marks the best value of its column, which is no claim of significance."""

    value: str
    interval: str
    best: bool


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """One arm: its name in words, what kind of row it is, and a cell a column (None: not computed)."""

    label: str
    baseline: bool
    subject: bool
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One paired difference in words; `baseline`: to predicting the mean."""

    baseline: bool
    label: str
    metric: str
    value: str
    interval: str
    outcome: Comparison


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rounds of the participation grid: (site, (status or None, mark, hint) a round)."""

    rounds: tuple[int, ...]
    rows: tuple[tuple[str, tuple[tuple[Status | None, str, str], ...]], ...]


def arm_rows(report: Report) -> tuple[ArmRow, ...]:
    """Return the one table of all arms, a row an arm, a column a (task, metric)."""
    pairs = columns(report)
    found = {(row.arm, row.task, row.metric): row for row in report.results}
    best = {pair: _best(report, *pair) for pair in pairs}
    places = {pair: column_places(report, *pair) for pair in pairs}
    return tuple(
        ArmRow(
            label=arm_label(report, arm),
            baseline=arm in (MEAN, SITE_MEAN, WARM_START),
            subject=arm == report.subject,
            cells=tuple(_cell(found.get((arm, *pair)), best[pair], places[pair]) for pair in pairs),
        )
        for arm in report.arms
    )


def glance(report: Report) -> tuple[tuple[str, str], ...]:
    """Return the run at a glance: (figure, what it is), four of them."""
    admitted = sum(row.status == "admitted" for row in report.participation)
    claim, spent = claim_of(report), most_spent(report)
    privacy = ("none", "privacy")
    if spent is not None and report.privacy is not None and claim != "none":
        said = f"epsilon ({spent.accountant})" if claim == "dp" else "epsilon if noise were secure: no claim"
        privacy = (up(spent.epsilon), f"{said}, delta {small(report.privacy.delta)}")
    return (
        (f"{len(report.sites):,}", "simulated sites" if report.simulated else "hospitals"),
        (f"{report.rounds_completed} of {report.rounds_planned}", "rounds completed"),
        privacy,
        (f"{admitted:,} of {len(report.participation):,}", "contributions in the model"),
    )


def heads(report: Report) -> tuple[tuple[str, str], ...]:
    """Return the columns' labels and which way is better."""
    arrows = {"higher": "↑ higher is better", "lower": "↓ lower is better", "neither": "no better or worse"}
    return tuple(
        (column_label(report, task, metric), arrows[measure(report, metric).better])
        for task, metric in columns(report)
    )


def comparisons(report: Report) -> tuple[Compared, ...]:
    """Return the paired differences in words, those against the baseline first."""
    found = []
    for row in sorted(report.differences, key=lambda row: MEAN not in (row.arm_a, row.arm_b)):
        places = None if row.ci95 is None else decimals([abs(row.ci95[1] - row.ci95[0])])
        found.append(
            Compared(
                baseline=MEAN in (row.arm_a, row.arm_b),
                label=f"{arm_label(report, row.arm_a)} − {arm_label(report, row.arm_b)}",
                metric=column_label(report, row.task, row.metric),
                value=number(row.value, signed=True, places=places),
                interval=interval(row.ci95, signed=True, places=places),
                outcome=compare(row.value, row.ci95, measure(report, row.metric).better),
            )
        )
    return tuple(found)


def attendance(report: Report) -> tuple[Block, ...]:
    """Return the participation grid in blocks of at most `ROUNDS_PER_BLOCK` rounds."""
    cells = {(row.site, row.round): row for row in report.participation}
    rounds = range(1, max((row.round for row in report.participation), default=0) + 1)
    blocks = []
    for start in range(0, len(rounds), ROUNDS_PER_BLOCK):
        some = tuple(rounds[start : start + ROUNDS_PER_BLOCK])
        rows = []
        for site in drawn_sites(report):
            line: list[tuple[Status | None, str, str]] = []
            for number_ in some:
                cell = cells.get((site, number_))
                hint = f"{shown(site)}, round {number_}: " + (
                    ": ".join(part for part in (cell.status, _detail(cell)) if part) if cell else "not asked"
                )
                line.append((cell.status if cell else None, MARKS[cell.status] if cell else "", hint))
            rows.append((shown(site, 30), tuple(line)))
        blocks.append(Block(rounds=some, rows=tuple(rows)))
    return tuple(blocks)


def fates(report: Report) -> tuple[tuple[str, tuple[tuple[str, int], ...]], ...]:
    """Return site -> (what was lost and why, how often), sites with most losses first."""
    words: dict[Status, str] = {
        "failed": "failed",
        "rejected": "refused",
        "late": "late",
        "silent": "no answer",
        "unused": "round without quorum",
    }
    lost = Counter(
        (row.site, f"{words[row.status]}: {_detail(row)}" if _detail(row) else words[row.status])
        for row in report.participation
        if row.status != "admitted"
    )
    by_site = groupby(sorted(lost.items()), key=lambda item: item[0][0])
    lines = [(site, tuple((reason, times) for (_, reason), times in group)) for site, group in by_site]
    return tuple(sorted(lines, key=lambda line: -sum(times for _, times in line[1])))


def summary_text(report: Report, path: Path | None = None) -> str:
    """Return the plain-text summary for a terminal: verdict, table of arms, time, and where the page lies."""
    warning = banner(report)
    lines = [f"{shown(report.name)}: " + ("simulation" if report.simulated else "federated run")]
    lines += [f"! {warning.text}"] if warning else []
    lines += [f"- {text}" for text in verdict(report)]
    lines += ["", *_plain_table(report)] if columns(report) else []
    lines.append(
        f"{number(report.timings.wall_s)} s in all, {number(report.timings.train_cpu_s)} s CPU in training, "
        f"{number(report.timings.overhead_s_per_round)} s overhead a round"
    )
    lines += [f"Report: {path}"] if path else []
    return "\n".join(lines) + "\n"


def _plain_table(report: Report, most: int = 3) -> list[str]:
    """Return the arms and the first measures as lines of text, the primary one first."""
    pairs, labels = columns(report), [label for label, _ in heads(report)]
    order = sorted(range(len(pairs)), key=lambda place: pairs[place] != primary(report))[:most]
    table = [("", *(shown(labels[place], 34) for place in order))]
    for row in arm_rows(report):
        cells = (row.cells[place] for place in order)
        said = (f"{cell.value} [{cell.interval}]{' *' * cell.best}" if cell else "n/a" for cell in cells)
        table.append((shown(row.label, 30), *said))
    widths = [max(len(line[place]) for line in table) for place in range(len(table[0]))]
    lines = ["  ".join(text.ljust(size) for text, size in zip(line, widths, strict=True)) for line in table]
    more = f"; {len(pairs) - most} more measures in the report" if len(pairs) > most else ""
    return [line.rstrip() for line in lines] + [f"* best of its measure; [95 % bootstrap interval]{more}", ""]


def _detail(cell: Attendance) -> str:
    """Return what the status does not say already; a whole reason such as `site-failed:timed-out` is cut."""
    status, detail = status_of(cell.detail)
    return detail if status == cell.status else cell.detail


def _cell(row: ResultRow | None, best: float | None, places: int | None) -> Cell | None:
    """Return the texts of one value."""
    if row is None:
        return None
    return Cell(
        value=number(row.value, places=places),
        interval=interval(row.ci95, places=places),
        best=best is not None and row.value == best,
    )


def _best(report: Report, task: str, metric: str) -> float | None:
    """Return the best value of a column, or None without a direction or a choice."""
    values = [
        row.value
        for row in report.results
        if (row.task, row.metric) == (task, metric) and math.isfinite(row.value)
    ]
    better = measure(report, metric).better
    if better == "neither" or len(values) < 2:
        return None
    return max(values) if better == "higher" else min(values)
