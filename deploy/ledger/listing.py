"""`ledger show`: the entries as a table, then cap and costs of each cohort."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.audit.evidence import down
from deploy.ledger.opening import Book, as_json, choose, read_book
from deploy.ledger.standing import left, policy_notes, spent_by_cohort
from deploy.ledger.wording import describe, exact, fill, moment, name, rule_words, width
from privacy.entries import Entry
from privacy.filters import RenyiFilter
from privacy.replay import State
from server.report.words import small, up


def show(file: Path | None, site: Path | None, last: int | None, *, json: bool) -> str:
    """Return a ledger as text for a terminal, or for a program.

    Args:
        file: Of a ledger or an export.
        site: The hospital's file, instead.
        last: How many of its last entries; None for all.
        json: Whether it is for a program.

    Raises:
        DeployError: there is no such ledger, or it is damaged.
        PrivacyError: the ledger cannot be read, or is not what was written.
    """
    path, config = choose(file, site)
    book = read_book(path)
    notes = [] if config is None or site is None else list(policy_notes(config, site, book.state))
    return as_json(to_dict(book, last, notes)) if json else render(book, last, notes)


def to_dict(book: Book, last: int | None, notes: Sequence[str]) -> dict[str, Any]:
    """Return a ledger as JSON values; `show` says what the arguments are."""
    state = book.state
    return {
        "site": state.genesis.site,
        "dataset": state.genesis.dataset,
        "size": state.size,
        "cap": state.cap,
        "delta": state.genesis.delta,
        "order": state.genesis.order,
        "claims": state.genesis.claims,
        "ended": state.is_ended,
        "cohorts": {cohort: asdict(cost) for cohort, cost in spent_by_cohort(state).items()},
        "notes": [note.strip() for note in notes],
        "entries": [
            {"seq": entry.seq, "time": entry.time, "kind": entry.kind, "what": what, "fields": entry.fields}
            for entry, what in _described(book, last)
        ],
    }


def render(book: Book, last: int | None, notes: Sequence[str]) -> str:
    """Return a ledger as text for a terminal; `show` says what the arguments are."""
    state = book.state
    shown = list(_described(book, last))
    head = [f"Ledger of {name(state.genesis.site)}: {_entries(state.size)}, each checked", f"    {book.path}"]
    if state.genesis.claims == "seeded":
        head.append("A SIMULATION: its noise comes from a seed, its figures protect nobody.")
    rows = [(str(entry.seq), moment(entry.time), entry.kind, what) for entry, what in shown]
    left_out = state.size - len(shown)
    earlier = f"({_entries(left_out)} before these; leave out --last to see them)\n" if left_out else ""
    table = _table(("no.", "time (UTC)", "kind", "what"), rows, figures=False)
    return "\n".join((fill(head), earlier + table, _standing(state), *([fill(notes)] if notes else [])))


def _entries(number: int) -> str:
    return "1 entry" if number == 1 else f"{number:,} entries"


def _described(book: Book, last: int | None) -> Iterator[tuple[Entry, str]]:
    """Yield the last entries and what they say."""
    by_number = dict(enumerate(book.entries))
    for entry in book.entries[-last if last else 0 :]:
        yield entry, describe(entry, by_number)


def _standing(state: State) -> str:
    """Return cap and costs."""
    genesis, rule = state.genesis, state.genesis.rule
    rows = []
    for cohort, cost in spent_by_cohort(state).items():
        figures = (up(cost.counted), down(left(state, cost.counted)), up(cost.pld), up(cost.rdp))
        rows.append((cohort, str(len(state.cohorts[cohort])), *figures))
    lines = [
        f"Cap: epsilon {exact(state.cap)} on each patient, at delta {small(genesis.delta)}; {rule_words(rule)}."
    ]
    if state.is_ended:
        lines.append("The schedule was ended by lowering the cap: nothing more can run.")
    note = (
        "Epsilon. spent: by the ledger's rule, held against the cap; rounded up. PLD, RDP: the same work by two other "
        "accountants, as if all of it had been fixed in advance."
    )
    how = f"spent (order {rule.order})" if isinstance(rule, RenyiFilter) else "spent"
    table = _table(("cohort", "rounds paid", how, "left", "PLD", "RDP"), rows, figures=True)
    return fill(lines) + "\n" + table + "\n" + fill([note])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, figures: bool) -> str:
    """Return a table as wide as the terminal; nothing is cut off.

    Args:
        columns: Their heads.
        rows: Of the table.
        figures: Whether all columns but the first are figures, set to the right; else the last is text and wraps.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        wraps = not figures and index == len(columns) - 1
        table.add_column(
            column, justify="right" if figures and index else "left", no_wrap=not wraps, overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    stream = io.StringIO()
    Console(file=stream, width=width(), color_system=None, highlight=False, markup=False, emoji=False).print(
        table
    )
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
