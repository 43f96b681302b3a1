"""A process that saves checkpoints is killed at twenty moments: each time the last one it reported is there."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from server.checkpoint import Checkpoint, latest, save

KILLS = 20
SIZE = 200_000  # large enough that most of the time is spent writing


def _checkpoint(round_: int) -> Checkpoint:
    weights = {"w": np.full(SIZE, round_, np.float32)}
    moments = {"mean/w": np.full(SIZE, -round_, np.float32)}
    return Checkpoint(round=round_, run_id="r", config_hash="c", weights=weights, optimiser=moments)


def _save_until_killed(folder: Path, first: int, report: int) -> None:
    """Save round after round and report each once `save` has returned."""
    round_ = first
    while True:
        save(folder, _checkpoint(round_))
        os.write(report, round_.to_bytes(4, "big"))
        round_ += 1


def _killed_after(folder: Path, first: int, delay_s: float) -> int:
    """Return the last round that a process reported before SIGKILL; `delay_s` counts from its first report."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            _save_until_killed(folder, first, write)
        finally:
            os._exit(1)
    os.close(write)
    assert select.select([read], [], [], 60)[0], "the process never saved anything"
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    with os.fdopen(read, "rb") as reports:
        return int.from_bytes(reports.read()[-4:], "big")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_nothing_reported_is_lost(tmp_path: Path) -> None:
    delays = random.Random(0)
    reported = half_written = 0
    for _ in range(KILLS):
        reported = _killed_after(tmp_path, reported + 1, delays.uniform(0, 0.03))
        half_written += any(tmp_path.glob(".writing-*"))
        found = latest(tmp_path)
        assert found is not None
        assert found.round in (reported, reported + 1)  # renamed, but killed before it could say so
        np.testing.assert_array_equal(found.weights["w"], np.float32(found.round))
        np.testing.assert_array_equal(found.optimiser["mean/w"], np.float32(-found.round))
        reported = found.round
    assert half_written >= 3, (
        f"only {half_written} of {KILLS} kills came while a checkpoint was being written"
    )
