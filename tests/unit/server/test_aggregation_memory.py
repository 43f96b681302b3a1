"""Peak memory of aggregation in a process of its own: 5 against 20 sites, for every rule."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads /proc, which is Linux's"
)

MODEL_MB, FEW, MANY = 16, 5, 20
PROGRAM = """
import json, sys, tempfile
from pathlib import Path
import numpy as np
from server.aggregate import WeightedMean
from server.robust import CoordinateMedian, Krum, Spooled, TrimmedMean

rule, sites, megabytes, scratch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
robust = {"median": CoordinateMedian(), "trimmed-mean": TrimmedMean(trim=1)}
aggregator = WeightedMean() if rule == "weighted-mean" else None
if rule in robust:
    aggregator = Spooled(rule=robust[rule], scratch=scratch)
if rule == "krum":
    aggregator = Spooled(rule=Krum(num_byzantine=1, num_selected=sites // 2 - 1), scratch=scratch)
size = megabytes * 2**20 // 4 // 8
kept = []
def peak_kib():  # ru_maxrss would begin with the peak of the process that started this one
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
def update(seed):
    generator = np.random.default_rng(seed)
    return {f"layer{i}": generator.standard_normal(size, dtype=np.float32) for i in range(8)}
base = update(0)
before = peak_kib()
if aggregator is not None:
    aggregator.begin(base)
for index in range(sites):
    delta = update(index + 1)
    if aggregator is None:
        kept.append(delta)
    else:
        aggregator.add(f"site-{index:03d}", 1.0, delta)
        del delta
if aggregator is not None:
    aggregator.finish()
print(json.dumps({"models": (peak_kib() - before) / 1024 / megabytes, "torch": "torch" in sys.modules}))
"""


def peak_models(rule: str, sites: int, scratch: Path, megabytes: int = MODEL_MB) -> float:
    """Return how many models of memory a round takes beyond the base, the update being added included."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, rule, str(sites), str(megabytes), str(scratch)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    measured = json.loads(done.stdout)
    assert measured["torch"] is False  # the server aggregates without it
    return float(measured["models"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "most"), [("weighted-mean", 3.2), ("median", 2.5), ("trimmed-mean", 2.5), ("krum", 2.8)]
)
def test_memory_does_not_grow_with_the_sites(rule: str, most: float, tmp_path: Path) -> None:
    few, many = peak_models(rule, FEW, tmp_path), peak_models(rule, MANY, tmp_path)
    print(f"{rule}: {few:.2f} models with {FEW} sites, {many:.2f} with {MANY}")
    assert many <= 1.15 * few + 0.2
    assert few > 0.9  # at least the update that is being added was seen
    assert many <= most


@pytest.mark.slow
def test_keeping_all_updates_would_grow(tmp_path: Path) -> None:
    # The same measurement of the obvious implementation: it must see the growth.
    few, many = peak_models("keep", FEW, tmp_path), peak_models("keep", MANY, tmp_path)
    assert few > FEW - 0.5
    assert many > MANY - 0.5
