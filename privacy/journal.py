"""A durable record of spent budget: a file of JSON lines, flushed to disk before training starts.

It survives crashes: a line that was not written completely was never acknowledged, and a reservation without
a commit counts in full. It is **not tamper-evident**: who can write the file can shorten or replace it. The
ledger replaces it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from privacy.accounting import Release
from privacy.errors import AccountingError, PlanError, RefusalCode, RefusedError
from privacy.fields import integer_problem, parse_json, require_fields


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One reservation: what may be spent, and what was (None until committed)."""

    release: Release
    steps_done: int | None = None

    @property
    def cost(self) -> Release:
        """Return what counts as spent."""
        steps = self.release.steps if self.steps_done is None else self.steps_done
        return dataclasses.replace(self.release, steps=steps)


class SpendJournal:
    """Implements `claim.Spending` on a file; several processes may share it (one lock file beside it).

    Reserving a key again is one cost, because a crash between reserve and commit released nothing. After a
    commit the caller must hand out the stored update (`is_committed`) instead of training again with fresh
    noise.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the journal at `path`.

        Raises:
            AccountingError: the file is damaged; what was spent is unknown.
        """
        self._path = path
        self._lock = FileLock(f"{path}.lock")
        with self._lock:
            if not path.exists():
                path.touch(mode=0o600)
                _sync_directory(path.parent)
            _drop_torn_line(path)
            self._read()

    def reserve(self, key: str, release: Release) -> None:
        """Write the full cost; returns when it is on disk.

        Raises:
            RefusedError: the key was reserved before for other parameters.
        """
        with self._lock:
            known = self._read().get(key)
            if known is None:
                self._append({"entry": "reserve", "key": key, "release": release.to_dict()})
            elif known.release != release:
                raise RefusedError(
                    RefusalCode.KEY_REUSED, f"{key!r} was reserved for other parameters; use a new key"
                )

    def commit(self, key: str, steps_done: int) -> None:
        """Write how many steps were done; returns when it is on disk.

        Raises:
            RefusedError: the key was not reserved, more steps are claimed than reserved, or other steps
            committed.
        """
        with self._lock:
            known = self._read().get(key)
            if known is None:
                raise RefusedError(
                    RefusalCode.NOT_RESERVED, f"{key!r} must be reserved before it is committed"
                )
            if not 0 <= steps_done <= known.release.steps:
                raise RefusedError(
                    RefusalCode.STEPS_EXCEED_RESERVATION,
                    f"{steps_done} steps done, {known.release.steps} reserved",
                )
            if known.steps_done is None:
                self._append({"entry": "commit", "key": key, "steps_done": steps_done})
            elif known.steps_done != steps_done:
                raise RefusedError(
                    RefusalCode.ALREADY_COMMITTED, f"{key!r} has {known.steps_done} steps committed"
                )

    def is_committed(self, key: str) -> bool:
        """Return whether the work of `key` was finished."""
        with self._lock:
            entry = self._read().get(key)
        return entry is not None and entry.steps_done is not None

    def history(self) -> tuple[Release, ...]:
        """Return everything spent, in order of reservation; what is not committed counts in full."""
        with self._lock:
            return tuple(entry.cost for entry in self._read().values())

    def _read(self) -> dict[str, _Entry]:
        """Return all entries; always from the file, because another process may have written."""
        entries: dict[str, _Entry] = {}
        for number, line in enumerate(self._path.read_bytes().splitlines(), start=1):
            try:
                key, entry = _next_entry(line, entries)
            except PlanError as error:
                raise AccountingError(
                    f"{self._path}, line {number}: {error}; what was spent is unknown, so restore the file"
                ) from error
            entries[key] = entry
        return entries

    def _append(self, entry: dict[str, object]) -> None:
        """Write one line and flush it to disk."""
        line = json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n"
        with self._path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def _next_entry(line: bytes, entries: Mapping[str, _Entry]) -> tuple[str, _Entry]:
    """Return key and new state that one line means after `entries`."""
    document = parse_json(line, subject="entry")
    is_commit = isinstance(document, dict) and document.get("entry") == "commit"
    content = "steps_done" if is_commit else "release"
    fields = require_fields(document, subject="entry", names=("entry", "key", content))
    key, steps = fields["key"], fields.get("steps_done")
    if not isinstance(key, str) or (key in entries) != is_commit:
        raise PlanError("entry", [f"key {key!r:.60} is out of place"])
    if not is_commit:
        if fields["entry"] != "reserve":
            raise PlanError("entry", [f"{fields['entry']!r:.60} is unknown"])
        return key, _Entry(release=Release.from_dict(fields["release"]))
    problems = integer_problem("steps_done", steps, low=0, high=entries[key].release.steps)
    if problems or entries[key].steps_done is not None or not isinstance(steps, int):
        raise PlanError("entry", problems or [f"key {key!r:.60} is committed twice"])
    return key, dataclasses.replace(entries[key], steps_done=steps)


def _drop_torn_line(path: Path) -> None:
    """Cut a last line without its end: the crash came before it was acknowledged, so nothing ran on it."""
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
            os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    """Flush a directory, so that a new file's name survives a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
