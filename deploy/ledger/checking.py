"""`ledger verify`: the same ledger by two implementations that share no code, and whether they agree.

`privacy.replay` is what the hospital's software believes; `privacy.verify_ledger` was written anew from
deploy/docs/ledger.md, and is one file that an auditor can read and run alone. Neither needs a key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.ledger.failures import KEEP
from deploy.ledger.opening import Row, heads_of, read_copy, read_heads
from privacy.errors import RefusedError, TamperedError
from privacy.heads import Head
from privacy.replay import State, replay
from privacy.witness import check_witnesses
from server.report.words import shown


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What one implementation says of a ledger.

    Attributes:
        is_valid: Whether every rule holds.
        entry: Number of the first entry that breaks one; None if none does, or a kept head is what differs.
        problem: The rule, and what was found; empty if valid.
    """

    is_valid: bool
    entry: int | None = None
    problem: str = ""

    def __str__(self) -> str:
        """Return it as a phrase."""
        where = "" if self.entry is None else f"entry {self.entry}: "
        return "valid" if self.is_valid else f"{where}{shown(self.problem, 400)}"


@dataclass(frozen=True, kw_only=True)
class Check:
    """A ledger by both implementations.

    Attributes:
        path: The file.
        size: How many entries it has.
        heads: How many kept heads it was held against.
        other_heads: How many more were of other ledgers.
        patients: Whether the table of patients is the one of the entries; None where there is none to compare.
        main: By `privacy.replay`.
        independent: By `privacy.verify_ledger`.
    """

    path: Path
    size: int
    heads: int
    other_heads: int
    patients: bool | None
    main: Opinion
    independent: Opinion

    @property
    def agree(self) -> bool:
        """Return whether both say the same."""
        return self.main.is_valid == self.independent.is_valid

    @property
    def is_valid(self) -> bool:
        """Return whether both say that every rule holds, and the table of patients is the right one."""
        return self.main.is_valid and self.independent.is_valid and self.patients is not False

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "path": str(self.path), "is_valid": self.is_valid, "agree": self.agree}


def check(path: Path, heads: Sequence[Path]) -> Check:
    """Check a ledger or an export by both implementations.

    Args:
        path: The file.
        heads: Files of heads that somebody kept.

    Raises:
        UsageError: it is neither, or no head is of this ledger.
        DamagedError: SQLite cannot make sense of it.
        LedgerError: it cannot be read now.
    """
    copy = read_copy(path)
    own, others = (read_heads(heads), 0) if copy.dataset is None else heads_of(copy.dataset, heads)
    main, state = _main(copy.rows, own)
    return Check(
        path=path,
        size=len(copy.rows),
        heads=len(own),
        other_heads=others,
        patients=None if copy.roster is None or state is None else not copy.has_other_patients(state),
        main=main,
        independent=_independent(copy.rows, own),
    )


def lines(check: Check) -> Iterator[str]:
    """Yield the outcome for a person."""
    if check.is_valid:
        yield f"{check.path}: VALID, {'1 entry' if check.size == 1 else f'{check.size:,} entries'}"
        yield "- Every entry is what the hospital's key signed, in this order, and no reservation went over the cap."
        yield "- Two implementations that share no code agree (privacy.replay and privacy.verify_ledger)."
        yield from _about_heads(check)
        return
    if check.agree and check.main.is_valid:
        yield f"{check.path}: NOT VALID. The entries are, but the table of patients is not the one that they hold."
    elif check.agree:
        yield f"{check.path}: NOT VALID. Two implementations that share no code agree:"
    else:
        yield f"{check.path}: NOT VALID. The two implementations DISAGREE; rely on neither, and report this:"
    yield f"- privacy.replay: {check.main}"
    yield f"- privacy.verify_ledger: {check.independent}"
    yield (
        f"What to do: {KEEP}. The file is not what was written, or not all of it. Entries before the one named are as "
        "they were signed; it and those after it cannot be relied on."
    )


def _about_heads(check: Check) -> Iterator[str]:
    """Yield what is known of the end of a valid ledger."""
    if check.heads:
        what = "the kept head" if check.heads == 1 else f"the {check.heads} kept heads"
        yield f"- Nothing that {what} contained is missing or changed."
    else:
        yield (
            "- NOT CHECKED: whether entries are missing at the end. Nobody can see that without a head that somebody "
            "else kept; give one with --head."
        )
    if check.other_heads:
        yield f"- Left aside: {check.other_heads} heads of other ledgers."


def _main(rows: Sequence[Row], heads: Sequence[Head]) -> tuple[Opinion, State | None]:
    """Return what `privacy.replay` says, and the state if all entries hold."""
    try:
        state = replay(rows)
    except TamperedError as error:
        return Opinion(is_valid=False, entry=error.entry, problem=error.problem), None
    if strange := [head for head in heads if head.key not in state.keys]:
        problem = f"this ledger never had the key {strange[0].key[:10]}… that signed a kept head: it was written anew"
        return Opinion(is_valid=False, problem=problem), state
    try:
        check_witnesses(state, heads)
    except RefusedError as error:
        return Opinion(is_valid=False, problem=str(error)), state
    return Opinion(is_valid=True), state


def _independent(rows: Sequence[Row], heads: Sequence[Head]) -> Opinion:
    """Return what `privacy.verify_ledger` says."""
    from privacy.verify_ledger import verify

    entries = verify(rows)
    if entries.problem:
        return Opinion(is_valid=False, entry=entries.entry, problem=entries.problem)
    kept = verify(rows, [head.to_dict() for head in heads]) if heads else entries
    return Opinion(is_valid=not kept.problem, problem=kept.problem)
