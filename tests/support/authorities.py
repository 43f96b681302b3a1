"""A consortium's authority and hospitals' keys, made in a folder of a test by the functions that the verbs call."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deploy.provision.authority import create
from deploy.provision.issuing import Term, issue_server, read_request, renew, sign
from deploy.provision.register import Issued
from deploy.provision.revoking import revoke
from deploy.provision.site import make_keys

NOW = datetime.now(UTC)
NAME = "Brain consortium"


def term(days: int = 365, *, now: datetime = NOW) -> Term:
    """Return a validity."""
    return Term(days=days, now=now)


def make_authority(folder: Path, *, now: datetime = NOW - timedelta(days=1000)) -> Path:
    """Make an authority, some years old already unless told otherwise, and return its folder."""
    create(folder, NAME, days=3650, passphrase=None, now=now)
    return folder


def admit(authority: Path, site: str, folder: Path, *, days: int = 365, now: datetime = NOW) -> Issued:
    """Make a hospital's keys in a new folder and put its certificate there."""
    file, _ = make_keys(site, folder, None)
    return sign(authority, read_request(file), folder / "client.pem", term(days, now=now))


def renew_same(authority: Path, site: str, out: Path) -> Issued:
    """Renew a hospital's certificate for the same keys."""
    return renew(authority, site, None, out, term())


def end(authority: Path, site: str, reason: str = "superseded", *, keep_newest: bool = False) -> None:
    """Revoke a site's certificates."""
    revoke(authority, site, reason, kind="site", keep_newest=keep_newest, now=NOW, passphrase=None)


def serve(authority: Path, folder: Path, *hosts: str, now: datetime = NOW) -> Issued:
    """Make key and certificate of a server."""
    return issue_server(authority, hosts or ("localhost", "127.0.0.1"), folder, term(now=now))


def contents(folder: Path) -> dict[str, str]:
    """Return mode and hash of everything in a folder, by path."""
    return {
        str(path.relative_to(folder)): f"{path.stat().st_mode:o} "
        + (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        for path in sorted(folder.rglob("*"))
    }
