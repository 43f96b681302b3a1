"""The learning rate of every step, against tables made by hand."""

from __future__ import annotations

import math

import pytest

from privacy.errors import PlanError
from privacy.optimiser import Schedule

# T = 7, W = 2, f = 0.2: p = (s - 2) / 4 from the third step on. cos(pi / 4) = 0.70710678.
LINEAR = (0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2)
COSINE = (
    0.5,
    1.0,
    1.0,
    0.2 + 0.4 * (1 + math.sqrt(0.5)),
    0.6,
    0.2 + 0.4 * (1 - math.sqrt(0.5)),
    0.2,
)
CONSTANT = (0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("kind", "table"), [("linear", LINEAR), ("cosine", COSINE), ("constant", CONSTANT)], ids=str
)
def test_every_step_of_a_run_in_one_round(kind: str, table: tuple[float, ...]):
    schedule = Schedule(kind=kind, warmup_steps=2, final_share=0.2, total_steps=7)  # type: ignore[arg-type]
    assert [schedule.share(step) for step in range(7)] == pytest.approx(table, rel=1e-14)
    assert schedule.share(20) == pytest.approx(table[-1]), "a site that goes on stays at the end"


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_rounds_go_on_where_the_one_before_stopped(kind: str, steps: int):
    whole = Schedule(kind=kind, warmup_steps=2, final_share=0.2, total_steps=21)  # type: ignore[arg-type]
    pieces = [
        Schedule(kind=kind, warmup_steps=2, final_share=0.2, total_steps=21, first_step=first).share(step)  # type: ignore[arg-type]
        for first in range(0, 21, steps)
        for step in range(steps)
    ]
    assert pieces[:21] == [whole.share(step) for step in range(21)]


def test_a_run_of_one_step_is_at_its_peak():
    assert Schedule(kind="cosine", total_steps=1).share(0) == 1.0
    assert Schedule(kind="linear", warmup_steps=1, total_steps=2).share(1) == 1.0


def test_without_a_schedule_rates_are_exact():
    assert {Schedule(first_step=first).share(step) for first in (0, 9) for step in range(50)} == {1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "step"}, "schedule must be one of constant, cosine, linear"),
        ({"warmup_steps": -1}, "warmup_steps must be an integer from 0"),
        ({"warmup_steps": 1.5}, "warmup_steps must be an integer"),
        ({"final_share": 0.0}, r"final_share must be a number in \(0, 1\]"),
        ({"final_share": 1.1}, "final_share"),
        ({"first_step": True}, "first_step must be an integer"),
        ({"total_steps": 0}, "total_steps must be an integer from 1"),
    ],
    ids=str,
)
def test_schedules_are_validated(changes: dict[str, object], message: str):
    with pytest.raises(PlanError, match=message):
        Schedule(**changes)  # type: ignore[arg-type]
