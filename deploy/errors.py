"""Errors and exit codes of the command line.

DeployError
├── ConfigError   a configuration file (or an override of it) cannot be used; carries every problem found
└── EngineError   the engine that should run the sites is not there or failed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """What a command of ours returns to the shell; the numbers are part of the interface."""

    DONE = 0
    FAILED = 1
    CONFIGURATION = 2
    REFUSED_BY_PRIVACY = 3
    QUORUM_LOST = 4
    DATA_NOT_READY = 5


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with a configuration.

    Attributes:
        path: Dotted key, such as `federation.rounds`; empty for the file as a whole.
        rule: What must hold, as a phrase.
        value: What was found, as text; empty where there is nothing to show.
        where: `line 12`, or `--set` for a value from the command line; empty if unknown.
        suggestion: The nearest valid name, or empty.
    """

    path: str
    rule: str
    value: str = ""
    where: str = ""
    suggestion: str = ""

    def __str__(self) -> str:
        """Return one line: where, key, value, rule, suggestion."""
        found = f" = {self.value}" if self.value else ""
        place = f"{self.where}: " if self.where else ""
        hint = f"; did you mean `{self.suggestion}`?" if self.suggestion else ""
        return f"{place}{self.path or 'file'}{found}: {self.rule}{hint}"


class DeployError(Exception):
    """Base of every domain error of this package; the message names the thing, the rule and the way out."""


class ConfigError(DeployError):
    """A configuration cannot be used.

    Attributes:
        source: Name of the file.
        problems: Every problem found, in the order of the file.
    """

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {problem}" for problem in self.problems)]))


class EngineError(DeployError):
    """The engine that should run the sites is not there or failed."""
