"""What a person sees while a simulation runs: a live table in a terminal, plain lines elsewhere.

Losses are shown because this is a simulation: one person plays every hospital. In a deployment they stay at the site.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

MAX_SITES_SHOWN = 20
_MARKS = {"admitted": ("✓", "green"), "no-reply": ("·", "yellow"), "late": ("·", "yellow")}


@dataclass(frozen=True, kw_only=True)
class RoundView:
    """What there is to show after a round.

    Attributes:
        arm: Which arm is trained.
        round: Round that ended, from 1.
        rounds: How many there are.
        status: Site -> `admitted`, or why it was not.
        loss: Site -> its latest training loss [nats a record]; simulation only.
        epsilon: Site -> nominal epsilon so far; empty without privacy.
        target: Epsilon of the whole run, for the bars; None without privacy.
    """

    arm: str
    round: int
    rounds: int
    status: Mapping[str, str]
    loss: Mapping[str, float]
    epsilon: Mapping[str, float] = field(default_factory=dict)
    target: float | None = None


class Progress(Protocol):
    """Where progress goes."""

    def note(self, text: str) -> None:
        """Say one line."""
        ...

    def update(self, view: RoundView) -> None:
        """Show a round that ended."""
        ...

    def close(self) -> None:
        """End the display."""
        ...


class Silent:
    """Shows nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def update(self, view: RoundView) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Do nothing."""


class PlainLines:
    """One line a round, for logs and pipes.

    Args:
        stream: Where lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._pace = Pace()

    def note(self, text: str) -> None:
        """Write one line."""
        print(text, file=self._stream, flush=True)

    def update(self, view: RoundView) -> None:
        """Write one line about a round."""
        admitted = sum(status == "admitted" for status in view.status.values())
        parts = [f"{view.arm}: round {view.round}/{view.rounds}", f"{admitted}/{len(view.status)} sites"]
        if view.loss:
            parts.append(f"loss {sum(view.loss.values()) / len(view.loss):.2f}")
        if view.epsilon:
            parts.append(f"epsilon {max(view.epsilon.values()):.3f}")
        parts += _left_in_words(self._pace.left(view))
        parts += [f"{site}: {status}" for site, status in view.status.items() if status != "admitted"][:5]
        self.note(", ".join(parts))

    def close(self) -> None:
        """Nothing to end."""


class LiveTable:
    """A table that is redrawn after each round.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace = Pace()
        self._live = Live(console=console, refresh_per_second=8, transient=True)
        self._live.start()

    def note(self, text: str) -> None:
        """Write one line above the table."""
        self._console.print(text, highlight=False, markup=False)

    def update(self, view: RoundView) -> None:
        """Redraw."""
        self._live.update(draw(view, self._pace.left(view)))
        if view.round == view.rounds:
            self.note(f"{view.arm}: {view.rounds} rounds done")

    def close(self) -> None:
        """Take the table away."""
        self._live.stop()


class Pace:
    """Estimates what is left of an arm from the rounds since it began."""

    def __init__(self) -> None:
        self._arm = ""
        self._since = 0.0
        self._first = 0

    def left(self, view: RoundView) -> float | None:
        """Return the estimated seconds left in this arm; None where nothing is known yet, or nothing is left."""
        now = time.monotonic()
        if view.arm != self._arm:
            self._arm, self._since, self._first = view.arm, now, view.round
            return None
        done = view.round - self._first
        if done < 1 or view.round >= view.rounds:
            return None
        return (now - self._since) / done * (view.rounds - view.round)


def choose(*, as_json: bool, stream: TextIO) -> Progress:
    """Return the display that fits: a table in a terminal, lines elsewhere."""
    if not as_json and stream.isatty():
        return LiveTable(Console(file=stream))
    return PlainLines(stream)


def draw(view: RoundView, seconds_left: float | None) -> Group:
    """Return the picture of a round."""
    head = Text.assemble(
        (f" {view.arm} ", "bold reverse"),
        f"  round {view.round}/{view.rounds}  {bar(view.round / view.rounds, 24)}  ",
        *_left_in_words(seconds_left),
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("site", "", "loss (simulation only)", "epsilon"):
        table.add_column(column, justify="right" if column.startswith("loss") else "left")
    for site in _shown(tuple(view.status)):
        mark, colour = _MARKS.get(view.status[site], ("✗", "red"))
        detail = "" if view.status[site] == "admitted" else f" {view.status[site]}"
        loss = f"{view.loss[site]:.2f}" if site in view.loss else ""
        table.add_row(site, Text(mark + detail, colour), loss, _epsilon(view, site))
    hidden = len(view.status) - MAX_SITES_SHOWN
    return Group(head, table, *([Text(f"and {hidden} more sites", "dim")] if hidden > 0 else []))


def bar(share: float, width: int) -> str:
    """Return a bar of blocks for a share in [0, 1]."""
    full = round(max(0.0, min(1.0, share)) * width)
    return "█" * full + "░" * (width - full)


def _left_in_words(seconds: float | None) -> list[str]:
    """Return what is said about the time left: nothing if nothing is known."""
    return [] if seconds is None else [f"{seconds:.0f} s left in this arm"]


def _epsilon(view: RoundView, site: str) -> str:
    """Return a site's epsilon with a bar against the target."""
    if site not in view.epsilon:
        return ""
    value = view.epsilon[site]
    return f"{bar(value / view.target, 12)} {value:.2f}" if view.target else f"{value:.2f}"


def _shown(sites: Sequence[str]) -> Sequence[str]:
    """Return the sites that have a line of their own."""
    return sites[:MAX_SITES_SHOWN]
