"""Open a ledger for an audit: every entry checked, and one that is broken read as far as it holds.

A ledger is checked three times over: entry by entry (here, so that a broken one still tells what it can), by
`Ledger.open` (which also holds the table of patients against the entries), and by `privacy/verify_ledger.py`, a program
of its own that shares no code with the other two.
"""

from __future__ import annotations

import contextlib
import datetime
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import privacy
from deploy.audit.document import Check, Proof, Status
from privacy import store
from privacy.entries import Entry, decode
from privacy.errors import LedgerError, TamperedError
from privacy.heads import Head
from privacy.ledger import Ledger
from privacy.replay import State

_VERIFIER = Path(privacy.__file__).with_name("verify_ledger.py")
_VERIFIER_S = 600


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a ledger says, up to the first entry that breaks a rule.

    Attributes:
        site: Whose, by its own word; else as the caller calls it.
        path: The file.
        state: After the last entry that holds; None if not even the first does.
        entries: Those that hold.
        kept: Heads of other ledgers that this site witnesses.
        checks: Of the chain, and by the second program.
    """

    site: str
    path: Path
    state: State | None
    entries: tuple[Entry, ...]
    kept: tuple[Head, ...]
    checks: tuple[Check, ...]

    @property
    def is_whole(self) -> bool:
        """Return whether every entry holds."""
        return self.checks[0].status == "ok"


def read_ledger(path: Path, site: str) -> Reading:
    """Return what a ledger says; whatever is wrong with it is a check, not an exception.

    Args:
        path: The file, which exists.
        site: How to call its site where it does not say.
    """
    state, entries, fault = State(), [], ""
    kept: tuple[Head, ...] = ()
    try:
        with contextlib.closing(store.Store(path, writable=False)) as file, file.reading() as connection:
            for body, signature in store.rows(connection):
                entry = decode(body, state.size)
                state.apply(entry, signature.hex())
                entries.append(entry)
        if not entries:
            raise TamperedError(0, "the ledger has no entry")
        with contextlib.closing(Ledger.open(path)) as whole:
            kept = whole.witnessed()
    except TamperedError as error:
        fault = f"entry {error.entry} is not what was written: {error.problem}"
    except (LedgerError, AttributeError) as error:  # a signature that is no bytes has no `hex`
        fault = f"the file cannot be read as a ledger: {error}"
    name = state.genesis.site if entries else site
    return Reading(
        site=name,
        path=path,
        state=state if entries else None,
        entries=tuple(entries),
        kept=kept,
        checks=(_chain_check(name, len(entries), fault), _second_check(name, path, broken=bool(fault))),
    )


def prove(reading: Reading) -> Proof | None:
    """Return what somebody needs to check a ledger, None if none of it holds."""
    state = reading.state
    if state is None:
        return None
    head = state.head()
    return Proof(
        site=reading.site,
        size=head.size,
        counts=dict(Counter(entry.kind for entry in reading.entries)),
        root=head.root,
        tip=head.tip,
        key=head.key,
        first=iso_time(reading.entries[0].time),
        last=iso_time(head.time),
        head=head.to_dict(),
        command=f"python privacy/verify_ledger.py {reading.path.name} --head head-of-{reading.site}.json",
    )


def iso_time(seconds: int) -> str:
    """Return a time of the ledger as ISO 8601 in UTC."""
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return f"{seconds} s since 1970"


def _chain_check(site: str, size: int, fault: str) -> Check:
    """Return the check of chain, signatures and rules."""
    if not fault:
        return Check(
            name="ledger-chain",
            site=site,
            status="ok",
            text=f"The ledger of {site} is whole: all {size:,} entries are numbered, chained and signed, and at each "
            "of them the rules of spending held.",
        )
    kept = f"Entries 0 to {size - 1} hold; " if size else ""
    return Check(
        name="ledger-chain",
        site=site,
        status="violated",
        text=f"The ledger of {site} is broken: {fault}. {kept}what comes after cannot be relied on, and figures below "
        "are of what holds.",
    )


def _second_check(site: str, path: Path, *, broken: bool) -> Check:
    """Return what the program that shares no code with ours finds."""
    verdict = _run_verifier(path)
    if verdict is None:
        text = f"The second program that checks ledgers gave no answer about {site}: run it by hand."
        return Check(name="second-verifier", site=site, status="not-provided", text=text)
    valid, said = verdict
    status: Status = "ok"
    if valid and not broken:
        text = (
            f"A second program, which shares no code with the first, also finds the ledger of {site} valid."
        )
    elif valid:
        status = "attention"
        text = f"The second program, which looks at the entries alone, finds those of {site} valid."
    else:
        status = "violated"
        text = f"A second program, which shares no code with the first, finds the ledger of {site} broken: {said}"
    return Check(name="second-verifier", site=site, status=status, text=text)


def _run_verifier(path: Path) -> tuple[bool, str] | None:
    """Return whether a ledger is valid and what was said about it; None if there was no answer."""
    command = [sys.executable, "-I", str(_VERIFIER), str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_VERIFIER_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode not in (0, 1, 2) or not done.stdout:
        return None
    return done.returncode == 0, done.stdout.splitlines()[0][:300]
