"""`report.html` and `report.json`: one self-contained page and its numbers, written atomically.

Guarantees (tests/unit/server/test_report_page.py, tests/docs/test_report_renders.py):
    The page fetches nothing and runs nothing (`rendering`).
    Every text from outside is escaped; a site named `<script>` is shown as that.
    Either file is whole or absent after a crash.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.report import arms, figures, tables
from server.report.document import STATUSES, Report, status_of
from server.report.evidence import attack_rows
from server.report.export import to_json
from server.report.measures import columns, degrees, measure, primary
from server.report.panels import gallery
from server.report.promise import banner, claim_of
from server.report.rendering import STYLE, render_page, svg_uri
from server.report.verdict import cautions, findings
from server.report.words import count, number, shown, small
from vae.data.durable import READABLE, write_atomically

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure of the page: a data URI, and what it shows for those who cannot see it."""

    uri: str
    alt: str


def write(report: Report, folder: Path) -> Path:
    """Write `report.html` and `report.json` into `folder` and return the path of the page.

    Both texts are made before either file is touched.

    Raises:
        ValueError: the report holds something that cannot be written as JSON.
        OSError: the folder cannot be written.
    """
    texts = {"report.json": to_json(report), "report.html": render(report)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomically(folder / name, text.encode(), mode=READABLE)
    return folder / "report.html"


def render(report: Report) -> str:
    """Return the page. The same report gives the same bytes."""
    return render_page(
        _TEMPLATES / "report.html.j2",
        [STYLE],
        report=report,
        number=number,
        count=count,
        shown=shown,
        small=small,
        **_view(report),
    )


def _view(report: Report) -> dict[str, Any]:
    """Return what the template shows, computed."""
    pairs, first = columns(report), primary(report)
    privacy = report.privacy
    return {
        "banner": banner(report),
        "claim": claim_of(report),
        "findings": findings(report),
        "cautions": cautions(report),
        "key": _plot(arms.forest(report, only=first), _forest_alt(report, (first,))) if first else None,
        "forest": _plot(arms.forest(report), _forest_alt(report, arms.charted(report))) if pairs else None,
        "severity": _plot(arms.severity(report), "each metric by degree of the disease, a line an arm")
        if degrees(report)
        else None,
        "refused": [row for row in report.rejected if status_of(row.reason)[0] == "rejected"],
        "across": len(pairs) > 6,
        "epsilon": _plot(
            figures.epsilon(report), "epsilon by round and by site; the table below has the numbers"
        )
        if privacy and privacy.per_site
        else None,
        "losses": _losses(report),
        "latents": _plot(
            figures.latents(report), "KL of each latent dimension and number of active units by round"
        )
        if report.latents
        else None,
        "attacks": None if report.attacks is None else attack_rows(report.attacks),
        "gallery": gallery(report),
        "heads": tables.heads(report),
        "arms": tables.arm_rows(report),
        "compared": tables.comparisons(report),
        "blocks": tables.attendance(report),
        "legend": [(status, tables.MARKS[status], tables.MEANINGS[status]) for status in STATUSES],
        "fates": tables.fates(report),
        "glance": tables.glance(report),
        "left_out": len(report.sites) - len(figures.drawn_sites(report)),
        "faults": json.dumps(dict(report.faults), indent=2, ensure_ascii=False, default=str)
        if report.faults
        else "",
    }


def _losses(report: Report) -> tuple[Plot, ...]:
    """Return the loss figures, if any."""
    if not report.curves:
        return ()
    words = ("reconstruction loss", "KL divergence")
    return tuple(
        _plot(svg, f"{word} of each site by round")
        for svg, word in zip(figures.losses(report), words, strict=True)
    )


def _forest_alt(report: Report, pairs: tuple[tuple[str, str], ...]) -> str:
    """Return what a dot-and-interval figure shows."""
    names = ", ".join(measure(report, metric).label for _, metric in pairs)
    return f"{names} of every arm as a dot with its 95 % interval; the table has the numbers"


def _plot(svg: str, alt: str) -> Plot:
    """Return an SVG text as a figure of the page."""
    return Plot(uri=svg_uri(svg), alt=alt)
