"""The privacy ledger: rounds paid for each second with every entry flushed to disk, and the time to open a long one."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from privacy import genesis
from privacy.filters import RenyiFilter
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan
from privacy.records import Work
from privacy.signing import SigningKey, generate_key
from tests.benchmarks.figures import Figure, figure, ratios

HASH, SALT = "0" * 64, bytes(32)
RULE = RenyiFilter(epsilon=1e4, delta=1e-5, order=8)
PLAN = PrivacyPlan(
    sampling_probability=0.01, steps=5, noise_multiplier=2.0, max_grad_norm=1.0, divisor=10.0, delta=1e-5
)


def measure(*, quick: bool) -> list[Figure]:
    """Return what a round costs at the ledger, and what a long history costs when it is opened."""
    with tempfile.TemporaryDirectory(prefix="bench-ledger-") as folder:
        lengths = (200, 1000) if quick else (1000, 10_000)
        appends = measure_appends(Path(folder), rounds=20 if quick else 100, repeats=3 if quick else 7)
        return appends + measure_opening(Path(folder), lengths=lengths, repeats=2 if quick else 5)


def measure_appends(folder: Path, *, rounds: int, repeats: int) -> list[Figure]:
    """Return rounds (RESERVE and COMMIT) a second, flushed or not, and against two flushed writes of one page."""
    flushed, unflushed = (
        _begin(folder / name, durable=name == "flushed") for name in ("flushed", "unflushed")
    )
    page = folder / "page"
    numbers = iter(range(1_000_000))
    parts: dict[str, Callable[[], None]] = {
        "two pages written and flushed": lambda: _write_pages(page, 2),
        "a round, each entry flushed": lambda: _pay(flushed[0], next(numbers)),
        "a round, not flushed": lambda: _pay(unflushed[0], next(numbers)),
    }
    seconds = _wall(parts, rounds=rounds, repeats=repeats)
    reference, *_ = seconds.values()
    made = [
        figure(f"ledger/{name}", [1 / each for each in found], "1/s", "wall time, the disk's included")
        for name, found in seconds.items()
    ]
    against = ratios(seconds["a round, each entry flushed"], reference)
    return [*made, figure("ledger/a round, each entry flushed, time", against, "x two pages flushed")]


def measure_opening(folder: Path, *, lengths: tuple[int, ...], repeats: int) -> list[Figure]:
    """Return the seconds to open ledgers of some numbers of entries: every hash, signature and rule is checked."""
    made, opened = [], {}
    for length in lengths:
        ledger, key = _begin(folder / f"{length}-entries", durable=False)
        for number in range((length - 1) // 2):
            _pay(ledger, number)
        size = ledger.state().size
        ledger.close()
        path = folder / f"{length}-entries" / "ledger.sqlite"
        seconds = _wall({"open": functools.partial(_open, path, key)}, rounds=1, repeats=repeats)["open"]
        opened[length] = [each / size for each in seconds]
        made.append(figure(f"ledger/opening {length:,} entries", seconds, "s", f"{size:,} entries"))
    growth = ratios(opened[lengths[-1]], opened[lengths[0]])
    made.append(figure("ledger/opening, time an entry, longest to shortest", growth, "x"))
    return made


def _begin(folder: Path, *, durable: bool) -> tuple[Ledger, SigningKey]:
    """Return an open ledger of ten patients, and its key."""
    folder.mkdir()
    key, path = generate_key(), folder / "ledger.sqlite"
    names = [f"patient-{number}" for number in range(10)]
    made = genesis.begin(path, site="bench", dataset="bench", rule=RULE, patients=names, key=key, salt=SALT)
    made._store._durable = durable
    made.close()  # the next use opens the file again, so
    return made, key


def _open(path: Path, key: SigningKey) -> None:
    """Open a ledger for writing."""
    Ledger.open(path, key=key, salt=SALT).close()


def _pay(ledger: Ledger, number: int) -> None:
    """Pay for one round: two entries."""
    work = Work(run="bench", round=number, base=HASH)
    ledger.reserve(work, PLAN, model=HASH, policy=HASH)
    ledger.commit(work, [PLAN.steps], HASH)


def _write_pages(path: Path, count: int) -> None:
    """Write pages of 4 KiB one after the other, each flushed to disk."""
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(bytes(4096))
            os.fsync(file.fileno())


def _wall(parts: dict[str, Callable[[], None]], *, rounds: int, repeats: int) -> dict[str, list[float]]:
    """Return the wall seconds of each part; they take turns, and each runs once before, unseen."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(repeats + 1):
        for name, part in parts.items():
            started = time.perf_counter()
            for _ in range(rounds if turn > 0 else 1):
                part()
            if turn > 0:
                seconds[name].append((time.perf_counter() - started) / rounds)
    return seconds
