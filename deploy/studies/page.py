"""`study.html` and `study.json`: what a study asked, what came out, and what did not.

Guarantees (tests/unit/studies/test_page.py): the page fetches nothing and runs nothing, text from outside is escaped,
the same summary gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.studies.drawing import frontier
from deploy.studies.summary import Estimate, Outcome, Summary
from server.report.rendering import STYLE, render_page, svg_uri
from server.report.words import decimals, number
from vae.data.durable import READABLE, write_atomically

_TEMPLATES = Path(__file__).parent / "templates"
PAGE_NAME, NUMBERS_NAME = "study.html", "study.json"


def write_study(summary: Summary, folder: Path) -> Path:
    """Write page and numbers into a folder and return the path of the page."""
    texts = {NUMBERS_NAME: to_json(summary), PAGE_NAME: render(summary)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomically(folder / name, text.encode(), mode=READABLE)
    return folder / PAGE_NAME


def to_json(summary: Summary) -> str:
    """Return the numbers of the page; what is not finite is null."""
    found = {
        "name": summary.study.name,
        "title": summary.study.title,
        "num_runs": summary.num_runs,
        "seconds": summary.seconds,
        "synthetic": summary.synthetic,
        "metrics": [json.loads(metric.model_dump_json()) for metric in summary.study.metrics],
        "rows": [_finite(dataclasses.asdict(row)) for row in summary.rows],
        "aims": [
            {
                **json.loads(outcome.aim.model_dump_json()),
                "verdict": outcome.verdict,
                "found": None if outcome.share is None else _finite(dataclasses.asdict(outcome.share)),
            }
            for outcome in summary.outcomes
        ],
    }
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def render(summary: Summary) -> str:
    """Return the page."""
    return render_page(
        _TEMPLATES / "study.html.j2",
        [STYLE],
        summary=summary,
        study=summary.study,
        picture=svg_uri(frontier(summary)),
        findings=[_aim_in_words(outcome) for outcome in summary.outcomes],
        tables=[(group, _cells(summary, group)) for group in summary.study.groups],
        hours=f"{summary.seconds / 3600:.1f}",
    )


def text_table(summary: Summary) -> str:
    """Return every row as Markdown: what a README shows."""
    metrics = [metric.label for metric in summary.study.metrics]
    share = ["share of the gap"] if summary.study.gap else []
    against = [f"against {summary.study.against}"] if summary.study.against else []
    lines = []
    for group in summary.study.groups:
        head = [group, "epsilon", *metrics, *against, *share]
        lines += [_joined(head), _joined(["---"] * len(head))]
        for cells in _cells(summary, group):
            lines.append(
                _joined(
                    [cells["line"], cells["epsilon"], *cells["values"], *cells["against"], *cells["share"]]
                )
            )
        lines.append("")
    return "\n".join(lines)


def _cells(summary: Summary, group: str) -> list[dict[str, Any]]:
    """Return the rows of a group as text."""
    rows = [row for row in summary.rows if row.group == group]
    places = [_places([row.values[column] for row in rows]) for column in range(len(summary.study.metrics))]
    apart = _places([row.differences[0] for row in rows])
    return [
        {
            "line": row.line,
            "epsilon": "none" if row.epsilon is None else f"{row.epsilon:g}",
            "private": row.epsilon is not None,
            "values": [_shown(found, place) for found, place in zip(row.values, places, strict=True)],
            "against": [_shown(row.differences[0], apart, signed=True)] if summary.study.against else [],
            "share": [_percent(row.share)] if summary.study.gap else [],
        }
        for row in rows
    ]


def _places(found: Sequence[Estimate | None]) -> int | None:
    """Return how many decimals a column deserves."""
    return decimals(one.high - one.low for one in found if one is not None)


def _shown(found: Estimate | None, places: int | None, *, signed: bool = False) -> str:
    """Return a mean with its interval as text."""
    if found is None:
        return ""
    mean = number(found.mean, signed=signed, places=places)
    if not math.isfinite(found.low):
        return f"{mean} (one seed)"
    half = number((found.high - found.low) / 2, places=places)
    return f"{mean} ± {half}"


def _percent(share: Estimate | None) -> str:
    """Return a share as text."""
    if share is None:
        return ""
    if not math.isfinite(share.low):
        return f"{number(100 * share.mean, places=0)} % (one seed)"
    low, high = (number(100 * edge, places=0) for edge in (share.low, share.high))
    return f"{number(100 * share.mean, places=0)} % ({low} to {high})"


def _aim_in_words(outcome: Outcome) -> Mapping[str, str]:
    """Return what came of an aim, as a finding."""
    aim = outcome.aim
    said = {"met": "met", "missed": "missed", "open": "not decided: the interval holds it"}[outcome.verdict]
    tone = {"met": "good", "missed": "bad", "open": "caution"}[outcome.verdict]
    found = _percent(outcome.share) or "no figure"
    what = f"{aim.line}, {aim.group}, epsilon {aim.epsilon:g}"
    text = f"{what}: {found} of the gap closed; the aim was {100 * aim.share:.0f} %: {said}."
    return {"tone": tone, "text": text, "mark": {"good": "✓", "bad": "✕", "caution": "!"}[tone]}


def _joined(cells: Sequence[str]) -> str:
    """Return a row of Markdown."""
    return "| " + " | ".join(cells) + " |"


def _finite(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Return JSON values without infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
