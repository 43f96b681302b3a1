"""What each study did to a ledger, gathered from its entries."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from deploy.ledger.opening import Book
from privacy.entries import Entry


@dataclass(kw_only=True)
class Study:
    """One run in the ledger, while it is being gathered.

    Attributes:
        run: Its name, as the server gave it.
        first: Time of its first entry.
        last: Time of its last entry.
        rounds: Rounds that were paid for.
        unfinished: Reservations without a commit: they count in full.
        cohorts: Whose patients were charged.
        refusals: Code -> how often.
    """

    run: str
    first: int
    last: int
    rounds: set[int] = field(default_factory=set)
    unfinished: int = 0
    cohorts: list[str] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)

    def add(self, entry: Entry) -> None:
        """Add an entry of the study."""
        self.last = entry.time
        if entry.kind == "RESERVE":
            self.rounds.add(entry.fields["round"])
            self.unfinished += 1
            self.cohorts += [cohort for cohort in entry.fields["cohorts"] if cohort not in self.cohorts]
        elif entry.kind == "COMMIT":
            self.unfinished -= 1
        else:
            self.refusals[entry.fields["code"]] += 1


def studies_of(book: Book) -> list[Study]:
    """Return every study that was paid for or refused, in the order in which they came."""
    studies: dict[str, Study] = {}
    for entry in book.entries:
        if entry.kind in ("RESERVE", "REFUSE", "COMMIT"):
            paid = book.entries[entry.fields["reserve"]] if entry.kind == "COMMIT" else entry
            run = paid.fields["run"]
            studies.setdefault(run, Study(run=run, first=entry.time, last=entry.time)).add(entry)
    return list(studies.values())
