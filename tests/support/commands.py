"""The command line of the simulator: small configurations as files, and ways to run them."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import simulate
from tests.support.experiments import BASE
from tests.support.shared import ROOT


def write_config(folder: Path, *, name: str = "experiment.yaml", **sections: Any) -> Path:
    """Write the base experiment, on one process, with some sections merged or replaced; None leaves one out."""
    made: dict[str, Any] = {**copy.deepcopy(BASE), "engine": {"workers": 1}}
    for section, value in sections.items():
        same = isinstance(value, dict) and value.get("kind", "toy") == made.get(section, {}).get(
            "kind", "toy"
        )
        made[section] = {**made.get(section, {}), **value} if same else value
    path = folder / name
    path.write_text(json.dumps({key: value for key, value in made.items() if value is not None}))
    return path


def run_here(config: Path, out: Path, *arguments: str) -> int:
    """Run the command in this process and return its exit code."""
    return simulate.main(
        ["--config", str(config), "--out", str(out), "--cache", str(out.parent / "cache"), *arguments]
    )


def start(config: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command as a shell would: a process group of its own."""
    command = [sys.executable, str(ROOT / "simulate.py"), "--config", str(config), "--out", str(out)]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "FEDERATED_VAE_CACHE": str(out.parent / "cache")},
    )


def wait_for(found: Callable[[], object], child: subprocess.Popen[str], *, seconds: float = 120) -> None:
    """Wait until something is there.

    Raises:
        RuntimeError: the child ended before, or it took too long.
    """
    deadline = time.monotonic() + seconds
    while not found():
        if child.poll() is not None or time.monotonic() > deadline:
            child.kill()
            raise RuntimeError(f"not there: {child.communicate()}")
        time.sleep(0.02)


def interrupt(child: subprocess.Popen[str], *, whole_group: bool) -> tuple[str, str]:
    """Press Ctrl-C (the whole group), or interrupt the process alone; return what it had printed and said."""
    if whole_group:
        os.killpg(child.pid, signal.SIGINT)
    else:
        child.send_signal(signal.SIGINT)
    return child.communicate(timeout=60)


def strict_json(text: str) -> Any:
    """Return what strict JSON holds: no NaN, no infinity, no key twice."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    def distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=distinct)
