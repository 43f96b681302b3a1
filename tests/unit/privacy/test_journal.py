"""The spending journal: durable before training, in full until committed, loud when damaged."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import subprocess
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from privacy.accounting import Release
from privacy.claim import Spending, SpendJournal
from privacy.errors import AccountingError, PrivacyError, RefusalCode, RefusedError

ROUND = Release(sampling_probability=0.1, noise_multiplier=1.2, steps=20)
OTHER = Release(sampling_probability=0.1, noise_multiplier=2.0, steps=20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spent.jsonl"


def steps(journal: Spending) -> list[int]:
    return [release.steps for release in journal.history()]


def test_a_new_journal_has_spent_nothing(path: Path):
    assert SpendJournal(path).history() == ()
    assert path.exists()


def test_a_reservation_counts_in_full_until_it_is_committed(path: Path):
    journal = SpendJournal(path)
    journal.reserve("run/1", ROUND)
    assert journal.history() == (ROUND,)
    assert not journal.is_committed("run/1")
    journal.commit("run/1", 15)
    assert steps(journal) == [15]
    assert journal.is_committed("run/1")


def test_history_is_in_order_of_reservation(path: Path):
    journal = SpendJournal(path)
    journal.reserve("b", OTHER)
    journal.reserve("a", ROUND)
    journal.commit("a", 20)
    journal.commit("b", 20)
    assert journal.history() == (OTHER, ROUND)


def test_the_same_key_twice_is_one_cost(path: Path):
    journal = SpendJournal(path)
    journal.reserve("run/1", ROUND)
    journal.reserve("run/1", ROUND)
    journal.commit("run/1", 20)
    journal.commit("run/1", 20)
    journal.reserve("run/1", ROUND)
    assert journal.history() == (ROUND,)
    assert len(path.read_text().splitlines()) == 2


def test_a_key_cannot_be_used_for_other_parameters(path: Path):
    journal = SpendJournal(path)
    journal.reserve("run/1", ROUND)
    with pytest.raises(RefusedError, match="key-reused: 'run/1' was reserved for other parameters") as caught:
        journal.reserve("run/1", OTHER)
    assert caught.value.code is RefusalCode.KEY_REUSED
    assert isinstance(caught.value, PrivacyError)
    assert journal.history() == (ROUND,)


def test_what_was_not_reserved_cannot_be_committed(path: Path):
    with pytest.raises(RefusedError, match="'run/1' must be reserved") as caught:
        SpendJournal(path).commit("run/1", 3)
    assert caught.value.code is RefusalCode.NOT_RESERVED


@pytest.mark.parametrize("done", [21, -1])
def test_more_steps_than_reserved_cannot_be_committed(path: Path, done: int):
    journal = SpendJournal(path)
    journal.reserve("run/1", ROUND)
    with pytest.raises(RefusedError, match=f"{done} steps done, 20 reserved") as caught:
        journal.commit("run/1", done)
    assert caught.value.code is RefusalCode.STEPS_EXCEED_RESERVATION
    assert steps(journal) == [20]


def test_a_commit_cannot_be_changed(path: Path):
    journal = SpendJournal(path)
    journal.reserve("run/1", ROUND)
    journal.commit("run/1", 20)
    with pytest.raises(RefusedError, match="has 20 steps committed") as caught:
        journal.commit("run/1", 3)
    assert caught.value.code is RefusalCode.ALREADY_COMMITTED
    assert steps(journal) == [20]


def test_a_reopened_journal_knows_everything(path: Path):
    journal = SpendJournal(path)
    journal.reserve("a", ROUND)
    journal.commit("a", 4)
    journal.reserve("b", OTHER)
    again = SpendJournal(path)
    assert again.history() == journal.history()
    assert steps(again) == [4, 20]
    assert again.is_committed("a")
    assert not again.is_committed("b")


def test_two_open_journals_see_each_other(path: Path):
    one, two = SpendJournal(path), SpendJournal(path)
    one.reserve("a", ROUND)
    two.reserve("a", ROUND)
    two.reserve("b", ROUND)
    one.commit("b", 5)
    assert steps(one) == steps(two) == [20, 5]


def test_keys_may_hold_any_text(path: Path):
    keys = ["run/1", "a\nb", '"', "\u2028", "", "x" * 5000]
    journal = SpendJournal(path)
    for key in keys:
        journal.reserve(key, ROUND)
    assert len(SpendJournal(path).history()) == len(keys)


def test_the_file_is_the_owners_alone_and_one_json_line_an_entry(path: Path):
    journal = SpendJournal(path)
    journal.reserve("run/1", ROUND)
    journal.commit("run/1", 20)
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"entry": "reserve", "key": "run/1", "release": ROUND.to_dict()},
        {"entry": "commit", "key": "run/1", "steps_done": 20},
    ]


def test_a_reservation_is_flushed_to_disk_before_it_returns(path: Path, monkeypatch: pytest.MonkeyPatch):
    journal = SpendJournal(path)
    sizes: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (real(fd), sizes.append(os.fstat(fd).st_size))[0])
    journal.reserve("run/1", ROUND)
    assert sizes == [path.stat().st_size]
    assert sizes[0] > 0


def test_a_process_killed_while_training_leaves_the_cost_spent(path: Path):
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from privacy.accounting import Release; from privacy.claim import SpendJournal\n"
        "journal = SpendJournal(Path(sys.argv[1]))\n"
        "journal.reserve('run/1', Release(sampling_probability=0.1, noise_multiplier=1.2, steps=20))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    journal = SpendJournal(path)
    assert journal.history() == (ROUND,)
    journal.reserve("run/1", ROUND)  # the retry is the same cost
    journal.commit("run/1", 20)
    assert journal.history() == (ROUND,)


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_was_never_acknowledged(path: Path, cut: int):
    journal = SpendJournal(path)
    journal.reserve("a", ROUND)
    whole = path.read_bytes()
    journal.reserve("b", OTHER)
    torn = path.read_bytes()[:-cut]
    assert len(torn) > len(whole)
    path.write_bytes(torn)
    again = SpendJournal(path)
    assert again.history() == (ROUND,)
    assert path.read_bytes() == whole
    again.reserve("b", OTHER)
    assert again.history() == (ROUND, OTHER)


def test_a_torn_commit_counts_in_full(path: Path):
    journal = SpendJournal(path)
    journal.reserve("a", ROUND)
    journal.commit("a", 3)
    path.write_bytes(path.read_bytes()[:-1])
    assert steps(SpendJournal(path)) == [20]


def line(**fields: object) -> str:
    return json.dumps(fields) + "\n"


RESERVED = line(entry="reserve", key="a", release=ROUND.to_dict())


@pytest.mark.parametrize(
    ("content", "number"),
    [
        ("nonsense\n", 1),
        ("\n", 1),
        ("[]\n", 1),
        (RESERVED + "{}\n", 2),
        (RESERVED + RESERVED, 2),
        (line(entry="commit", key="a", steps_done=3), 1),
        (RESERVED + line(entry="commit", key="a", steps_done=21), 2),
        (RESERVED + line(entry="commit", key="a", steps_done=-1), 2),
        (RESERVED + line(entry="commit", key="a", steps_done="3"), 2),
        (RESERVED + line(entry="commit", key="a", steps_done=True), 2),
        (
            RESERVED
            + line(entry="commit", key="a", steps_done=3)
            + line(entry="commit", key="a", steps_done=2),
            3,
        ),
        (RESERVED + line(entry="commit", key="a"), 2),
        (line(entry="refund", key="a", release=ROUND.to_dict()), 1),
        (line(entry="reserve", key=3, release=ROUND.to_dict()), 1),
        (line(entry="reserve", key="a", release={**ROUND.to_dict(), "noise_multiplier": 0}), 1),
        (RESERVED.replace("20", '20, "steps": 1'), 1),
    ],
)
def test_a_damaged_journal_stops_everything(path: Path, content: str, number: int):
    path.write_text(content)
    with pytest.raises(AccountingError, match=rf"spent\.jsonl, line {number}: .*what was spent is unknown"):
        SpendJournal(path)


def test_text_that_is_not_utf8_stops_everything(path: Path):
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(AccountingError, match="what was spent is unknown"):
        SpendJournal(path)


def test_damage_while_open_is_noticed_at_the_next_use(path: Path):
    journal = SpendJournal(path)
    journal.reserve("a", ROUND)
    path.write_text("nonsense\n")
    with pytest.raises(AccountingError):
        journal.reserve("b", ROUND)
    with pytest.raises(AccountingError):
        journal.history()


def reserve_many(path: str, barrier: Barrier, shift: int) -> None:
    journal = SpendJournal(Path(path))
    barrier.wait()
    for index in range(60):
        journal.reserve(f"{index + shift}", ROUND)


def test_processes_that_share_a_journal_lose_nothing_and_pay_once(path: Path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=reserve_many, args=(str(path), barrier, shift)) for shift in (0, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(SpendJournal(path).history()) == 65
