"""The house style of every plot: colours, stamps, and SVG without dates or anything fetched.

Every figure carries its stamp inside the picture ("synthetic data", "no privacy claim"), so that a copy of it
does not lose it. Text stays text (the page's own font stack), and names are never read as mathematics.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, RULE = "#1b2530", "#5b6875", "#d5dbe1"
BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0a5c8f", "#c65f00", "#00785a", "#b3261e", "#6b4fa0"
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
WIDTH = 10.8


class Stamped(Protocol):
    """What a picture is of: a report, or another document that knows whether its data were made up."""

    @property
    def synthetic(self) -> bool:
        """Return whether all data were made up."""


@contextmanager
def canvas(report: Stamped, width: float, height: float, *, stamp: str = "") -> Iterator[Figure]:
    """Yield a figure [inches] in the house style, outside pyplot's global state, with its stamps."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Layout is measured in DejaVu; a name in another script is drawn by the browser's own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        words = [text for text in (stamp, "synthetic data" if report.synthetic else "") if text]
        room = 0.19 / height if words else 0.0
        layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - room))
        figure = Figure(figsize=(width, height), layout=layout)
        if words:
            figure.text(0.998, 0.995, " · ".join(words), ha="right", va="top", fontsize=8, color=VERMILION)
        yield figure


def svg(figure: Figure) -> str:
    """Return the figure as SVG without prolog, date or creator, in the page's fonts."""
    import matplotlib as mpl

    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    return re.sub(r"'DejaVu Sans'", _FONTS, text[text.index("<svg") :])


def finite(value: float | None, missing: float = 0.0) -> float:
    """Return the value, or `missing` where there is none to draw."""
    return value if value is not None and math.isfinite(value) else missing
