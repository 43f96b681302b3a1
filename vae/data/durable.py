"""Files that are either wholly there or not there, readable by their owner alone unless asked for otherwise.

Guarantees: a reader sees the old content or the new, never a part; after return the content survives a
power failure; mode 0600, folders 0700 (prepared scans are patient data).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

PRIVATE, READABLE = 0o600, 0o644
"""Modes of files: for their owner alone, and for whoever may enter the folder."""


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it to `target` at the end, remove it on failure."""
    _make_private(target.parent)
    descriptor, name = tempfile.mkstemp(prefix=".partial-", dir=target.parent)  # mkstemp gives mode 0600
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        _sync(partial)
        partial.replace(target)
        _sync(target.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(target: Path, content: bytes, *, mode: int = PRIVATE) -> None:
    """Write `content` to `target`: complete or not at all. Mode `READABLE` is for what holds no patient's data."""
    with atomic_path(target) as partial:
        partial.write_bytes(content)
        partial.chmod(mode)


def _make_private(folder: Path) -> None:
    """Make a folder and those above it that are not there, each mode 0700 (`parents=True` opens those above)."""
    if not folder.exists():
        _make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
