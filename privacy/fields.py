"""Strict reading of small documents: exactly the expected keys, every problem reported at once.

Used by every value object of this package that travels (plan, release, claim), so that one rule holds.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
from collections.abc import Mapping, Sequence

from privacy.errors import PlanError


def require_fields(payload: object, *, subject: str, names: Sequence[str]) -> Mapping[str, object]:
    """Return `payload` if it is a mapping with exactly the keys `names`.

    Raises:
        PlanError: not a mapping, or with missing or unknown keys; all of them are named.
    """
    if not isinstance(payload, Mapping):
        raise PlanError(
            subject, [f"must be a mapping with the keys {', '.join(names)}, got {type(payload).__name__}"]
        )
    problems = [f"{name} is missing" for name in names if name not in payload]
    for key in sorted(str(key) for key in payload if key not in names):
        nearest = difflib.get_close_matches(key, names, n=1)
        problems.append(f"{key!r} is unknown" + (f" (did you mean {nearest[0]!r}?)" if nearest else ""))
    if problems:
        raise PlanError(subject, problems)
    return payload


def number_problem(name: str, value: object, *, low: float, high: float, rule: str) -> list[str]:
    """Return a problem unless `value` is a finite number (no bool) with low < value <= high."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer beyond float64
            if math.isfinite(value) and low < value <= high:
                return []
    return [f"{name} must be {rule}, got {value!r:.60}"]


def integer_problem(name: str, value: object, *, low: int, high: int | None = None) -> list[str]:
    """Return a problem unless `value` is an int (no bool) with low <= value <= high."""
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and low <= value
        and (high is None or value <= high)
    ):
        return []
    rule = f">= {low}" if high is None else f"from {low} to {high}"
    return [f"{name} must be an integer {rule}, got {value!r:.60}"]


def choice_problem(name: str, value: object, *, choices: Sequence[str]) -> list[str]:
    """Return a problem unless `value` is one of `choices`."""
    if isinstance(value, str) and value in choices:
        return []
    return [f"{name} must be one of {', '.join(choices)}, got {value!r:.60}"]


def parse_json(text: str | bytes, *, subject: str) -> object:
    """Return parsed JSON; duplicate keys and NaN are refused.

    Raises:
        PlanError: the text is not such JSON.
    """

    def unique(pairs: list[tuple[str, object]]) -> Mapping[str, object]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise PlanError(subject, [f"not valid JSON: {error}"]) from error
