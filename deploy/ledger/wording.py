"""What stands in a ledger, in words: rules, times, hashes, and one sentence for each entry.

Names of runs come from servers: whatever could steer a terminal is taken out of them.
"""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from privacy.entries import Entry
from privacy.filters import FixedPlan, RenyiFilter
from privacy.releases import Release
from server.report.words import count, shown, small

Fields = Mapping[str, Any]

_SHORT = 10
_LONGEST_NAME = 40
_WIDEST = 120
_WIDEST_TEXT = 100


def describe(entry: Entry, entries: Mapping[int, Entry]) -> str:
    """Return what an entry says, in one line.

    Args:
        entry: Which.
        entries: Others, by number: a COMMIT only names its reservation.
    """
    fields = entry.fields
    paid = entries.get(fields["reserve"]) if entry.kind == "COMMIT" else None
    return _committed(fields, paid.fields) if paid is not None else DESCRIPTIONS[entry.kind](fields)


def written(entry: Entry) -> str:
    """Return that an entry was written, as a line."""
    return f"entry {entry.seq} was written: {describe(entry, {})}\n"


def name(text: str) -> str:
    """Return a name as it may be shown."""
    return shown(text, _LONGEST_NAME)


def short(digits: str) -> str:
    """Return the beginning of a hash or key."""
    return f"{digits[:_SHORT]}…"


def exact(epsilon: float) -> str:
    """Return a figure that somebody has set, as short as it can be and never rounded."""
    return text if float(text := f"{epsilon:g}") == epsilon else repr(epsilon)


def release_words(release: Release) -> str:
    """Return the parameters of a release."""
    sampler = "" if release.sampler == "poisson" else f", {release.sampler}"
    steps = count(release.steps, "step")
    return f"{steps}, q {release.sampling_probability:g}, noise {release.noise_multiplier:.4g}{sampler}"


def rule_words(rule: RenyiFilter | FixedPlan) -> str:
    """Return how costs add up, in a phrase."""
    if isinstance(rule, RenyiFilter):
        return f"a Rényi filter at order {rule.order}, which holds when studies are chosen after seeing earlier results"
    parts = count(len(rule.schedule), "release")
    return f"a schedule of {parts}, fixed in advance; nothing else can ever run on these patients"


def moment(seconds: int) -> str:
    """Return a time for people, UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):  # a ledger may hold any number
        return f"{seconds} s"


def command(*parts: str) -> str:
    """Return a verb of ours as a line to copy into a shell."""
    return f"    {shlex.join(['python', '-m', 'deploy', 'ledger', *parts])}"


def width() -> int:
    """Return how many columns a table may take: those of the terminal, within reason."""
    return min(_WIDEST, max(60, shutil.get_terminal_size((100, 24)).columns))


def fill(lines: Iterable[str]) -> str:
    """Return lines wrapped to the terminal; a list item is indented under its dash, a command is left whole."""
    wrapped: list[str] = []
    for line in lines:
        start = len(line) - len(line.lstrip())
        if line.startswith("    "):
            wrapped.append(line)
            continue
        wrapped += textwrap.wrap(
            line,
            min(width(), _WIDEST_TEXT),
            subsequent_indent=" " * (start + 2 * line.lstrip().startswith("- ")),
            break_on_hyphens=False,
            break_long_words=False,
        ) or [""]
    return "\n".join(wrapped) + "\n"


def _work(fields: Fields) -> str:
    """Return study and round of an entry."""
    return f"{name(fields['run'])}, round {fields['round']}"


def _genesis(fields: Fields) -> str:
    rule = fields["rule"]
    how = f"order {rule['order']}" if rule["name"] == "renyi-filter" else "fixed schedule"
    seeded = "; SIMULATION, no privacy" if fields["claims"] == "seeded" else ""
    cap = f"cap epsilon {exact(fields['cap'])} at delta {small(fields['delta'])}"
    return f"{name(fields['site'])}: {cap}, {how}{seeded}"


def _roster(fields: Fields) -> str:
    opens = fields["opens"]
    return (
        "patients left or came back"
        if opens is None
        else f"new patients, as cohort {opens}: nothing spent on them"
    )


def _reserve(fields: Fields) -> str:
    costs = "; ".join(release_words(Release.from_dict(each)) for each in fields["releases"])
    return f"{_work(fields)}: {costs}; charged to {', '.join(fields['cohorts'])}"


def _commit(fields: Fields) -> str:
    done = ", ".join(str(steps) for steps in fields["steps"])
    return f"of entry {fields['reserve']}: {done} steps done, update {short(fields['update'])} may leave"


def _committed(fields: Fields, paid: Fields) -> str:
    """Return what a COMMIT says beside its reservation."""
    done = ", ".join(
        f"{steps} of {release['steps']}"
        for steps, release in zip(fields["steps"], paid["releases"], strict=True)
    )
    return f"{_work(paid)}: {done} steps done, update {short(fields['update'])} may leave"


def _cap_change(fields: Fields) -> str:
    approvals = fields["approvals"]
    signed = f", approved by {', '.join(short(each['key']) for each in approvals)}" if approvals else ""
    return f"cap from epsilon {exact(fields['from'])} to {exact(fields['to'])}{signed}"


DESCRIPTIONS: Mapping[str, Callable[[Fields], str]] = {
    "GENESIS": _genesis,
    "ROSTER": _roster,
    "RESERVE": _reserve,
    "COMMIT": _commit,
    "REFUSE": lambda fields: f"{_work(fields)}: refused, {fields['code']}",
    "CAP_CHANGE": _cap_change,
    "ROTATE_KEY": lambda fields: f"from the next entry on, key {short(fields['key'])} signs",
    "MODEL_RELEASE": lambda fields: (
        f"{_work(fields)}: model {short(fields['model'])} given to {AUDIENCES[fields['audience']]}"
    ),
    "INCIDENT": lambda fields: (
        f"{fields['code']}, ticket {fields['reference']}" if fields["reference"] else str(fields["code"])
    ),
}
"""Kind -> what an entry of it says by itself."""

AUDIENCES: Mapping[str, str] = {"public": "the public", "partners": "the partners"}
