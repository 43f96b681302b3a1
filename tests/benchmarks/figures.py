"""What a benchmark reports, and the machine that it ran on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "flwr", "opacus", "numpy")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured quantity.

    Attributes:
        name: What was measured, `benchmark/what`.
        unit: Of value, median and spread.
        value: The figure to quote: the median, or the peak where memory is measured.
        median: Of the repeats.
        spread: First and third quartile of the repeats.
        repeats: How often it was measured.
        note: What has to be known to read it.
    """

    name: str
    unit: str
    value: float
    median: float
    spread: tuple[float, float]
    repeats: int
    note: str = ""


def figure(name: str, samples: Sequence[float], unit: str, note: str = "") -> Figure:
    """Return the figure of some samples, at least one."""
    middle = statistics.median(samples)
    low, _, high = (
        statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else (middle,) * 3
    )
    return Figure(
        name=name, unit=unit, value=middle, median=middle, spread=(low, high), repeats=len(samples), note=note
    )


def interleaved(parts: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each part, `repeats` times.

    The parts take turns, so that what else runs on the machine hits all of them alike; each runs once before, unseen.
    """
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(repeats + 1):
        for name, part in parts.items():
            started = time.process_time()
            part()
            if turn > 0:
                seconds[name].append(time.process_time() - started)
    return seconds


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Return the ratio of each turn: what slows a turn down cancels out."""
    return [above / below for above, below in zip(numerator, denominator, strict=True)]


def machine() -> dict[str, object]:
    """Return what the figures depend on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def load_average() -> float | None:
    """Return how many processes wanted to run in the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def peak_bytes() -> int:
    """Return this process's peak resident memory; `ru_maxrss` of Linux would begin with that of its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = (line.split() for line in status.read_text().splitlines())
        return next(int(line[1]) * 1024 for line in lines if line[0] == "VmHWM:")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def document(figures: Sequence[Figure], *, quick: bool, loads: Mapping[str, Sequence[float | None]]) -> str:
    """Return the JSON of a run.

    Args:
        figures: What was measured.
        quick: Whether it was the short run.
        loads: Benchmark -> load average before and after it.
    """
    body = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "machine": machine(),
        "load_average": {name: list(pair) for name, pair in loads.items()},
        "figures": [asdict(each) for each in figures],
    }
    return json.dumps(body, indent=1, allow_nan=False)


def _cpu_model() -> str:
    """Return the processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
