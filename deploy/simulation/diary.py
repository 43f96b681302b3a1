"""What virtual sites wrote into their diaries: losses and times. A simulation may look at them, a server may not."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TAIL_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One round at one site.

    Attributes:
        site: Its name.
        run: Run id.
        round: Global round.
        loss: Mean over some training records [nats].
        reconstruction: Its reconstruction term [nats].
        kl: Its KL term, before beta [nats].
        wall_s: Seconds of training.
        cpu_s: CPU seconds of training.
        process: Which process trained.
    """

    site: str
    run: str
    round: int
    loss: float
    reconstruction: float
    kl: float
    wall_s: float
    cpu_s: float
    process: int


def read(folder: Path, sites: Iterable[str]) -> list[Entry]:
    """Return all entries, the last one where a round was run again; a line torn by a kill is passed over."""
    found: dict[tuple[str, str, int], Entry] = {}
    for site in sites:
        path = folder / site / "diary.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                entry = Entry(site=site, **json.loads(line))
            except (json.JSONDecodeError, TypeError):
                continue
            found[site, entry.run, entry.round] = entry
    return list(found.values())


def latest_losses(folder: Path, sites: Iterable[str], run: str) -> dict[str, float]:
    """Return the last loss of each site that has trained in a run."""
    losses: dict[str, float] = {}
    for site in sites:
        path = folder / site / "diary.jsonl"
        if path.exists():
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
                lines = file.read().splitlines()
            with contextlib.suppress(IndexError, ValueError, KeyError, TypeError):
                last = json.loads(lines[-1])
                if last["run"] == run:
                    losses[site] = float(last["loss"])
    return losses


def busy_seconds(entries: Iterable[Entry]) -> float:
    """Return the wall time that the rounds had to take for training: in each round, that of the busiest process."""
    by_round: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for entry in entries:
        by_round[entry.round][entry.process] += entry.wall_s
    return sum(max(processes.values()) for processes in by_round.values())
