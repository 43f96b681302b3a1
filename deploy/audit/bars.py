"""The picture of the audit: for each site a bar of what was spent, against its cap.

From the left: solid, what work that left has spent by the ledger's own rule; hatched, what is reserved and has not
left; a line, the cap; marks for both accountants; below, a green tick for what an attack could show, joined to what is
proved; crosses where work was refused. All bars share one axis. Hand-made SVG: crisp, small, the same bytes every time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.audit.document import SiteAccount
from server.report.canvas import BLUE, GREEN, INK, MUTED, ORANGE, RULE, VERMILION

WIDTH, LEFT, RIGHT = 480.0, 6.0, 16.0
_FONT = "'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
_PALE = "#9cb9cf"
MAX_SITES = 18
"""More bars than this do not fit the first sheet of paper."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Heights of a picture and of the bar in it, and where the bar begins."""

    height: float
    top: float
    bar: float

    @property
    def middle(self) -> float:
        """Return the height of the marks."""
        return self.top + self.bar / 2


ROOMY = Shape(height=46.0, top=8.0, bar=20.0)
DENSE = Shape(height=19.0, top=1.5, bar=9.0)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The common axis of all bars: epsilon from 0 to `most`, with a tick every `step`."""

    most: float
    step: float

    def at(self, epsilon: float) -> float:
        """Return the place of an epsilon; what is beyond the axis lies at its end."""
        return LEFT + min(1.0, epsilon / self.most) * (WIDTH - LEFT - RIGHT)


def axis_of(sites: Sequence[SiteAccount]) -> Axis:
    """Return an axis that holds every cap and everything spent; refused work may lie beyond."""
    values = [1e-9]
    for one in sites:
        values += [one.worst.counted, one.worst.rdp, one.cap or 0.0]
        values += [refusal.needed for refusal in one.refusals if refusal.needed is not None][:1]
    finite = [value for value in values if math.isfinite(value)]
    bulk = max(one.cap or one.worst.counted for one in sites) if sites else 1.0
    most = min(max(finite), 3 * bulk if math.isfinite(bulk) and bulk > 0 else math.inf) * 1.06
    step = _step(most)
    return Axis(most=most, step=step)


def bar(account: SiteAccount, axis: Axis, shape: Shape = ROOMY) -> str:
    """Return the bar of a site as SVG."""
    worst, cap = account.worst, account.cap
    claimed = account.claims == "dp"
    fill = BLUE if claimed else MUTED
    parts = [_hatch(fill)]
    end = axis.at(cap) if cap is not None else WIDTH - RIGHT
    track = "#e9eef3" if cap is not None else "#f4f6f8"
    parts.append(_rect(LEFT, end, shape, track, 'stroke="#d5dbe1" stroke-width="0.8"'))
    settled, counted = axis.at(worst.settled), axis.at(worst.counted)
    if _is_open(account):
        parts.append(_rect(settled, counted, shape, "url(#h)", f'stroke="{fill}" stroke-width="0.8"'))
    parts.append(_rect(LEFT, settled, shape, fill))
    if cap is not None:
        low, high = shape.top - shape.bar / 4, shape.top + shape.bar * 1.25
        parts.append(f'<path d="M{end:.1f} {low:g}V{high:g}" stroke="{INK}" stroke-width="2.4"/>')
    parts.append(_diamond(axis.at(worst.rdp), shape.middle, _PALE))
    parts.append(_circle(axis.at(worst.pld), shape.middle))
    needed = next((one.needed for one in account.refusals if one.needed is not None), None)
    if needed is not None:  # later refusals of equal rounds would have come to the same
        parts.append(_cross(axis.at(needed), shape.middle))
    if account.demonstrated is not None:
        parts.append(_between(axis.at(account.demonstrated), axis.at(worst.pld), shape))
    return _svg(shape.height, "".join(parts))


def scale(axis: Axis) -> str:
    """Return the axis as SVG, with its numbers."""
    parts = [f'<path d="M{LEFT} 1H{WIDTH - RIGHT}" stroke="{RULE}"/>']
    tick = 0.0
    while tick <= axis.most:
        x = axis.at(tick)
        parts.append(f'<path d="M{x:.1f} 1v4" stroke="{MUTED}"/>')
        parts.append(
            f'<text x="{x:.1f}" y="15" text-anchor="middle" font-size="9.5" fill="{MUTED}">{tick:g}</text>'
        )
        tick = round(tick + axis.step, 10)
    return _svg(18.0, "".join(parts))


def legend(sites: Sequence[SiteAccount]) -> tuple[tuple[str, str], ...]:
    """Return a small picture and its meaning for each mark that the bars of these sites hold."""
    claimed = all(one.claims == "dp" for one in sites)
    fill = BLUE if claimed else MUTED
    marks = [(_box(fill), "spent, as the ledger counts" if claimed else "what the plan would have spent")]
    if any(_is_open(one) for one in sites):
        marks.append((_hatch(fill) + _box("url(#h)", fill), "reserved, not sent: counts"))
    if any(one.cap is not None for one in sites):
        marks.append((f'<path d="M10 1v14" stroke="{INK}" stroke-width="2.4"/>', "cap"))
    marks.append((_circle(10, 8), "PLD accountant (tighter)"))
    marks.append((_diamond(10, 8, _PALE), "RDP accountant (looser)"))
    if any(one.demonstrated is not None for one in sites):
        tick = f'<path d="M10 2l5 9h-10z" fill="{GREEN}"/>'
        marks.append((tick, "shown by an attack; the truth lies between it and PLD"))
    if any(refusal.needed is not None for one in sites for refusal in one.refusals):
        marks.append((_cross(10, 8), "refused: would have come to this"))
    return tuple((_svg(16.0, drawing, width=20.0), words) for drawing, words in marks)


def in_words(account: SiteAccount) -> str:
    """Return a bar for those who cannot see it."""
    worst = account.worst
    cap = "no cap" if account.cap is None else f"cap {account.cap:g}"
    shown = "" if account.demonstrated is None else f", shown by an attack {account.demonstrated:.2f}"
    return (
        f"{account.site}: counted {worst.counted:.2f}, {cap}, PLD {worst.pld:.2f}, RDP {worst.rdp:.2f}{shown}"
    )


def _is_open(account: SiteAccount) -> bool:
    """Return whether something is reserved that has not left."""
    return account.worst.counted > account.worst.settled + 1e-12


def _step(most: float) -> float:
    """Return a round distance of ticks, of which four to nine fit."""
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)


def _rect(left: float, right: float, shape: Shape, fill: str, more: str = "") -> str:
    """Return a part of the bar."""
    width = max(0.0, right - left)
    return f'<rect x="{left:.1f}" y="{shape.top}" width="{width:.1f}" height="{shape.bar}" fill="{fill}" {more}/>'


def _box(fill: str, stroke: str = "none") -> str:
    """Return a piece of bar for the legend."""
    return f'<rect x="1" y="2" width="18" height="12" fill="{fill}" stroke="{stroke}"/>'


def _hatch(colour: str) -> str:
    """Return the pattern of what is reserved."""
    return (
        '<defs><pattern id="h" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        f'<rect width="5" height="5" fill="#fff"/><path d="M0 0v5" stroke="{colour}" stroke-width="3"/>'
        "</pattern></defs>"
    )


def _circle(x: float, y: float) -> str:
    """Return the mark of PLD."""
    return f'<circle cx="{x:.1f}" cy="{y}" r="4.6" fill="{ORANGE}" stroke="#fff" stroke-width="1.4"/>'


def _diamond(x: float, y: float, fill: str) -> str:
    """Return the mark of RDP."""
    return (
        f'<path d="M{x:.1f} {y - 6}l5.6 6l-5.6 6l-5.6 -6z" fill="{fill}" stroke="#fff" stroke-width="1.2"/>'
    )


def _cross(x: float, y: float) -> str:
    """Return the mark of refused work."""
    return (
        f'<path d="M{x - 4.5:.1f} {y - 4.5}l9 9m0 -9l-9 9" stroke="#fff" stroke-width="5"/>'
        f'<path d="M{x - 4.5:.1f} {y - 4.5}l9 9m0 -9l-9 9" stroke="{VERMILION}" stroke-width="2.6"/>'
    )


def _between(shown: float, proved: float, shape: Shape) -> str:
    """Return the tick of what an attack could show, and the line from it to what is proved."""
    y = shape.top + shape.bar + shape.bar / 5
    return (
        f'<path d="M{shown:.1f} {y + 5}H{proved:.1f}v-5" stroke="{GREEN}" fill="none" stroke-width="1.4" '
        'stroke-dasharray="3 2"/>'
        f'<path d="M{shown:.1f} {y}l5 9h-10z" fill="{GREEN}"/>'
    )


def _svg(height: float, body: str, *, width: float = WIDTH) -> str:
    """Return an SVG document."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="{_FONT}">{body}</svg>'
    )
