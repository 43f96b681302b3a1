"""The ledger under kill -9, failing system calls, full and read-only disks: nothing acknowledged is lost.

After each fault the file is opened anew, which checks every hash, signature and rule; then what the writer had reported
must be there, and what is reserved, computed here from the parameters, within the cap. `LEDGER_KILLS` sets how often
the writer is killed (100; `make nightly`: 1,000).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import random
import re
import select
import shutil
import signal
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from privacy import administration, genesis
from privacy.errors import LedgerError, RefusalCode, RefusedError
from privacy.ledger import Ledger
from privacy.replay import State
from privacy.signing import SigningKey, create_key, load_key
from tests.support.ledger_cases import (
    MODEL,
    PATIENTS,
    POLICY,
    RULE,
    SALT,
    Hospital,
    budget,
    hospital,
    nats,
    plan,
    raw,
    work,
)

KILLS = int(os.environ.get("LEDGER_KILLS", "100"))
KILLS_OF_ONE_LEDGER = 10
REPORT = struct.Struct("<q32s")
PLAN = plan(0.4)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def require_within_cap(state: State) -> None:
    """Check that what each cohort has spent, by the formula of the document, is within the cap."""
    paid_for = budget(state.cap, state.genesis.delta, RULE.order)
    for cohort, charged in state.cohorts.items():
        spent = sum(
            nats(release, RULE.order)
            for paid in state.reservations.values()
            if paid.seq in charged
            for release in paid.cost
        )
        assert spent <= paid_for, f"cohort {cohort} spent {spent} of {paid_for}"


def fork(target: Callable[[], None]) -> int:
    """Run a function in a child, which never comes back from it."""
    child = os.fork()
    if child == 0:
        try:
            target()
        finally:
            os._exit(1)
    return child


# --- kill -9 ----------------------------------------------------------------------------------------------


def write_until_killed(path: Path, key: SigningKey, start: int, report: int) -> None:
    """Do what a site does, and report number and hash of each entry once it is acknowledged."""
    ledger = Ledger.open(path, key=key, salt=SALT)

    def acknowledged() -> None:
        os.write(report, REPORT.pack(ledger._state.size - 1, bytes.fromhex(ledger._state.tip)))

    for number in range(start, start + 1_000_000):
        try:
            ledger.reserve(work(number), PLAN, model=MODEL, policy=POLICY)
            acknowledged()
            ledger.commit(work(number), [number % 3], f"{number:064x}")
        except RefusedError:
            pass  # written down too
        acknowledged()
        extra = [f"new-{number}"] if number % 7 == 0 else []
        administration.set_patients(ledger, [*PATIENTS[number % 2 :], *extra])
        acknowledged()


def kill_after(path: Path, key: SigningKey, start: int, delay_s: float) -> list[tuple[int, str]]:
    """Return what a writer had acknowledged before SIGKILL; the delay counts from its first entry."""
    read, write = os.pipe()
    child = fork(lambda: write_until_killed(path, key, start, write))
    os.close(write)
    assert select.select([read], [], [], 60)[0], "the writer never wrote anything"
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the writer ended by itself"
    with os.fdopen(read, "rb") as reports:
        content = reports.read()
    whole = content[: len(content) // REPORT.size * REPORT.size]
    return [(seq, tip.hex()) for seq, tip in REPORT.iter_unpack(whole)]


@needs_fork
@pytest.mark.slow
def test_killed_at_any_moment_nothing_acknowledged_is_lost(tmp_path: Path):
    moments, torn, unreported, made = random.Random(0), 0, 0, None
    for kill in range(KILLS):
        if made is None or kill % KILLS_OF_ONE_LEDGER == 0:
            if made is not None:
                made.ledger.close()
            made = hospital(tmp_path / str(kill), durable=True)
            made.ledger.close()
        said = kill_after(made.path, made.key, 1000 * kill, moments.uniform(0, 0.012))
        torn += made.path.with_name(f"{made.path.name}-journal").exists()
        if kill % 2:  # whoever only reads has to cope with what was left half done as well
            reader = Ledger.open(made.path)
            require_within_cap(reader.state())
            reader.close()
        entries = made.reopen().entries()
        state = made.ledger.state()
        require_within_cap(state)
        for seq, tip in said:
            assert seq < state.size, f"entry {seq} was acknowledged and is gone"
            body = entries[seq][0]
            assert _digest(body) == tip, f"entry {seq} is not the one that was acknowledged"
        assert state.size <= said[-1][0] + 2  # at most the one whose acknowledgement was cut off
        unreported += state.size == said[-1][0] + 2
        made.ledger.close()
    assert torn >= KILLS // 20, f"only {torn} of {KILLS} kills came while the file was being written"
    assert unreported >= 1


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@needs_fork
def test_killed_while_a_ledger_begins_it_is_whole_or_says_so(tmp_path: Path):
    moments = random.Random(1)
    begun, longest = 0, 0.012
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        create_key(folder / "key")

        def begin(folder: Path = folder) -> None:
            genesis.begin(
                folder / "ledger.sqlite",
                site="hospital",
                dataset="cohort",
                rule=RULE,
                patients=PATIENTS,
                key=load_key(folder / "key"),
                salt=SALT,
            )
            time.sleep(60)

        child = fork(begin)
        deadline = time.monotonic() + 30
        while not (folder / "ledger.sqlite").exists() and time.monotonic() < deadline:
            time.sleep(0.0002)
        time.sleep(moments.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        try:
            ledger = Ledger.open(folder / "ledger.sqlite", key=load_key(folder / "key"), salt=SALT)
        except LedgerError:
            longest = min(2.0, 1.3 * longest)  # a busy machine is slower
            continue  # nothing was spent from it: it can be removed and begun again
        assert ledger.state().size == 1
        begun += 1
    assert begun > 0


# --- every system call fails once -------------------------------------------------------------------------

_MARKER = re.compile(r"^(?:restart_syscall|poll|ppoll)\(")
_CALL = re.compile(r"^(\w+)\(")
_WRITES = ("pwrite64", "write", "openat", "ftruncate", "fsync", "fdatasync", "fallocate")


def reserve(ledger: Ledger) -> None:
    """Append a RESERVE entry."""
    ledger.reserve(work(7), PLAN, model=MODEL, policy=POLICY)


def change_roster(ledger: Ledger) -> None:
    """Append a ROSTER entry: with it two tables change in one transaction."""
    administration.set_patients(ledger, [*PATIENTS[1:], "emil"])


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What a traced child did: its answers, the calls between marker and end, and how it ended."""

    answers: tuple[str, ...]
    calls: tuple[str, ...]
    killed: bool


def attempt(path: Path, key: SigningKey, act: Callable[[Ledger], None], log: Path, *options: str) -> Attempt:
    """Do one append in a child that strace is attached to, and once more if the first time failed.

    The child opens the ledger, waits in `poll` until strace has it, and answers with `writev`: neither is used by
    SQLite, so that they mark where the append begins and ends.
    """
    go_read, go = os.pipe()
    answers, answer = os.pipe()

    def child() -> None:
        ledger = Ledger.open(path, key=key, salt=SALT)
        ledger.state()
        os.writev(answer, [b"ready\n"])
        poll = select.poll()
        poll.register(go_read)
        poll.poll()
        for _ in range(2):
            try:
                act(ledger)
            except Exception as error:  # noqa: BLE001 - whatever it is, the parent judges it
                os.writev(answer, [f"{type(error).__name__}\n".encode()])
            else:
                os.writev(answer, [f"{ledger._state.size - 1} {ledger._state.tip}\n".encode()])
                break
        os._exit(0)

    number = fork(child)
    os.close(answer)
    with os.fdopen(answers, "rb") as replies:
        assert replies.readline() == b"ready\n"
        with traced(number, log, *options):
            os.write(go, b".")
            found = tuple(replies.read().decode().split("\n")[:-1])
            _, status = os.waitpid(number, 0)
    os.close(go), os.close(go_read)
    return Attempt(answers=found, calls=calls_in(log), killed=os.WIFSIGNALED(status))


@contextlib.contextmanager
def traced(number: int, log: Path, *options: str) -> Iterator[None]:
    """Attach strace to a process, and wait for it to end."""
    tracer = subprocess.Popen(
        ["strace", "-p", str(number), "-o", str(log), *options], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    first = tracer.stderr.readline()
    if "attached" not in first:
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
        tracer.communicate()
        pytest.skip(f"strace may not attach here: {first.strip()}")
    try:
        yield
    finally:
        tracer.communicate(timeout=60)


def calls_in(log: Path) -> tuple[str, ...]:
    """Return the names of the calls between marker and first answer, in order.

    A `poll` that the child was in already when strace came may be missing from the log.
    """
    names: list[str] = []
    for line in log.read_text(errors="replace").splitlines():
        if _MARKER.match(line):
            names = []
        elif match := _CALL.match(line):
            if match[1] == "writev":
                break
            names.append(match[1])
    return tuple(names)


@pytest.fixture
def prepared(tmp_path: Path) -> Hospital:
    """A ledger of a few entries, on disk."""
    made = hospital(tmp_path / "prepared", durable=True)
    made.pay(work(1), PLAN)
    made.reserve(work(2), PLAN)
    made.ledger.close()
    return made


@needs_fork
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("act", [reserve, change_roster])
def test_every_system_call_of_an_append_may_fail_once(
    prepared: Hospital, tmp_path: Path, act: Callable[[Ledger], None]
):
    path, log = tmp_path / "faulty" / "ledger.sqlite", tmp_path / "log"
    path.parent.mkdir()

    def again(*options: str) -> Attempt:
        for leftover in path.parent.iterdir():
            leftover.unlink()
        shutil.copyfile(prepared.path, path)
        return attempt(path, prepared.key, act, log, *options)

    undisturbed = again()
    counted = Counter(undisturbed.calls)
    assert len(undisturbed.answers) == 1
    calls = ["sync" if name in ("fsync", "fdatasync") else name for name in undisturbed.calls]
    written, ended = len(calls) - calls[::-1].index("pwrite64"), calls.index("unlink")
    assert "sync" in calls[written:ended]  # the file, before its journal goes
    assert (
        "sync" in calls[ended:]
    )  # the folder, after it: only then is the entry acknowledged (synchronous=EXTRA)
    faults = ["signal=SIGKILL", "error=EIO"]
    outcomes: Counter[str] = Counter()
    for name, times in sorted(counted.items()):
        for fault in [*faults, *(["error=ENOSPC"] if name in _WRITES else [])]:
            for when in range(1, times + 1):
                where = f"{act.__name__}, {name} number {when}, {fault}"
                done = again("-e", f"trace={name},poll,writev", "-e", f"inject={name}:{fault}:when={when}")
                outcomes[_judge(path, prepared, done, where)] += 1
                assert done.killed == (fault == "signal=SIGKILL"), where
    # Half the faults or so are noticed and answered by LedgerError; others hurt nothing, such as a failed `close`.
    assert outcomes["killed"] >= 20
    assert outcomes["failed, then written"] >= 10


def _judge(path: Path, prepared: Hospital, done: Attempt, where: str) -> str:
    """Check the ledger after a fault, and return how the append went."""
    ledger = Ledger.open(path, key=prepared.key, salt=SALT)
    state, entries = ledger.state(), ledger.entries()
    require_within_cap(state)
    assert 4 <= state.size <= 5, where
    assert state.reservations[work(1)].committed == 2, where
    failures, successes = done.answers[:-1], done.answers[-1:]
    if done.killed:
        assert not [answer for answer in done.answers if " " in answer], where
    else:
        assert set(failures) <= {"LedgerError", "MemoryError"}, f"{where}: {failures}"
        seq, tip = successes[0].split()
        assert (int(seq), state.tip) == (4, tip), where
        assert _digest(entries[4][0]) == tip, where
    reserve(ledger)  # it goes on
    change_roster(ledger)
    assert ledger.state().size == 6, where
    ledger.close()
    if done.killed:
        return "killed"
    return "failed, then written" if failures else "written"


# --- full and read-only disks -----------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("a small disk cannot be mounted here: no mount")
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    made = subprocess.run(["mount", *options], check=False, capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    """Fill a disk but for some bytes."""
    ballast = disk / "ballast"
    free = os.statvfs(disk)
    with ballast.open("wb") as file:
        file.write(b"x" * max(0, free.f_bavail * free.f_frsize - leave))
    return ballast


@pytest.mark.parametrize("leave", [0, 4096, 8192, 16384])
def test_a_full_disk_stops_everything_and_loses_nothing(disk: Path, leave: int):
    """Space may end at the journal or at the file: with less than the ledger needs, nothing is reserved."""
    made = hospital(disk, durable=True)
    made.pay(work(1), PLAN)
    ballast = fill(disk, leave=leave)
    acknowledged, error = made.ledger.state().size, None
    for number in range(2, 200):  # refusals are written down too
        try:
            made.reserve(work(number), plan(1e-6))
            acknowledged = made.ledger._state.size
        except LedgerError as full:
            error = full
            break
    assert error is not None
    assert re.search("full|I/O error", str(error))
    assert "nothing runs until the ledger can be read and written" in str(error)
    assert made.ledger.state().size == acknowledged
    with pytest.raises(LedgerError):
        made.reserve(work(number), plan(1e-6))  # nor the next time
    reader = Ledger.open(made.path)  # can still be read and verified
    assert reader.state().size == acknowledged
    reader.close()
    ballast.unlink()
    made.reserve(work(400), PLAN)
    assert made.reopen().state().size == acknowledged + 1
    require_within_cap(made.ledger.state())


def test_on_a_full_disk_no_ledger_begins_and_nothing_is_left(disk: Path):
    ballast = fill(disk, leave=4096)
    with pytest.raises(LedgerError, match=r"full|I/O error"):
        hospital(disk, durable=True)
    assert [path.name for path in disk.iterdir()] == ["ballast"]
    ballast.unlink()
    assert hospital(disk, durable=True).kinds() == ["GENESIS"]


def test_a_read_only_disk_can_be_read_and_nothing_else(disk: Path):
    made = hospital(disk, durable=True)
    made.pay(work(1), PLAN)
    made.ledger.close()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"readonly|read-only|unable to open"):
            made.reserve(work(2), PLAN)
    assert made.ledger.state().size == 3
    assert made.ledger.receipt(work(1)).head == made.ledger.head()
    reader = Ledger.open(made.path)
    assert reader.state().size == 3
    reader.close()
    with pytest.raises(LedgerError, match=r"Read-only file system; give a folder that can be written"):
        hospital(disk, name="another.sqlite", dataset="another", patients=["x"])
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    with contextlib.suppress(
        LedgerError
    ):  # SQLite had opened the file for reading: the first failure closes it
        made.reserve(work(2), PLAN)
    made.reserve(work(2), PLAN)
    assert made.reopen().state().size == 4


# --- files that are something else ------------------------------------------------------------------------


def outcome(path: Path, made: Hospital) -> str:
    """Return what becomes of a damaged file: it is refused, or it is what it was and can be written to."""
    before = made.ledger._state
    try:
        ledger = Ledger.open(path, key=made.key, salt=SALT)
        state = ledger.state()
    except LedgerError as error:
        return type(error).__name__
    assert (state.size, state.tip) == (before.size, before.tip)
    try:
        ledger.reserve(work(7), PLAN, model=MODEL, policy=POLICY)
        ledger.may_sample(PATIENTS, ["c0"])
        ledger.receipt(work(1))
        ledger.keep([])
        ledger.witnessed()
    except LedgerError as error:
        return type(error).__name__
    finally:
        ledger.close()
    return "as it was"


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"SQLite format 3\0", b"not a ledger" * 500, random.Random(2).randbytes(20_000)],
)
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, prepared: Hospital, content: bytes):
    path = tmp_path / "garbage"
    path.write_bytes(content)
    assert outcome(path, prepared) in ("LedgerError", "TamperedError")


def test_a_truncated_file_is_refused(tmp_path: Path, prepared: Hospital):
    content, path = prepared.path.read_bytes(), tmp_path / "short.sqlite"
    page = 4096
    lengths = {*range(0, len(content), page), *random.Random(3).sample(range(len(content)), 30)}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        found = outcome(
            path, prepared
        )  # of the last page, empty but for its head, SQLite can do without the rest
        assert found in ("LedgerError", "TamperedError") or length > len(content) - page, length


def test_whatever_byte_is_changed_the_ledger_is_refused_or_as_it_was(tmp_path: Path, prepared: Hospital):
    content, path, bits = prepared.path.read_bytes(), tmp_path / "bent.sqlite", random.Random(4)
    found: Counter[str] = Counter()
    in_use = [index for index, byte in enumerate(content) if byte] + list(range(100))
    for _ in range(400):
        bent = bytearray(content)
        for _ in range(bits.choice([1, 1, 1, 4])):
            bent[bits.choice(in_use)] = bits.choice([0, 1, 127, 128, 255, bits.randrange(256)])
        path.write_bytes(bent)
        found[outcome(path, prepared)] += 1
    assert found["LedgerError"] > 20
    assert found["TamperedError"] > 100
    assert set(found) == {"LedgerError", "TamperedError", "as it was"}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET signature = x'00' WHERE seq = 2",
        "UPDATE entries SET signature = x'' WHERE seq = 2",
        "UPDATE entries SET body = x'00' WHERE seq = 2",
        "UPDATE entries SET body = x'' WHERE seq = 2",
        "UPDATE entries SET seq = -1 WHERE seq = 0",
        "UPDATE entries SET seq = 9223372036854775807 WHERE seq = 3",
        "UPDATE entries SET body = (SELECT body FROM entries WHERE seq = 1) WHERE seq = 2",
        "DELETE FROM entries WHERE seq = 1",
        "DELETE FROM entries",
        "INSERT INTO entries SELECT seq + 1, body, signature FROM entries WHERE seq = 3",
        "INSERT INTO entries VALUES (4, x'7b7d', x'00')",
        "DROP TABLE entries",
        "DROP TABLE patients",
        "PRAGMA journal_mode = WAL",
    ],
)
def test_whatever_somebody_does_with_an_editor_is_noticed_when_opened_and_while_open(
    tmp_path: Path, prepared: Hospital, statement: str
):
    path = tmp_path / "edited.sqlite"
    shutil.copyfile(prepared.path, path)
    opened = Ledger.open(path, key=prepared.key, salt=SALT)
    opened.state()
    with raw(path) as connection:
        connection.execute(statement)
    allowed = {"LedgerError", "TamperedError"} | ({"as it was"} if "WAL" in statement else set())
    assert outcome(path, prepared) in allowed
    with contextlib.suppress(LedgerError):  # never another exception
        opened.reserve(work(7), PLAN, model=MODEL, policy=POLICY)
    opened.close()


def test_a_refusal_that_cannot_be_written_is_no_refusal_but_an_unusable_ledger(disk: Path):
    made = hospital(disk, durable=True)
    fill(disk, leave=0)
    with pytest.raises(LedgerError):
        made.ledger.refuse(work(1), RefusalCode.POLICY_MODEL)
    with pytest.raises(LedgerError):
        made.reserve(work(1), plan(100.0))
