"""Keeps programs running: starts them in order, waits until each answers, starts again what ends, stops all.

Where systemd or containers run the programs, they do this; `serve` and `join` are for the rest: a rehearsal, a small
centre, a test. Every program has a process group of its own, so that stopping it ends what it has started as well.

    running.json    name -> process id and start time of each program, and of the one who watches them

Guarantees (tests/unit/deploy/test_supervise.py): nothing counts as started before it answers; whoever is told to stop
leaves no process behind; processes that outlived a killed supervisor are found again, and no other is ever signalled.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import DeployError
from deploy.ledger.failures import UsageError
from deploy.locking import held
from deploy.network.programs import Program
from vae.data.durable import write_atomically

_POLL_S = 0.1
_GRACE_S = 15.0
_STEADY_S = 30.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 1.0, 30.0
_TAIL = 300
RUNNING = "running.json"


class NotReadyError(DeployError):
    """A program did not start, or did not answer in time."""


@dataclass
class _Child:
    """A program and its process."""

    program: Program
    process: subprocess.Popen[bytes]
    started: float
    log_begin: int = 0
    pause_s: float = _FIRST_PAUSE_S
    again_at: float | None = None


class Supervisor:
    """Runs programs in the foreground of a verb.

    Args:
        programs: In the order in which they start; each needs only earlier ones.
        folder: For logs (`logs/NAME.log`) and `running.json`; one supervisor a folder.
        say: Told what happens, one line each.
    """

    def __init__(self, programs: Sequence[Program], folder: Path, say: Callable[[str], None]) -> None:
        self._programs = tuple(programs)
        self._folder = folder
        self._say = say
        self._children: dict[str, _Child] = {}

    @contextlib.contextmanager
    def running(self, timeout_s: float, stop: threading.Event) -> Iterator[None]:
        """Run the programs for the time of the block.

        Args:
            timeout_s: For each to answer.
            stop: Set by who does not want to wait for it.

        Raises:
            UsageError: another supervisor runs in this folder, or processes of an earlier one still do.
            NotReadyError: a program did not answer, or `stop` was set; all are stopped again.
        """
        busy = UsageError(
            f"{self._folder}: is in use by another start; end it first: `python -m deploy stop`"
        )
        with held(self._folder / "supervisor.lock", busy):
            left = leftovers(self._folder)
            if left:
                raise UsageError(
                    f"{self._folder}: {', '.join(left)} of an earlier start still run; end them: "
                    "`python -m deploy stop`"
                )
            (self._folder / "logs").mkdir(exist_ok=True)
            try:
                for program in self._programs:
                    self._start(program)
                    self._await(program, timeout_s, stop)
                yield
            finally:
                self.stop()

    def watch(self, stop: threading.Event) -> None:
        """Start again what ends, until told to stop."""
        while not stop.wait(_POLL_S):
            for child in self._children.values():
                self._look_after(child)

    def stop(self) -> None:
        """End all programs, the last one first."""
        for name in reversed(self._children):
            _end(self._children[name].process)
        self._children.clear()
        (self._folder / RUNNING).unlink(missing_ok=True)

    def _start(self, program: Program) -> None:
        """Start a program; its output goes to its log."""
        with log_of(self._folder, program.name).open("ab") as log:
            begin = log.tell()
            try:
                process = subprocess.Popen(
                    program.argv,
                    env=dict(program.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise NotReadyError(
                    f"{program.name}: {program.argv[0]} cannot be started ({error.strerror}); install it"
                ) from error
        before = self._children.get(program.name)
        pause_s = before.pause_s if before else _FIRST_PAUSE_S
        self._children[program.name] = _Child(program, process, time.monotonic(), begin, pause_s)
        self._write_down()

    def _await(self, program: Program, timeout_s: float, stop: threading.Event) -> None:
        """Wait until a program answers."""
        ends = time.monotonic() + timeout_s
        process = self._children[program.name].process
        while True:
            # First whether it runs: another program may answer in its place, as on a port that is taken.
            if process.poll() is not None:
                code = process.returncode
                raise NotReadyError(
                    f"{program.name}: ended with exit code {code} before it answered; {self._last(program)}"
                )
            if self._has_said(program) and (program.ready is None or program.ready()):
                break
            if time.monotonic() > ends:
                raise NotReadyError(
                    f"{program.name}: does not answer after {timeout_s:.0f} s; {self._last(program)}"
                )
            if stop.wait(_POLL_S):
                raise NotReadyError(f"{program.name}: told to stop before it answered")
        if process.poll() is None:
            self._say(f"{program.name}: {'answers' if program.ready else 'runs'}")

    def _look_after(self, child: _Child) -> None:
        """Start a program again that has ended: at once at first, later and later if it keeps ending."""
        now = time.monotonic()
        if child.process.poll() is None:
            if now - child.started > _STEADY_S:
                child.pause_s = _FIRST_PAUSE_S
            return
        if child.again_at is None:
            name, code = child.program.name, child.process.returncode
            self._say(
                f"{name}: ended (exit code {code}); started again in {child.pause_s:.0f} s; its log: logs/{name}.log"
            )
            child.again_at = now + child.pause_s
            child.pause_s = min(2 * child.pause_s, _LAST_PAUSE_S)
        elif now >= child.again_at:
            _end(child.process)  # what it had started may have outlived it
            self._start(child.program)

    def _has_said(self, program: Program) -> bool:
        """Return whether a program has logged, since it was started, that it is ready."""
        if not program.says:
            return True
        with log_of(self._folder, program.name).open("rb") as log:
            log.seek(self._children[program.name].log_begin)
            return program.says.encode() in log.read()

    def _last(self, program: Program) -> str:
        """Return where the log lies, and its last line."""
        log = log_of(self._folder, program.name)
        lines = log.read_text(errors="replace").strip().splitlines() or [""]
        return f"{log} ends: {lines[-1][:_TAIL]}"

    def _write_down(self) -> None:
        """Note which processes run, for who comes after us."""
        ids = {"supervisor": os.getpid()}
        ids |= {name: child.process.pid for name, child in self._children.items()}
        known = {name: {"pid": pid, "started": started_at(pid)} for name, pid in ids.items()}
        write_atomically(self._folder / RUNNING, json.dumps(known, indent=2).encode())


def log_of(folder: Path, name: str) -> Path:
    """Return the log of a program."""
    return folder / "logs" / f"{name}.log"


def leftovers(folder: Path) -> dict[str, int]:
    """Return name -> process id of the programs that `running.json` names and that still run."""
    return {name: pid for name, pid in _written_down(folder).items() if name != "supervisor"}


def supervisor_of(folder: Path) -> int | None:
    """Return the process id of who watches the programs of a folder, None if nobody does."""
    return _written_down(folder).get("supervisor")


def stop_all(folder: Path, timeout_s: float = 60.0) -> list[str]:
    """Stop the supervisor of a folder, or what an earlier one left behind, and return what was stopped.

    Raises:
        NotReadyError: something does not end.
    """
    watching = supervisor_of(folder)
    stopped = list(leftovers(folder))
    if watching is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(watching, signal.SIGTERM)
        ends = time.monotonic() + timeout_s
        while supervisor_of(folder) is not None:
            if time.monotonic() > ends:
                raise NotReadyError(f"process {watching} does not end; see its log, or end it yourself")
            time.sleep(_POLL_S)
    for pid in leftovers(folder).values():
        _end_group(pid)
    (folder / RUNNING).unlink(missing_ok=True)
    return stopped


def started_at(pid: int) -> int | None:
    """Return when a process started [clock ticks since boot], by which its number cannot be taken for another's.

    None if there is no such process, or none that still runs.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])  # proc(5): the fields after the name are 3 to 52


def _written_down(folder: Path) -> Mapping[str, int]:
    """Return name -> process id of what `running.json` names and what is still the same process."""
    try:
        known = json.loads((folder / RUNNING).read_text())
    except (OSError, ValueError):
        return {}
    return {
        name: entry["pid"]
        for name, entry in known.items()
        if entry["started"] is not None and started_at(entry["pid"]) == entry["started"]
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours and everything in its group."""
    _end_group(process.pid)
    process.wait()


def _end_group(pid: int) -> None:
    """End a process group, which has the number of its first process."""
    _signal_group(pid, signal.SIGTERM)
    ends = time.monotonic() + _GRACE_S
    while started_at(pid) is not None and time.monotonic() < ends:
        time.sleep(_POLL_S)
    _signal_group(pid, signal.SIGKILL)


def _signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process group, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
