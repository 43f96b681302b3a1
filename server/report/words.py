"""Numbers, names and lists as text: the same everywhere in a report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from server.report.document import Interval


def number(value: float | None, *, signed: bool = False, places: int | None = None) -> str:
    """Return a number with `places` decimals, else three significant digits; in words where it is none."""
    if value is None or math.isnan(value):
        return "n/a"
    sign = "−" if value < 0 else "+" if signed and value > 0 else ""
    size = abs(value)
    if math.isinf(size):
        return f"{sign}∞"
    if places is not None:
        text = f"{size:,.{places}f}"
        return (sign if float(text.replace(",", "")) else "") + text
    if size == 0:
        return "0"
    if size >= 1000:
        return f"{sign}{size:,.0f}"
    return sign + (f"{size:.2e}" if size < 1e-3 else f"{size:#.3g}".rstrip("."))


def interval(ci95: Interval | None, *, signed: bool = False, places: int | None = None) -> str:
    """Return an interval as "low to high"."""
    if ci95 is None:
        return "no interval"
    low, high = (number(edge, signed=signed, places=places) for edge in ci95)
    return f"{low} to {high}"


def decimals(widths: Iterable[float]) -> int | None:
    """Return how many decimals intervals of these widths deserve: two digits of the median half-width."""
    usable = [width for width in widths if math.isfinite(width) and width > 0]
    return min(9, max(0, 1 - math.floor(math.log10(median(usable) / 2)))) if usable else None


def up(bound: float) -> str:
    """Return an upper bound, rounded up: a rounded bound must still be one."""
    if not math.isfinite(bound):
        return number(bound)
    places = 2 if bound < 100 else 0
    return number(math.ceil(round(bound * 10**places, 6)) / 10**places, places=places)


def small(probability: float) -> str:
    """Return a small probability as a plain decimal, such as 0.00001."""
    return (
        f"{probability:.10f}".rstrip("0") if probability >= 1e-8 else f"{probability:.1e}".replace("-", "−")
    )


def count(quantity: int, noun: str) -> str:
    """Return "1 site", "4 sites"."""
    return f"{quantity:,} {noun}{'' if quantity == 1 else 's'}"


def shown(text: str, limit: int = 60) -> str:
    """Return a name that is safe to print: no control or direction-changing characters, no endless length."""
    clean = "".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def listed(items: list[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1].removeprefix('and ')}"


def shortened(items: list[str], limit: int = 6) -> list[str]:
    """Return the first items, and how many there are beside."""
    return items if len(items) <= limit else [*items[: limit - 1], f"and {len(items) - limit + 1} more"]
