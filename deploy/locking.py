"""A file that one process holds: who comes second is refused at once. A lock of a process that was killed is free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from deploy.errors import DeployError


@contextlib.contextmanager
def held(lock: Path, refusal: DeployError) -> Iterator[None]:
    """Hold a lock for the time of the block.

    Args:
        lock: Its file, in a folder that is there.
        refusal: What to raise where another process holds it.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise refusal from None
