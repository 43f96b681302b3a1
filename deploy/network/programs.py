"""What runs: a program with its arguments, environment and the sign that it is ready."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.ledger.failures import UsageError

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""What keeps Flower from talking to anybody but its own federation, and from installing packages while it runs."""
_PASSED_ON = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ"),
    *("LD_LIBRARY_PATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
)
_SECRET_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Program:
    """A process to keep running.

    Attributes:
        name: What people call it, and its log file.
        argv: Program and arguments.
        environment: All of it; nothing else is inherited.
        ready: Returns whether it answers; None where it listens nowhere and counts as ready once it runs.
        says: What its log holds once it is ready; empty for nothing.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    ready: Callable[[], bool] | None = None
    says: str = ""


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a program: what is passed on of ours, Flower's switches, its own home.

    Args:
        home: Flower's folder (`FLWR_HOME`), which two programs must not share.
        more: Further variables.
    """
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # Flower starts its apps by name, so the folder of this Python's programs has to be on the path.
    passed["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), passed.get("PATH", os.defpath)])
    return {**passed, **QUIET, "FLWR_HOME": str(home), **more}


def flower(name: str) -> str:
    """Return the path of one of Flower's programs, as installed beside this Python.

    Raises:
        UsageError: it is not there.
    """
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise UsageError(f"{path}: Flower's program is not there; install the locked packages (`make setup`)")
    return str(path)


def secret_file(path: Path) -> Path:
    """Return a file with a secret that two programs share, made at the first call, mode 0600."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(_SECRET_BYTES))
    return path
