"""Checks of the files that nobody else may read or replace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from deploy.doctor.checks import Visit, check
from deploy.doctor.findings import Said, Severity, error, note, ok, skipped

_OTHERS = 0o077
_WORLD_WRITES = 0o002


@check(
    "keys.mode",
    asks="Private keys and salt are this user's, nobody else reads them, and not everybody writes to their folder.",
    worst=Severity.ERROR,
    way_out="`chmod 600` the file, `chmod o-w` its folder, or run this as the user that the site runs as.",
)
def mode(visit: Visit) -> Iterator[Said]:
    """Look at owner and mode of each secret, and of its folder."""
    site, connection = visit.site, visit.site.connection
    secrets = {"salt": site.salt, "key": site.key}
    if connection is not None:
        named = {"connection.key": connection.key, "connection.supernode_key": connection.supernode_key}
        secrets |= {setting: path for setting, path in named.items() if path is not None}
    begun = Path(site.ledger).exists()
    said = [one for setting, path in secrets.items() for one in _secret(setting, Path(path), begun=begun)]
    folders = {str(Path(path).parent) for path in (site.ledger, *secrets.values())}
    said += [one for folder in sorted(folders) for one in _folder(Path(folder))]
    yield from said or (ok("private keys and salt are this user's own, and nobody else can read them"),)


@check(
    "flower.key",
    asks="`connection.supernode_key` is a key that Flower accepts: ECDSA, OpenSSH, no password.",
    worst=Severity.ERROR,
    way_out='`ssh-keygen -t ecdsa -b 384 -N "" -f FILE`, and give FILE.pub to the coordinating centre.',
    on_line=True,
)
def supernode_key(visit: Visit) -> Iterator[Said]:
    """Read the key by which Flower knows this hospital."""
    path = visit.connection.supernode_key
    if path is None:
        yield skipped("`connection.supernode_key` is not set")
        return
    fix = f'make one: ssh-keygen -t ecdsa -b 384 -N "" -f {path}; give {path}.pub to the coordinating centre'
    try:
        key = load_ssh_private_key(Path(path).read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        yield error("`connection.supernode_key` cannot be read, or is no OpenSSH key without a password", fix)
        return
    if isinstance(key, EllipticCurvePrivateKey):
        yield ok("`connection.supernode_key` is an ECDSA key")
    else:
        yield error("`connection.supernode_key` is another kind of key; Flower accepts ECDSA alone", fix)


def _secret(setting: str, path: Path, *, begun: bool) -> Iterator[Said]:
    """Yield what is wrong with the file of a secret."""
    try:
        found = path.stat()
    except OSError:
        if setting in ("salt", "key") and not begun:
            yield note(f"`{setting}` is not there yet: `ledger init` makes it")
        else:
            yield error(f"`{setting}` is not there, or cannot be reached", f"restore {path}")
        return
    if found.st_uid != os.geteuid():
        yield error(
            f"`{setting}` belongs to another user than the one that runs this",
            f"run this as the user that the site runs as, or chown {path}",
        )
    if found.st_mode & _OTHERS:
        yield error(
            f"`{setting}` has mode {found.st_mode & 0o777:o}: others than its owner can use it",
            f"chmod 600 {path}; if others may have read it, replace it",
        )


def _folder(path: Path) -> Iterator[Said]:
    """Yield what is wrong with a folder of secrets or of the ledger; the sticky bit is no way out for SQLite."""
    if path.is_dir() and path.stat().st_mode & _WORLD_WRITES:
        yield error(
            f"everybody can write to {path}, where ledger or secrets lie, and replace them",
            f"chmod o-w {path}",
        )
