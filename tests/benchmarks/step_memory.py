"""Peak memory of a private training step against a plain one, each in a fresh process.

What counts is how far the process grows from before the first step (model and records are there already) to its peak
in four steps: activations, gradients, state of the optimiser, and for a private step norms, noise and sums. Methods
are those of seeded training, which are a function of shapes: no trial of another method is in the peak.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable

import torch

from privacy.unsafe import UnsafeWarning
from tests.benchmarks.federation import ROOT
from tests.benchmarks.figures import Figure, figure, peak_bytes
from tests.benchmarks.private_step import CASES, ENGINES, Case, plain_steps, private_steps

STEPS = 4


def measure(*, quick: bool) -> list[Figure]:
    """Return the growth of each engine of the cases with Z64, in MB and against that of plain steps."""
    cases = [case for case in CASES if "Z64" in case.name]
    return [made for case in (cases[2:3] if quick else cases) for made in measure_case(case)]


def measure_case(case: Case) -> list[Figure]:
    """Return the figures of one model."""
    grown = {part: _in_process(case.name, part) for part in ("plain", *ENGINES)}
    return [
        figure(f"step_memory/{case.name}/plain", [grown["plain"] / 1e6], "MB"),
        *(
            figure(f"step_memory/{case.name}/{engine}", [grown[engine] / grown["plain"]], "x plain step")
            for engine in ENGINES
        ),
    ]


def growth_bytes(case: Case, part: str) -> int:
    """Return by how much this process grows in some steps [bytes]; `part` is plain, or an engine."""
    torch.set_num_threads(1)
    engines = {str(engine): engine for engine in ENGINES}
    steps: Callable[[], object] = (
        plain_steps(case) if part == "plain" else private_steps(case, engines[part], randomness="seeded")
    )
    before = peak_bytes()
    for _ in range(STEPS):
        steps()
    return peak_bytes() - before


def _in_process(case: str, part: str) -> int:
    """Return the growth of a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.step_memory", case, part]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


if __name__ == "__main__":
    warnings.simplefilter("ignore", UnsafeWarning)
    print(growth_bytes(next(case for case in CASES if case.name == sys.argv[1]), sys.argv[2]), flush=True)
