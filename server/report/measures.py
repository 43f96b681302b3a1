"""How to read a metric: its name in words, which way is better, what chance gives, what it does not prove.

A metric that is neither listed by the report nor known by a token of its name has no direction: nothing is
then called better, best or worse.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from server.report.document import (
    ALONE,
    CENTRALISED,
    FEDERATED,
    FEDERATED_DP,
    MEAN,
    Better,
    Interval,
    MetricFacts,
    Report,
)

Comparison = Literal["better", "worse", "unclear", "unknown"]

PARITY = (
    "A small reconstruction error shows that scans are drawn well on average, not that disease is found: "
    "MSE parity is not detection parity."
)
HEALTHINESS = (
    "Healthiness alone proves nothing: a model that ignores its input and always draws the average healthy "
    "image scores as well. Read it beside the error and the baseline."
)

_KNOWN: tuple[MetricFacts, ...] = (
    MetricFacts(name="auroc", label="AUROC", better="higher", chance=0.5),
    MetricFacts(name="auc", label="AUROC", better="higher", chance=0.5),
    MetricFacts(name="auprc", label="average precision", better="higher"),
    MetricFacts(name="dice", label="Dice overlap", better="higher"),
    MetricFacts(name="ssim", label="SSIM", better="higher", caution=PARITY),
    MetricFacts(name="psnr", label="PSNR", better="higher", caution=PARITY),
    MetricFacts(name="accuracy", label="accuracy", better="higher"),
    MetricFacts(name="sensitivity", label="sensitivity", better="higher"),
    MetricFacts(name="specificity", label="specificity", better="higher"),
    MetricFacts(name="f1", label="F1", better="higher"),
    MetricFacts(name="mse", label="mean squared error", better="lower", caution=PARITY),
    MetricFacts(name="rmse", label="root mean squared error", better="lower", caution=PARITY),
    MetricFacts(name="mae", label="mean absolute error", better="lower", caution=PARITY),
    MetricFacts(name="nll", label="negative log-likelihood", better="lower", caution=PARITY),
    MetricFacts(name="healthiness", label="healthiness", better="neither", caution=HEALTHINESS),
)
_DETECTION = frozenset({"auroc", "auc", "auprc", "dice", "sensitivity", "specificity", "f1", "accuracy"})


def measure(report: Report, metric: str) -> MetricFacts:
    """Return how to read `metric`: the report's own entry, else by a token of its name, else undirected."""
    for own in report.metrics:
        if own.name == metric:
            return own
    tokens = _tokens(metric)
    for known in _KNOWN:
        if known.name in tokens:
            label = known.label if len(tokens) == 1 else _in_words(metric, known)
            return MetricFacts(
                name=metric, label=label, better=known.better, chance=known.chance, caution=known.caution
            )
    return MetricFacts(name=metric, label=metric.replace("_", " "), better="neither")


def is_detection(metric: str) -> bool:
    """Return whether the metric judges that disease is found (and not that images are drawn well)."""
    return any(token in _DETECTION for token in _tokens(metric))


def compare(value: float, ci95: Interval | None, better: Better) -> Comparison:
    """Return what a paired difference shows.

    Returns:
        `better` or `worse` where the interval excludes zero; `unclear` where it holds zero, which is no proof
        of equality; `unknown` without an interval, a finite value or a direction.
    """
    if better == "neither" or ci95 is None or not all(math.isfinite(part) for part in (value, *ci95)):
        return "unknown"
    low, high = min(ci95), max(ci95)
    if low <= 0 <= high:
        return "unclear"
    return "better" if (low > 0) == (better == "higher") else "worse"


def difference(
    report: Report, arm_a: str, arm_b: str, task: str, metric: str
) -> tuple[float, Interval | None] | None:
    """Return arm_a - arm_b with its interval, whichever way round the report holds it, if it does."""
    for row in report.differences:
        if (row.task, row.metric) != (task, metric):
            continue
        if (row.arm_a, row.arm_b) == (arm_a, arm_b):
            return row.value, row.ci95
        if (row.arm_a, row.arm_b) == (arm_b, arm_a):
            return -row.value, None if row.ci95 is None else (-row.ci95[1], -row.ci95[0])
    return None


def columns(report: Report) -> tuple[tuple[str, str], ...]:
    """Return the distinct (task, metric) pairs: the primary one first, then detection, then the rest."""
    seen = dict.fromkeys((row.task, row.metric) for row in report.results)
    first = report.primary
    return tuple(sorted(seen, key=lambda pair: (pair != first, not is_detection(pair[1]))))


def column_label(report: Report, task: str, metric: str) -> str:
    """Return a metric in words, with its task where there is more than one or the task says something."""
    return (
        f"{measure(report, metric).label}, {task.replace('_', ' ')}"
        if task
        else measure(report, metric).label
    )


def arm_label(report: Report, arm: str) -> str:
    """Return an arm in words."""
    if arm.startswith(ALONE):
        return f"{arm.removeprefix(ALONE)} alone"
    claims = {row.claim for row in report.privacy.per_site} if report.privacy else set()
    noise = "with differential privacy" if claims == {"dp"} else "DP noise without a claim"
    if claims in ({"seeded"}, {"seeded", "dp"}):
        noise = "seeded DP noise"
    named = {
        MEAN: "Predict the mean",
        FEDERATED: "Federated, no privacy",
        FEDERATED_DP: f"Federated, {noise}",
        CENTRALISED: "Centralised, no privacy",
    }
    return named.get(arm, arm)


def number(value: float | None, *, signed: bool = False) -> str:
    """Return a number with three significant digits, in words where it is none."""
    if value is None or math.isnan(value):
        return "n/a"
    sign = "−" if value < 0 else "+" if signed and value > 0 else ""
    size = abs(value)
    if math.isinf(size):
        return f"{sign}∞"
    if size == 0:
        return "0"
    if size >= 1000:
        return f"{sign}{size:,.0f}"
    return sign + (f"{size:.2e}" if size < 1e-3 else f"{size:#.3g}".rstrip("."))


def interval(ci95: Interval | None, *, signed: bool = False) -> str:
    """Return an interval as "low to high"."""
    if ci95 is None:
        return "no interval"
    return f"{number(ci95[0], signed=signed)} to {number(ci95[1], signed=signed)}"


def count(quantity: int, noun: str) -> str:
    """Return "1 site", "4 sites"."""
    return f"{quantity:,} {noun}{'' if quantity == 1 else 's'}"


def shown(text: str, limit: int = 60) -> str:
    """Return a name that is safe to print: no control or direction-changing characters, no endless length."""
    clean = "".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _tokens(metric: str) -> list[str]:
    """Split a metric's name into lower-case words."""
    return [token for token in re.split(r"[^a-z0-9]+", metric.lower()) if token]


def _in_words(metric: str, known: MetricFacts) -> str:
    """Return the known label with the other words of the name behind it."""
    rest = " ".join(token for token in _tokens(metric) if token != known.name)
    return f"{known.label} ({rest})"
