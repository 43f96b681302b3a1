"""Settings of every test: nothing phones home, one thread, repeatable examples."""

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

# Before anything imports Flower or torch: both read these once. Child processes inherit them.
_FLOWER_HOME = tempfile.TemporaryDirectory(prefix="flower-home-")
os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_HOME": _FLOWER_HOME.name,
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
# Commands in child processes wrap as for a pipe: parallel workers are told the width of the terminal.
os.environ.pop("COLUMNS", None)

settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    print_blob=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
# Of mutation tests (tests/mutation.py): a mutant needs one example that fails, not the smallest.
settings.register_profile(
    "quick",
    parent=settings.get_profile("repeatable"),
    max_examples=10,
    phases=[Phase.explicit, Phase.generate],
    database=None,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_collection_modifyitems(items):
    """Under mutmut, quick tests go first: most mutants are noticed by many tests, and one is enough."""
    durations = Path("mutmut-stats.json")
    if "MUTANT_UNDER_TEST" in os.environ and durations.exists():
        took = json.loads(durations.read_text(encoding="utf-8"))["duration_by_test"]
        items.sort(key=lambda item: took.get(item.nodeid, 0.0))


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread in torch, once something has imported it: small tensors are slower with more."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
