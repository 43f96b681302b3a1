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
    OWN_PATIENTS,
    SITE_MEAN,
    WARM_START,
    Better,
    Interval,
    MetricFacts,
    Report,
    alone,
)
from server.report.words import decimals

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
_WORDS = {"zmap": "Z-map", "brain": "in the brain", "within-site": "within a site", "mse": "squared error"}
_IMPLIED = frozenset({"anomaly", "reconstruction", "pseudo-healthy"})
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
    """Return the distinct (task, metric) pairs, those that judge detection first."""
    seen = dict.fromkeys((row.task, row.metric) for row in report.results)
    return tuple(sorted(seen, key=lambda pair: not is_detection(pair[1])))


def primary(report: Report) -> tuple[str, str] | None:
    """Return the (task, metric) that the verdict is about: as asked for, else the first that has a direction."""
    pairs = columns(report)
    if report.primary in pairs:
        return report.primary
    directed = [pair for pair in pairs if measure(report, pair[1]).better != "neither"]
    return next(iter(directed or pairs), None)


def column_label(report: Report, task: str, metric: str) -> str:
    """Return a metric in words, with its task unless the metric implies it: "AUROC (Z-map, 30 %)"."""
    label = measure(report, metric).label
    return label if not task or task in _IMPLIED else f"{label} for {task.replace('_', ' ')}"


def column_places(report: Report, task: str, metric: str) -> int | None:
    """Return how many decimals the values of a metric deserve, by the width of their intervals."""
    return decimals(
        abs(row.ci95[1] - row.ci95[0])
        for row in report.results
        if (row.task, row.metric) == (task, metric) and row.ci95 is not None
    )


def degrees(report: Report) -> dict[tuple[str, str], tuple[tuple[float, str], ...]]:
    """Return (task, stem) -> (degree, metric) of metrics that differ in a degree alone, as `dice_5`, `_30`.

    The number at the end is the degree of the disease in percent; a family has three members at least.
    """
    families: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for task, metric in columns(report):
        stem, _, degree = metric.rpartition("_")
        if stem and re.fullmatch(r"\d+(\.\d+)?", degree):
            families.setdefault((task, stem), []).append((float(degree), metric))
    return {key: tuple(sorted(members)) for key, members in families.items() if len(members) >= 3}


def arm_label(report: Report, arm: str) -> str:
    """Return an arm in words."""
    if arm == alone(OWN_PATIENTS):
        return "Each site alone, own patients"
    if arm.startswith(ALONE):
        return f"{arm.removeprefix(ALONE)} alone"
    claims = {row.claim for row in report.privacy.per_site} if report.privacy else set()
    noise = "Federated with DP" if claims == {"dp"} else "Federated, DP not claimed"
    if claims in ({"seeded"}, {"seeded", "dp"}):
        noise = "Federated, seeded DP noise"
    named = {
        MEAN: "Predict the mean",
        SITE_MEAN: "Predict the site's own mean",
        WARM_START: "Public start, untrained here",
        FEDERATED: "Federated, no privacy",
        FEDERATED_DP: noise,
        CENTRALISED: "Centralised, no privacy",
    }
    return named.get(arm, arm)


def _tokens(metric: str) -> list[str]:
    """Split a metric's name into lower-case words."""
    return [token for token in re.split(r"[^a-z0-9]+", metric.lower()) if token]


def _in_words(metric: str, known: MetricFacts) -> str:
    """Return the known label with the other words of the name behind it: "AUROC (Z-map, 30 %)"."""
    rest = "_".join(token for token in _tokens(metric) if token != known.name).replace(
        "within_site", "within-site"
    )
    said = [_WORDS.get(token, f"{token} %" if token.isdigit() else token) for token in rest.split("_")]
    return f"{known.label} ({', '.join(said)})"
