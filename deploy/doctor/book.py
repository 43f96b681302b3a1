"""Checks of the ledger: is it what was written, and does the site hold its key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deploy.doctor.checks import SLOW_S, Visit, check
from deploy.doctor.findings import Said, Severity, error, ok, skipped, warning
from deploy.ledger.failures import KEEP, DamagedError, UsageError
from privacy.errors import LedgerError, SigningError


@check(
    "ledger.verified",
    asks="The ledger is what was written, by two implementations (as `ledger verify` checks it).",
    worst=Severity.ERROR,
    way_out="Keep the file as it is, stop training, and see deploy/docs/ledger-howto.md.",
    at_least_s=SLOW_S,
)
def verified(visit: Visit) -> Iterator[Said]:
    """Check every entry; opens the file for reading alone."""
    from deploy.ledger.checking import check as verify

    path = Path(visit.site.ledger)
    if not path.exists():
        begin = f"python -m deploy ledger init --site {visit.file}"
        yield warning("there is no ledger yet, and without one nothing is trained", f"begin it: {begin}")
        return
    again = f"python -m deploy ledger verify --site {visit.file}"
    if path.with_name(f"{path.name}-journal").exists():
        # Whoever opens the file now rolls the half-written entry back, and this command changes nothing.
        yield warning(
            "an entry is being written to the ledger, or a writer was killed", f"if none runs: {again}"
        )
        return
    try:
        found = verify(path, [])
    except (DamagedError, UsageError):
        yield error("the file of `ledger` is damaged, or no ledger", KEEP)
    except LedgerError:
        yield error(
            "the ledger cannot be read now: locked, or not readable for this user",
            f"check who may read {path}, and its disk; then {again}",
        )
    else:
        if found.is_valid:
            yield ok("every entry of the ledger is what was written, by two implementations")
        elif not found.agree:
            yield error("two implementations disagree about the ledger", f"{KEEP}; report it with {again}")
        elif found.main.is_valid:
            yield error("the ledger's table of patients is not the one that its entries hold", KEEP)
        else:
            where = "" if found.main.entry is None else f" from entry {found.main.entry} on"
            yield error(f"the ledger is not what was written{where}", f"{KEEP}; {again} says more")


@check(
    "ledger.head",
    asks="`key` is the key that the ledger is signed with now.",
    worst=Severity.ERROR,
    way_out="Set `key` to the one in force, or restore it.",
    needs=("ledger.verified",),
    at_least_s=SLOW_S,
)
def head(visit: Visit) -> Iterator[Said]:
    """Compare the site's key with that of the last entry."""
    from deploy.ledger.opening import read_book
    from privacy.signing import load_key

    path = Path(visit.site.ledger)
    if not path.exists():
        yield skipped("there is no ledger yet")
        return
    try:
        public = load_key(Path(visit.site.key)).public
    except SigningError:
        yield error(
            "`key` is missing, readable by others, or no Ed25519 key in PEM",
            f"restore {visit.site.key} with mode 600",
        )
        return
    if public == read_book(path).state.key:
        yield ok("`key` is the key that the ledger is signed with")
    else:
        yield error(
            "`key` is not the key that the ledger is signed with: nothing can be written to it",
            f"set `key` in {visit.file} to the one in force, or restore it",
        )
