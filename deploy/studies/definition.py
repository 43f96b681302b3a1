"""The file of a study: one experiment, what is changed in it, and over which seeds.

    groups     every line is run in each of them (such as numbers of patients)
    lines      what is compared: an arm of the experiment, some overrides, and the epsilons it is run at
    seeds      every cell is run at each of them; intervals are over these

Overrides are those of the command line (`key=value`), applied in this order: experiment, group, line, line in that
group, epsilon, seed. Every experiment is checked before the first one runs. Runs that differ in their arms alone are
one run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from deploy.config import Experiment, apply_overrides, validate
from deploy.documents import Document, load_document
from deploy.errors import ConfigError, Problem
from deploy.problems import at, nearest
from deploy.sections import STRICT, Location, Name, Positive, Share
from deploy.validation import validate_document

Overrides = tuple[Annotated[str, Field(min_length=3)], ...]
Label = Annotated[str, Field(min_length=1, max_length=80)]

_ARM_OF = {"predict-the-mean": "mean", "site-mean": "mean", "alone:own patients": "local"}
"""Arm of a report -> arm of an experiment that makes it, where the names differ."""


class Line(BaseModel):
    """One line of the comparison.

    Attributes:
        name: In table and picture.
        arm: Of the report: `predict-the-mean`, `federated-dp`, `alone:own patients`, ...
        set: Overrides.
        within: Group -> further overrides.
        epsilons: At which it is run, one cell each (`privacy.epsilon`); empty for an arm without.
    """

    model_config = STRICT
    name: Label
    arm: Label
    set: Overrides = ()
    within: dict[Label, Overrides] = {}
    epsilons: tuple[Positive, ...] = ()


class Metric(BaseModel):
    """A column: where it is in a report, and which way is better.

    Attributes:
        task: Such as `reconstruction`.
        metric: Such as `mse_brain`.
        label: In words.
        better: `lower` or `higher`.
    """

    model_config = STRICT
    task: Label
    metric: Label
    label: Label
    better: Annotated[str, Field(pattern="^(lower|higher)$")] = "lower"


class Aim(BaseModel):
    """What was aimed at, written down before anything was run: a share of a gap, in a group, at an epsilon."""

    model_config = STRICT
    group: Label
    line: Label
    epsilon: Positive
    share: Share


class Gap(BaseModel):
    """The distance from one line to another, in a metric: what share of it does a line close?

    Attributes:
        metric: A `metric` of the columns.
        start: Line at which the share is 0.
        end: Line at which it is 1.
        aims: What was hoped for.
    """

    model_config = STRICT
    metric: Label
    start: Label
    end: Label
    aims: tuple[Aim, ...] = ()


class Study(BaseModel):
    """A study; built by `load_study`.

    Attributes:
        name: Of files and page.
        title: A line for people.
        question: What it asks, in a sentence or two.
        notes: What has to be known to read it right.
        experiment: File of the experiment that is changed.
        seed_keys: Fields that are set to each seed.
        seeds: At least two, or there is no interval.
        groups: Label -> overrides.
        lines: What is compared.
        metrics: Columns; the first is the one that is drawn.
        against: Line from which every other line's paired difference is shown; empty for none.
        gap: What share of a distance is closed; null for none.
    """

    model_config = STRICT
    name: Name
    title: Label
    question: str = ""
    notes: tuple[str, ...] = ()
    experiment: Location
    seed_keys: Annotated[tuple[str, ...], Field(min_length=1)] = ("seed",)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=2)]
    groups: Annotated[dict[Label, Overrides], Field(min_length=1)]
    lines: Annotated[tuple[Line, ...], Field(min_length=1)]
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)]
    against: str = ""
    gap: Gap | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One line in one group at one epsilon and one seed, and the run that has its figures."""

    group: str
    line: str
    epsilon: float | None
    seed: int
    arm: str
    run: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study, ready to be run.

    Attributes:
        study: As read.
        cells: In the order of the tables.
        runs: Key -> experiment, each with all arms that its cells need.
    """

    study: Study
    cells: tuple[Cell, ...]
    runs: Mapping[str, Experiment]


def load_study(path: Path | str, overrides: Sequence[str] = ()) -> Plan:
    """Return the study that a file describes, with every experiment checked.

    Args:
        path: A YAML file.
        overrides: `key=value` each, for the study's own fields, such as `seeds=[1, 2]`.

    Raises:
        ConfigError: with every problem of the file, or of the first experiment that cannot be run.
    """
    document, problems = apply_overrides(load_document(path), overrides)
    study = validate_document(document, Study, _rules, folder=Path(path).parent, problems=problems)
    return plan_study(study)


def plan_study(study: Study) -> Plan:
    """Return the cells of a study, and the runs that they need.

    Raises:
        ConfigError: an experiment cannot be run; the message names group, line and epsilon.
    """
    base = load_document(study.experiment)
    cells: list[Cell] = []
    experiments: dict[str, Experiment] = {}
    arms: dict[str, set[str]] = {}
    for group, line, epsilon, seed in _all(study):
        made = _experiment(study, base, group=group, line=line, epsilon=epsilon, seed=seed)
        key = hashlib.sha256(made.hash().encode()).hexdigest()[:16]
        experiments[key] = made
        arms.setdefault(key, set()).add(_ARM_OF.get(line.arm, line.arm))
        cells.append(Cell(group=group, line=line.name, epsilon=epsilon, seed=seed, arm=line.arm, run=key))
    runs = {
        key: made.model_copy(update={"arms": tuple(sorted(arms[key]))}) for key, made in experiments.items()
    }
    return Plan(study=study, cells=tuple(cells), runs=runs)


def _all(study: Study) -> Iterator[tuple[str, Line, float | None, int]]:
    """Yield every combination."""
    for group in study.groups:
        for line in study.lines:
            for epsilon in line.epsilons or (None,):
                for seed in study.seeds:
                    yield group, line, epsilon, seed


def _experiment(
    study: Study, base: Document, *, group: str, line: Line, epsilon: float | None, seed: int
) -> Experiment:
    """Return the experiment of a cell."""
    overrides = [
        *study.groups[group],
        *line.set,
        *line.within.get(group, ()),
        *([] if epsilon is None else [f"privacy.epsilon={epsilon!r}"]),
        *(f"{key}={seed}" for key in study.seed_keys),
        f"arms=[{_ARM_OF.get(line.arm, line.arm)}]",
    ]
    document, problems = apply_overrides(base, overrides)
    try:
        return validate(document, folder=Path(study.experiment).parent, problems=problems)
    except ConfigError as error:
        where = f"{study.experiment}, changed for {line.name} in {group}" + (
            "" if epsilon is None else f" at epsilon {epsilon:g}"
        )
        raise ConfigError(where, error.problems) from error


def _rules(sections: Mapping[str, Any], document: Document) -> list[Problem]:
    """Return every problem between fields: names that are not there."""
    lines: tuple[Line, ...] | None = sections.get("lines")
    groups: dict[str, Overrides] | None = sections.get("groups")
    if lines is None or groups is None:
        return []
    known = [line.name for line in lines]
    found: list[Problem] = []

    def require(path: tuple[str | int, ...], name: str, choices: Sequence[str], what: str) -> None:
        if name not in choices:
            rule = f"there is no such {what}" + (
                f"; did you mean `{near}`?" if (near := nearest(name, choices)) else ""
            )
            found.append(at(document, path, rule))

    for index, line in enumerate(lines):
        if line.name in known[:index]:
            found.append(at(document, ("lines", index, "name"), "is the name of an earlier line"))
        for group in line.within:
            require(("lines", index, "within", group), group, list(groups), "group")
    if against := sections.get("against"):
        require(("against",), against, known, "line")
    gap: Gap | None = sections.get("gap")
    if gap is not None:
        metrics = [metric.metric for metric in sections.get("metrics") or ()]
        require(("gap", "metric"), gap.metric, metrics, "metric")
        for end in ("start", "end"):
            require(("gap", end), getattr(gap, end), known, "line")
        for index, aim in enumerate(gap.aims):
            require(("gap", "aims", index, "group"), aim.group, list(groups), "group")
            require(("gap", "aims", index, "line"), aim.line, known, "line")
    return found
