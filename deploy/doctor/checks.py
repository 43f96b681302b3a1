"""What a check is, and what it may look at.

A check is a function of a `Visit` that yields what it has to say; `@check` gives it its name, its line in the
documentation, and what has to hold before it makes sense.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.connection import ConnectionSection
from deploy.doctor.findings import Finding, Said, Severity
from deploy.doctor.line import Line
from deploy.folders import cache_folder
from deploy.site import SiteConfig

SLOW_S = 60.0
"""Least deadline of what loads torch, reads a whole ledger, or looks at every scan [s]."""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What checks look at; each reads of it what it needs.

    Attributes:
        site: What the hospital's file says.
        file: That file, as it was named.
        timeout_s: Deadline of a check [s].
        cache: Folder of prepared records.
        environment: Variables of this process.
        mounts: Where the system lists its file systems.
        now: Returns this machine's time [s since 1970].
    """

    site: SiteConfig
    file: Path
    timeout_s: float
    cache: Path = field(default_factory=cache_folder)
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    mounts: Path = Path("/proc/mounts")
    now: Callable[[], float] = time.time

    @property
    def connection(self) -> ConnectionSection:
        """Return how the server is reached.

        Raises:
            RuntimeError: the file has no such section; checks that need it are skipped then.
        """
        if self.site.connection is None:
            raise RuntimeError("this check needs `connection`, and is to be marked so")
        return self.site.connection

    @functools.cached_property
    def line(self) -> Line:
        """Return the line to the server; what one check learns on it, the next ones know."""
        # A part of the deadline, so that a silent server is named by the step at which it fell silent.
        return Line(connection=self.connection, budget_s=0.8 * self.timeout_s, now=self.now)


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check with its name.

    Attributes:
        id: Stable; `GROUP.NAME`.
        asks: What it looks at, for the documentation.
        worst: The worst that it finds by itself.
        way_out: What to do about it, for the documentation.
        needs: Checks that must not have failed before, or it is skipped.
        on_line: Whether it needs the section `connection`.
        at_least_s: Least deadline [s].
        look: Yields what it has to say.
    """

    id: str
    asks: str
    worst: Severity
    way_out: str
    needs: tuple[str, ...] = ()
    on_line: bool = False
    at_least_s: float = 0.0
    look: Callable[[Visit], Iterable[Said]]

    def findings(self, visit: Visit) -> tuple[Finding, ...]:
        """Return what the check has to say, under its name."""
        return tuple(
            Finding(id=self.id, severity=said.severity, found=said.found, fix=said.fix)
            for said in self.look(visit)
        )


def check(
    id: str,  # noqa: A002 - that is what it is
    *,
    asks: str,
    worst: Severity,
    way_out: str,
    needs: tuple[str, ...] = (),
    on_line: bool = False,
    at_least_s: float = 0.0,
) -> Callable[[Callable[[Visit], Iterable[Said]]], Check]:
    """Return what makes a `Check` of a function; arguments as its attributes."""

    def named(look: Callable[[Visit], Iterable[Said]]) -> Check:
        return Check(
            id=id,
            asks=asks,
            worst=worst,
            way_out=way_out,
            needs=needs,
            on_line=on_line,
            at_least_s=at_least_s,
            look=look,
        )

    return named
