"""From the figures of runs to what a study says: means over seeds, intervals, paired differences, shares of a gap.

The interval is Student's t over seeds: where those decide data, initial weights, sampling and noise alike, it is about
another cohort of the same kind. Differences and shares are taken seed by seed first, so that what all lines of a seed
have in common falls out.

References:
    Student 1908, Biometrika 6, 1-25.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deploy.studies.definition import Aim, Gap, Metric, Plan, Study
from deploy.studies.running import Scores

CONFIDENCE = 0.95
Verdict = Literal["met", "missed", "open"]
BySeed = dict[int, float]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds with its 95 % interval; both ends equal the mean's nearest infinity with one seed alone."""

    mean: float
    low: float
    high: float
    num: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line in a group, at an epsilon.

    Attributes:
        group: Label.
        line: Name.
        epsilon: Asked for; None without privacy.
        spent: Largest that was spent, by PLD; None without privacy.
        values: One for each metric of the study; None where no run has it.
        differences: From the line that the study compares with, paired by seed; likewise.
        share: Of the gap that is closed; None where there is none.
    """

    group: str
    line: str
    epsilon: float | None
    spent: float | None
    values: tuple[Estimate | None, ...]
    differences: tuple[Estimate | None, ...]
    share: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of an aim: met or missed if the whole interval says so, open otherwise."""

    aim: Aim
    share: Estimate | None
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a study says.

    Attributes:
        study: As read.
        rows: In the order of groups, lines, epsilons.
        outcomes: Of the aims.
        num_runs: How many runs it rests on.
        seconds: They took in all, one after another.
        synthetic: Whether all data were made up.
    """

    study: Study
    rows: tuple[Row, ...]
    outcomes: tuple[Outcome, ...]
    num_runs: int
    seconds: float
    synthetic: bool


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return mean and interval of values over seeds; None if there are none, or one is not finite.

    Args:
        values: One a seed.
    """
    found = np.asarray(values, np.float64)
    if not len(found) or not np.isfinite(found).all():
        return None
    mean = float(found.mean())
    if len(found) == 1:
        return Estimate(mean=mean, low=-math.inf, high=math.inf, num=1)
    from scipy.stats import t

    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found)))
    return Estimate(mean=mean, low=mean - half, high=mean + half, num=len(found))


def summarise(plan: Plan, scores: Mapping[str, Scores]) -> Summary:
    """Return what a study says.

    Args:
        plan: Of the study.
        scores: Run -> figures.
    """
    study = plan.study
    table = _Table(plan, scores)
    rows = [
        table.row(group, line.name, epsilon)
        for group in study.groups
        for line in study.lines
        for epsilon in line.epsilons or (None,)
    ]
    return Summary(
        study=study,
        rows=tuple(rows),
        outcomes=tuple(_outcome(aim, rows) for aim in (study.gap.aims if study.gap else ())),
        num_runs=len(plan.runs),
        seconds=sum(scores[key].seconds for key in plan.runs),
        synthetic=all(made.data.kind in ("phantom", "toy") for made in plan.runs.values()),
    )


class _Table:
    """Figures by group, line and epsilon."""

    def __init__(self, plan: Plan, scores: Mapping[str, Scores]) -> None:
        self._plan, self._scores, self._study = plan, scores, plan.study

    def row(self, group: str, line: str, epsilon: float | None) -> Row:
        """Return a row."""
        metrics = self._study.metrics
        own = [self._by_seed(group, line, epsilon, metric) for metric in metrics]
        against = self._study.against
        base: list[BySeed] = [{} for _ in metrics]
        if against and against != line:
            base = [self._by_seed(group, against, self._first_epsilon(against), metric) for metric in metrics]
        spent = [
            found
            for cell in self._plan.cells
            if (cell.group, cell.line, cell.epsilon) == (group, line, epsilon)
            and epsilon is not None
            and (found := self._scores[cell.run].epsilon) is not None
        ]
        return Row(
            group=group,
            line=line,
            epsilon=epsilon,
            spent=max(spent, default=None),
            values=tuple(estimate(list(values.values())) for values in own),
            differences=tuple(_paired(one, other) for one, other in zip(own, base, strict=True)),
            share=self._share(group, line, epsilon),
        )

    def _share(self, group: str, line: str, epsilon: float | None) -> Estimate | None:
        """Return what share of the gap is closed, seed by seed."""
        gap: Gap | None = self._study.gap
        if gap is None or line in (gap.start, gap.end):
            return None
        metric = next(each for each in self._study.metrics if each.metric == gap.metric)
        start, end = (
            self._by_seed(group, name, self._first_epsilon(name), metric) for name in (gap.start, gap.end)
        )
        own = self._by_seed(group, line, epsilon, metric)
        seeds = start.keys() & end.keys() & own.keys()
        return estimate(
            [
                (start[seed] - own[seed]) / (start[seed] - end[seed])
                for seed in sorted(seeds)
                if start[seed] != end[seed]
            ]
        )

    def _by_seed(self, group: str, line: str, epsilon: float | None, metric: Metric) -> BySeed:
        """Return the figures of a line, by seed."""
        return {
            cell.seed: value
            for cell in self._plan.cells
            if (cell.group, cell.line, cell.epsilon) == (group, line, epsilon)
            and (value := self._scores[cell.run].value(cell.arm, metric.task, metric.metric)) is not None
        }

    def _first_epsilon(self, line: str) -> float | None:
        """Return the epsilon at which a line is taken where one has to be chosen."""
        epsilons = next(each.epsilons for each in self._study.lines if each.name == line)
        return epsilons[0] if epsilons else None


def _paired(own: BySeed, other: BySeed) -> Estimate | None:
    """Return the mean difference over the seeds that both have."""
    return estimate([own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())])


def _outcome(aim: Aim, rows: Sequence[Row]) -> Outcome:
    """Return what came of an aim."""
    share = next(
        (
            row.share
            for row in rows
            if (row.group, row.line, row.epsilon) == (aim.group, aim.line, aim.epsilon)
        ),
        None,
    )
    verdict: Verdict = "open"
    if share is not None and share.low >= aim.share:
        verdict = "met"
    elif share is not None and share.high < aim.share:
        verdict = "missed"
    return Outcome(aim=aim, share=share, verdict=verdict)
