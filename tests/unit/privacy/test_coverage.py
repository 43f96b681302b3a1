"""What an epsilon does not cover: every quantity, in every run, in plain English."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest

from privacy.coverage import Coverage, Practices, Quantity, list_coverage
from privacy.errors import PlanError

VALUES: dict[str, tuple[object, ...]] = {
    "standardisation": ("none", "public-constants", "own-statistics"),
    "early_stopping": (False, True),
    "model_choice": ("last-round", "best-round"),
    "tuning_runs": ("none", "ledger", "unrecorded"),
    "zmap": ("none", "raw", "private"),
    "reported_metrics": ("none", "raw", "private"),
}
CAREFUL = Practices(
    standardisation="public-constants",
    early_stopping=False,
    model_choice="last-round",
    tuning_runs="none",
    zmap="none",
    reported_metrics="none",
)
# What decides each quantity, and its status for each value: the whole rule, written anew.
RULES: list[tuple[Quantity, str, dict[object, str]]] = [
    (
        Quantity.STANDARDISATION,
        "standardisation",
        {"none": "not-used", "public-constants": "not-used", "own-statistics": "not-covered"},
    ),
    (Quantity.EARLY_STOPPING, "early_stopping", {False: "not-used", True: "not-covered"}),
    (Quantity.ROUND_CHOICE, "model_choice", {"last-round": "not-used", "best-round": "not-covered"}),
    (
        Quantity.TUNING_RUNS,
        "tuning_runs",
        {"none": "not-used", "ledger": "spent", "unrecorded": "not-covered"},
    ),
    (Quantity.ZMAP, "zmap", {"none": "not-used", "raw": "not-covered", "private": "spent"}),
    (
        Quantity.REPORTED_METRICS,
        "reported_metrics",
        {"none": "not-used", "raw": "not-covered", "private": "spent"},
    ),
]


def every_practice() -> list[Practices]:
    return [
        Practices(**dict(zip(VALUES, values, strict=True)))  # type: ignore[arg-type]
        for values in itertools.product(*VALUES.values())
    ]


def by_quantity(practices: Practices) -> dict[Quantity, Coverage]:
    return {entry.quantity: entry for entry in list_coverage(practices)}


def test_no_quantity_is_ever_left_out_or_said_twice():
    for practices in every_practice():
        assert [entry.quantity for entry in list_coverage(practices)] == list(Quantity)


def test_the_issue_names_are_all_there():
    assert {quantity.value for quantity in Quantity} == {
        "standardisation-statistics",
        "early-stopping",
        "best-round-selection",
        "tuning-runs",
        "z-map-statistics",
        "reported-metrics",
        "participation-and-timing",
        "public-constants",
    }


def test_every_status_follows_from_its_practice_and_no_other():
    for practices in every_practice():
        entries = by_quantity(practices)
        for quantity, field, statuses in RULES:
            assert entries[quantity].status == statuses[getattr(practices, field)]


def test_every_practice_decides_something():
    assert {field for _, field, _ in RULES} == {field.name for field in dataclasses.fields(Practices)}


def test_what_nobody_can_cover_is_always_said():
    for practices in every_practice():
        entries = by_quantity(practices)
        assert entries[Quantity.PARTICIPATION].status == "not-covered"
        assert entries[Quantity.PUBLIC_CONSTANTS].status == "not-covered"


def test_the_careful_run_leaves_only_those_two_open():
    open_ = [entry.quantity for entry in list_coverage(CAREFUL) if entry.status == "not-covered"]
    assert open_ == [Quantity.PARTICIPATION, Quantity.PUBLIC_CONSTANTS]


def test_different_practices_are_described_differently():
    for quantity, field, statuses in RULES:
        sentences = {
            by_quantity(dataclasses.replace(CAREFUL, **{field: value}))[quantity].sentence  # type: ignore[arg-type]
            for value in statuses
        }
        assert len(sentences) == len(statuses)


def test_sentences_are_plain_english():
    for practices in every_practice():
        for entry in list_coverage(practices):
            assert "anonym" not in entry.sentence.lower()
            assert re.fullmatch(r"[A-Z][^_=|{}]*\.", entry.sentence), entry.sentence
            assert not re.search(r"\b(delta|sigma|RDP|PLD|Rényi|sensitivity)\b", entry.sentence)


def test_a_sentence_agrees_with_its_status():
    for practices in every_practice():
        for entry in list_coverage(practices):
            if entry.status == "spent":
                assert "in the ledger" in entry.sentence
            if entry.status == "not-used":
                assert re.search(r"\b(not?|nothing)\b", entry.sentence, re.IGNORECASE), entry.sentence


@pytest.mark.parametrize("field", list(VALUES))
@pytest.mark.parametrize("value", ["maybe", None, 1, ""])
def test_an_unknown_practice_is_refused(field: str, value: object):
    with pytest.raises(PlanError, match=f"{field} must be"):
        dataclasses.replace(CAREFUL, **{field: value})  # type: ignore[arg-type]


def test_every_problem_is_named_at_once():
    with pytest.raises(PlanError) as caught:
        Practices(**dict.fromkeys(VALUES, "?"))  # type: ignore[arg-type]
    assert len(caught.value.problems) == len(VALUES)


def test_no_practice_has_a_default_that_somebody_could_forget():
    with pytest.raises(TypeError):
        Practices()  # type: ignore[call-arg]
