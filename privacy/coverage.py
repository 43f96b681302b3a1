"""What an epsilon says nothing about, listed by the software itself rather than left to the reader.

An epsilon is about the releases in the ledger. Other things computed from patients may leave a site beside
them, or decide what leaves. `list_coverage` names each of those and says for this run: spent in the ledger, not
covered, or not used. No quantity is ever left out.

What it does not do: find out how a run was done. `Practices` holds plain facts that the caller has to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from privacy.errors import PlanError
from privacy.fields import choice_problem

Status = Literal["spent", "not-covered", "not-used"]
Verdict = tuple[Status, str]

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "standardisation": ("none", "public-constants", "own-statistics"),
    "model_choice": ("last-round", "best-round"),
    "tuning_runs": ("none", "ledger", "unrecorded"),
    "zmap": ("none", "raw", "private"),
    "reported_metrics": ("none", "raw", "private"),
}


class Quantity(StrEnum):
    """Something that depends on patients, or is taken to be public, beside the updates of training."""

    STANDARDISATION = "standardisation-statistics"
    EARLY_STOPPING = "early-stopping"
    ROUND_CHOICE = "best-round-selection"
    TUNING_RUNS = "tuning-runs"
    ZMAP = "z-map-statistics"
    REPORTED_METRICS = "reported-metrics"
    PARTICIPATION = "participation-and-timing"
    PUBLIC_CONSTANTS = "public-constants"


@dataclass(frozen=True, kw_only=True)
class Practices:
    """How a run was done: public facts, one for each thing that an epsilon may not cover.

    Attributes:
        standardisation: What intensities were scaled by: `none`, `public-constants` (or each scan by itself), or
            `own-statistics` of the patients of a site.
        early_stopping: Whether a figure computed from patients without noise decided when to stop.
        model_choice: Which round's model is published: `last-round`, or the `best-round` by such a figure.
        tuning_runs: Earlier runs on these patients that chose settings: `none`, `ledger` (each is in it), or
            `unrecorded`.
        zmap: Reference statistics of healthy patients for Z-maps that leave the site: `none`, `raw`, or
            `private` (noised and in the ledger).
        reported_metrics: Losses, curves, scores and example images in a report: `none` leave the site, `raw`, or
            `private` (noised and in the ledger).
    """

    standardisation: Literal["none", "public-constants", "own-statistics"]
    early_stopping: bool
    model_choice: Literal["last-round", "best-round"]
    tuning_runs: Literal["none", "ledger", "unrecorded"]
    zmap: Literal["none", "raw", "private"]
    reported_metrics: Literal["none", "raw", "private"]

    def __post_init__(self) -> None:
        problems = [
            problem
            for name, choices in _CHOICES.items()
            for problem in choice_problem(name, getattr(self, name), choices=choices)
        ]
        stopped: object = self.early_stopping  # whatever was given
        if not isinstance(stopped, bool):
            problems.append(f"early_stopping must be true or false, got {stopped!r:.60}")
        if problems:
            raise PlanError("practices", problems)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What holds for one quantity in one run.

    Attributes:
        quantity: Which.
        status: `spent`: part of the epsilon; `not-covered`: the epsilon does not protect against it;
            `not-used`: it did not happen in this run.
        sentence: The same for a reader without mathematics.
    """

    quantity: Quantity
    status: Status
    sentence: str


def list_coverage(practices: Practices) -> tuple[Coverage, ...]:
    """Return one entry for every `Quantity`, in the order of the enum.

    Guarantees:
        Complete for every `Practices` (tests/unit/privacy/test_coverage.py).
    """
    verdicts: Mapping[Quantity, Verdict] = {
        Quantity.STANDARDISATION: _STANDARDISATION[practices.standardisation],
        Quantity.EARLY_STOPPING: _EARLY_STOPPING[practices.early_stopping],
        Quantity.ROUND_CHOICE: _ROUND_CHOICE[practices.model_choice],
        Quantity.TUNING_RUNS: _TUNING_RUNS[practices.tuning_runs],
        Quantity.ZMAP: _ZMAP[practices.zmap],
        Quantity.REPORTED_METRICS: _REPORTED_METRICS[practices.reported_metrics],
        Quantity.PARTICIPATION: _PARTICIPATION,
        Quantity.PUBLIC_CONSTANTS: _PUBLIC_CONSTANTS,
    }
    return tuple(
        Coverage(quantity=quantity, status=status, sentence=sentence)
        for quantity in Quantity
        for status, sentence in [verdicts[quantity]]
    )


_STANDARDISATION: Mapping[str, Verdict] = {
    "none": ("not-used", "Intensities were not scaled by anything computed over patients."),
    "public-constants": (
        "not-used",
        "Intensities were scaled by constants fixed beforehand, or each scan by itself; nothing was computed "
        "over patients.",
    ),
    "own-statistics": (
        "not-covered",
        "Intensities were scaled by averages over the hospital's own patients, computed without noise. The model "
        "depends on these averages in a way that the epsilon does not count.",
    ),
}
_EARLY_STOPPING: Mapping[bool, Verdict] = {
    False: (
        "not-used",
        "Training ran the number of steps fixed beforehand, or ended sooner for reasons that have nothing to do "
        "with patients.",
    ),
    True: (
        "not-covered",
        "Training stopped when a figure computed from patients, without noise, said so. The moment of stopping "
        "tells something about them that the epsilon does not count.",
    ),
}
_ROUND_CHOICE: Mapping[str, Verdict] = {
    "last-round": (
        "not-used",
        "The model of the last round is published; no patient's data had a say in the choice.",
    ),
    "best-round": (
        "not-covered",
        "The published model is the round that did best on patients' data, measured without noise. The choice "
        "tells something about them that the epsilon does not count.",
    ),
}
_TUNING_RUNS: Mapping[str, Verdict] = {
    "none": ("not-used", "No earlier run on these patients chose the settings."),
    "ledger": (
        "spent",
        "Earlier runs on these patients that chose the settings are in the ledger, and their cost is part of the "
        "figure.",
    ),
    "unrecorded": (
        "not-covered",
        "Earlier runs on these patients chose the settings and are not in the ledger. What they revealed comes on "
        "top of the figure.",
    ),
}
_ZMAP: Mapping[str, Verdict] = {
    "none": ("not-used", "No reference statistics for Z-maps left the hospital."),
    "raw": (
        "not-covered",
        "Averages and spreads over healthy patients left the hospital for Z-maps, without noise. The epsilon does "
        "not protect these patients against what they show.",
    ),
    "private": (
        "spent",
        "Averages and spreads over healthy patients left the hospital for Z-maps with noise added, and their cost "
        "is in the ledger.",
    ),
}
_REPORTED_METRICS: Mapping[str, Verdict] = {
    "none": ("not-used", "No losses, curves, scores or images computed from patients are in a report."),
    "raw": (
        "not-covered",
        "A report contains losses, curves, scores or images computed from patients without noise. Whoever reads it "
        "learns something that the epsilon does not count; an image may show a patient.",
    ),
    "private": (
        "spent",
        "The figures in a report were computed from patients with noise added, and their cost is in the ledger.",
    ),
}
_PARTICIPATION: Verdict = (
    "not-covered",
    "That the hospital took part, in which rounds, when, how long a round took and whether it failed can be seen "
    "by the server and on the network. The number of steps is fixed so that time depends little on patients, but "
    "no epsilon counts it.",
)
_PUBLIC_CONSTANTS: Verdict = (
    "not-covered",
    "The settings of the plan (share of patients in a step, clip bound, noise, number of steps, image size, the "
    "largest number of patients agreed at enrolment) are treated as public. The epsilon says nothing about them, "
    "so none may be derived from the patients.",
)
