"""A whole federation on 127.0.0.1 for tests: real SuperLink, nginx, SuperNodes and agents, started by our verbs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from deploy.network.front import find_nginx
from deploy.network.programs import environment
from tests.support.shared import ROOT

UP_S = 150.0


def free_ports(count: int) -> int:
    """Return the first of some ports in a row that are free on 127.0.0.1."""
    for first in range(21_000 + 50 * (os.getpid() % 200), 60_000, 50):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


def require_nginx() -> None:
    """Skip where nginx is not installed."""
    if find_nginx() is None:
        pytest.skip("needs nginx (Debian: nginx-light)")


def deploy(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `python -m deploy`."""
    argv = [sys.executable, "-m", "deploy", *map(str, words)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


class Verb:
    """A verb that stays in the foreground."""

    def __init__(self, *words: object, log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deploy", *map(str, words)],
                cwd=ROOT,
                env=environment(log.parent / "unused"),
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def await_(self, text: str) -> None:
        """Wait until it has said something."""
        ends = time.monotonic() + UP_S
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < ends, self.log.read_text()
            time.sleep(0.2)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(120)


@contextlib.contextmanager
def federation(folder: Path, experiment: str, *options: str) -> Iterator[dict[str, Verb]]:
    """Lay out an experiment, start everything, and stop it at the end.

    Args:
        folder: New; a short path.
        experiment: YAML.
        options: Of `init`.
    """
    config = folder.parent / f"{folder.name}.yaml"
    config.write_text(experiment)
    deploy("init", folder, "--config", config, "--port", free_ports(12), *options)
    with started(folder) as verbs:
        yield verbs


@contextlib.contextmanager
def started(folder: Path) -> Iterator[dict[str, Verb]]:
    """Start centre and hospitals of a folder, and stop them at the end."""
    verbs: dict[str, Verb] = {}
    try:
        verbs["centre"] = Verb(
            "serve", "--centre", folder / "centre" / "centre.yaml", log=folder / "serve.log"
        )
        verbs["centre"].await_("serving")
        for site in sites_of(folder):
            file = folder / site / "site.yaml"
            verbs[site] = Verb("join", "--site", file, log=folder / f"{site}.log")
        for site in sites_of(folder):
            verbs[site].await_("has joined")
        yield verbs
    finally:
        ended = [verb.process for verb in reversed(verbs.values())]
        for process in ended:
            process.terminate()
        for process in ended:
            process.wait(120)


def sites_of(folder: Path) -> Sequence[str]:
    """Return the hospitals of a folder."""
    return sorted(file.parent.name for file in folder.glob("*/site.yaml"))
