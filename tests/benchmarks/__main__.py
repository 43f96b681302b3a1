"""`python -m tests.benchmarks [--quick] [--only NAME] [--json FILE]`: measure, print a table, keep the figures."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from tests.benchmarks.figures import Figure, document, load_average, machine

NAMES = (
    "private_step",
    "step_memory",
    "data",
    "aggregation",
    "engines",
    "memory",
    "many_sites",
    "ledger",
    "audit_power",
    "accelerator",
)

# Before torch and Flower are imported, and for all children: one thread, and nothing phones home.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks and return 0: no figure is right or wrong."""
    options = _parser().parse_args(arguments)
    figures: list[Figure] = []
    loads: dict[str, tuple[float | None, float | None]] = {}
    for name in options.only or NAMES:
        before, started = load_average(), time.perf_counter()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        figures += import_module(f"tests.benchmarks.{name}").measure(quick=options.quick)
        loads[name] = (before, load_average())
        print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
        if options.json is not None:  # after each, since all of them take an hour
            options.json.write_text(document(figures, quick=options.quick, loads=loads) + "\n")
    print(table(figures, loads))
    return 0


def table(figures: Sequence[Figure], loads: dict[str, tuple[float | None, float | None]]) -> str:
    """Return the figures as text, benchmark by benchmark, with the load of the machine beside them."""
    facts = machine()
    lines = [", ".join(f"{name} {value}" for name, value in facts.items())]
    shown = ""
    for each in figures:
        benchmark, name = each.name.split("/", 1)
        if benchmark != shown:
            shown = benchmark
            lines += ["", f"{benchmark}   (load average {_load(loads.get(benchmark, (None, None)))})"]
        spread = f"[{_number(each.spread[0])} to {_number(each.spread[1])}]" if each.repeats > 1 else ""
        repeats = f"n={each.repeats}" if each.repeats > 1 else ""
        lines.append(
            f"  {name:<52} {_number(each.value):>9} {each.unit:<16} {spread:<20} {repeats:<5} {each.note}".rstrip()
        )
    return "\n".join(lines)


def _load(pair: tuple[float | None, float | None]) -> str:
    """Return the load average before and after."""
    return " to ".join("unknown" if load is None else f"{load:.1f}" for load in pair)


def _number(value: float) -> str:
    """Return three digits that matter."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer repeats and sites, without Ray: about a minute"
    )
    parser.add_argument(
        "--only", action="append", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
