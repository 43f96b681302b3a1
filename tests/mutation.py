"""`python -m tests.mutation [MODULE ...]`: change the ledger, the policy and the accounting; see that tests notice.

mutmut makes the changes (one operator, number, string or argument at a time), each is run against the tests that
reach the changed function; `[tool.mutmut]` in pyproject.toml says which files and which tests. The figure is raw,
killed / all: messages of errors and changes that change nothing are counted as survivors like any other. What it
does not see: fields and constants outside functions, and functions with a decorator (properties, mostly), which
mutmut leaves alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MUTANTS = ROOT / "mutants"
_MUTMUT = str(Path(sys.executable).with_name("mutmut"))
LEAST = 0.9

# Exit statuses of pytest as mutmut stores them. Whatever is not here (survived, no test, cut off) is not killed.
_FAILED = frozenset({1, 3})
_TIMED_OUT = frozenset({36, 24, -24, 152, 255, -9})
_NO_TEST = frozenset({5, 33})

# Few examples and none made smaller: mutants are many, and one example that fails is enough.
_QUICK = {"HYPOTHESIS_PROFILE": "quick", "LEDGER_AGREEMENT": "100", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What became of the mutants of one file, or of all."""

    name: str
    mutants: int
    failed: int
    timed_out: int
    no_test: int

    @property
    def killed(self) -> int:
        """A test failed, or ran for more than fifteen times as long as without the change."""
        return self.failed + self.timed_out

    @property
    def share(self) -> float:
        return self.killed / self.mutants if self.mutants else 1.0


def figure(name: str, statuses: Iterable[int | None]) -> Figure:
    """Count the exit statuses of a file's mutants; None is one that never ran."""
    counts = Counter(statuses)
    return Figure(
        name=name,
        mutants=counts.total(),
        failed=sum(counts[status] for status in _FAILED),
        timed_out=sum(counts[status] for status in _TIMED_OUT),
        no_test=sum(counts[status] for status in _NO_TEST),
    )


def total(figures: Sequence[Figure]) -> Figure:
    """Add figures up."""
    return Figure(
        name="all",
        mutants=sum(each.mutants for each in figures),
        failed=sum(each.failed for each in figures),
        timed_out=sum(each.timed_out for each in figures),
        no_test=sum(each.no_test for each in figures),
    )


def table(figures: Sequence[Figure]) -> str:
    """Render figures, weakest first, and their sum."""
    lines = [
        f"{'file':<28}{'mutants':>8}{'killed':>8}{'(slow)':>8}{'survived':>10}{'(no test)':>11}{'killed':>9}"
    ]
    for each in [*sorted(figures, key=lambda one: one.share), total(figures)]:
        survived = each.mutants - each.killed
        lines.append(
            f"{each.name:<28}{each.mutants:>8}{each.killed:>8}{each.timed_out:>8}{survived:>10}{each.no_test:>11}"
            f"{each.share:>9.1%}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run mutmut, print the table and return 0 if at least LEAST of the mutants were killed."""
    options = _parser().parse_args(arguments)
    if not options.report:
        if not options.keep:
            shutil.rmtree(MUTANTS, ignore_errors=True)
        command = [_MUTMUT, "run", "--max-children", str(options.jobs)]
        wanted = [f"privacy.{module}.*" for module in options.modules]
        done = subprocess.run([*command, *wanted], cwd=ROOT, env=os.environ | _QUICK, check=False)
        if done.returncode != 0:
            return done.returncode
    results = _results(options.modules)
    if options.survivors:
        for name in (
            name for statuses in results.values() for name, status in statuses.items() if status == 0
        ):
            _show(name)
    figures = [figure(name, statuses.values()) for name, statuses in results.items()]
    print(table(figures))
    return 0 if figures and total(figures).share >= LEAST else 1


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "modules", metavar="MODULE", nargs="*", help="of privacy/, such as replay; default: all"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="go on with a run that was cut off; what it decided stands, whatever tests are new",
    )
    parser.add_argument(
        "--report", action="store_true", help="run nothing; print the last run's (implies --keep)"
    )
    parser.add_argument("--survivors", action="store_true", help="print what no test noticed")
    return parser


def _results(modules: Sequence[str]) -> Mapping[str, Mapping[str, int | None]]:
    """Return file -> mutant -> exit status of its tests."""
    found = {}
    for path in sorted((MUTANTS / "privacy").glob("*.py.meta")):
        name = path.name.removesuffix(".py.meta")
        statuses = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
        if statuses and (not modules or name in modules):
            found[f"privacy/{name}.py"] = statuses
    return found


def _show(mutant: str) -> None:
    """Print the lines that a mutant changes."""
    done = subprocess.run([_MUTMUT, "show", mutant], cwd=ROOT, check=True, capture_output=True, text=True)
    changed = [
        line for line in done.stdout.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    print("\n".join([mutant, *changed, ""]))


if __name__ == "__main__":
    sys.exit(main())
