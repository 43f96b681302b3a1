"""Files of keys and certificates: wholly there or not there, and never written over another.

Guarantees (tests/unit/provision/test_files.py): a folder appears with everything in it or not at all, mode 0700; a
file that somebody else has made meanwhile is left as it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deploy.provision.failures import InputError


def read_small(path: Path, limit: int) -> bytes:
    """Return what a file holds.

    Args:
        path: A regular file.
        limit: The most it may hold [bytes]; no more than that is ever read.

    Raises:
        InputError: there is no such file, or it is larger.
    """
    if not path.is_file():  # a pipe would never end
        raise InputError(f"{path}: there is no such file; check the path")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise InputError(f"{path}: is larger than {limit} bytes, and no such file is; check the path")
    return content


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder beside `target` that becomes `target` at the end, and goes away on failure.

    Raises:
        InputError: something lies there already, or no folder can be made there.
    """
    require_free(target)
    try:
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))  # mode 0700
    except OSError as error:
        raise InputError(f"{target.parent}: {error.strerror}; give a folder that can be written") from None
    try:
        yield partial
        _sync(partial)
        _move(partial, target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def reserved(target: Path) -> Iterator[None]:
    """Make `target` as an empty file that is to be written inside; one that is still empty on failure goes away.

    Raises:
        InputError: something lies there already, or nothing can be written there.
    """
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        raise _in_the_way(target) from None
    except OSError as error:
        raise InputError(f"{target}: {error.strerror}; give a path that can be written") from None
    try:
        yield
    except BaseException:
        if target.stat().st_size == 0:
            target.unlink()
        raise


def require_free(target: Path) -> None:
    """Refuse a path where something lies already; an empty folder may.

    Raises:
        InputError: something does.
    """
    is_empty_folder = target.is_dir() and not target.is_symlink() and not any(target.iterdir())
    if os.path.lexists(target) and not is_empty_folder:
        raise _in_the_way(target)


def _move(partial: Path, target: Path) -> None:
    """Rename a folder; the system refuses to replace one that is not empty any more."""
    try:
        partial.rename(target)
    except OSError as error:
        if os.path.lexists(target):
            raise _in_the_way(target) from error
        raise


def _in_the_way(target: Path) -> InputError:
    """Return the error that something is in the way."""
    return InputError(f"{target}: exists already, and nothing is overwritten; give another name")


def _sync(folder: Path) -> None:
    """Flush a folder to the disk; its files are flushed as they are written."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
