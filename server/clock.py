"""Time as the round loop sees it: the wall's, or a simulation's, where waiting costs nothing."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A clock that can be waited on."""

    def now(self) -> float:
        """Return seconds since some fixed moment; never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""
        ...


class WallClock:
    """Real time, from the monotonic clock: a corrected system date moves no deadline."""

    def now(self) -> float:
        """Return the monotonic clock [s]."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block this thread."""
        time.sleep(seconds)


class VirtualClock:
    """A simulation's time: it moves only when somebody sleeps, so that deadlines do not depend on the machine."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Return the virtual time [s]."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Move the virtual time on, at once."""
        self._now += seconds
