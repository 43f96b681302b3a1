"""Paths below a data root: nothing outside it is ever opened.

Guarantees: `..`, absolute names and links that lead out are refused, before and while the file is
opened; pipes and devices are never read (tests/property/test_hostile_paths.py).
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from vae.data.quarantine import Reason, RefusedFileError


def resolve_inside(root: str | Path, path: str | Path) -> Path:
    """Return the real path of a file inside the data root.

    Args:
        root: The data root; it may itself be reached through links.
        path: Relative to the root, or absolute.

    Raises:
        RefusedFileError: the name has control characters, nothing is there, or it lies outside the root
        once
            `..` and links are followed.
    """
    _check_name(str(path))
    base = Path(root).resolve()
    try:
        real = (base / path).resolve(strict=True)
    except FileNotFoundError:
        raise RefusedFileError(Reason.FILE_MISSING, f"{path}: no such file") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links (Python 3.11)
        raise RefusedFileError(Reason.UNREADABLE, f"{path}: {type(error).__name__}") from None
    if not real.is_relative_to(base):
        raise RefusedFileError(Reason.OUTSIDE_ROOT, f"{path} leads out of the data root")
    _check_name(str(real))
    return real


@contextlib.contextmanager
def open_inside(root: str | Path, path: str | Path) -> Iterator[io.BufferedReader]:
    """Open a regular file inside the data root for reading.

    Every component is opened with O_NOFOLLOW relative to the one before, so that a link put there after
    the check is refused too.

    Raises:
        RefusedFileError: as `resolve_inside`; or it is not a regular file, or not readable.
    """
    base = Path(root).resolve()
    parts = resolve_inside(base, path).relative_to(base).parts
    if not parts:
        raise RefusedFileError(Reason.NOT_REGULAR, f"{path} is the data root itself")
    handles: list[int] = []
    try:
        try:
            handles.append(os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            for part in parts[:-1]:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                handles.append(os.open(part, flags, dir_fd=handles[-1]))
            # O_NONBLOCK: opening a named pipe must not wait for a writer
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            handles.append(os.open(parts[-1], flags, dir_fd=handles[-1]))
        except OSError as error:
            raise RefusedFileError(Reason.UNREADABLE, f"{path}: {type(error).__name__}") from None
        if not stat.S_ISREG(os.fstat(handles[-1]).st_mode):
            raise RefusedFileError(Reason.NOT_REGULAR, f"{path} is not a regular file")
        with os.fdopen(handles.pop(), "rb") as stream:
            yield stream
    finally:
        for handle in handles:
            os.close(handle)


def _check_name(name: str) -> None:
    """Refuse control characters and undecodable bytes in a path."""
    if any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000 for char in name):
        raise RefusedFileError(
            Reason.NAME_FORBIDDEN, f"{name.encode('unicode_escape').decode('ascii')}: bad name"
        )
