"""Keys, heads, copies and the file of a ledger: an older or another one is noticed, and other ledgers are witnessed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from privacy import store
from privacy.errors import LedgerError, RefusalCode, SigningError, TamperedError
from privacy.heads import Head
from privacy.ledger import Ledger
from privacy.signing import generate_key
from privacy.store import Store
from privacy.witness import check_witnesses
from tests.support.ledger_cases import (
    MODEL,
    POLICY,
    SALT,
    Hospital,
    hospital,
    plan,
    raw,
    refused,
    work,
)


@pytest.fixture
def site(tmp_path: Path) -> Hospital:
    """A ledger that pays for 4.912 nats at order 4: four plans of one nat each."""
    return hospital(tmp_path)


# --- keys ------------------------------------------------------------------------------------------------


def test_another_key_takes_over(site: Hospital):
    site.reserve(work(1))
    new = generate_key()
    site.ledger.rotate_key(new)
    assert site.ledger.head().key == site.key.public  # the old one signed the change
    site.reserve(work(2))
    assert site.ledger.head().key == new.public
    with pytest.raises(SigningError, match="is not the one in force"):
        site.reopen()
    site.reopen(new)
    site.reserve(work(3))
    assert site.ledger.state().keys == [site.key.public, new.public]


def test_a_head_signed_before_a_rotation_is_still_ours(site: Hospital):
    site.reserve(work(1))
    old = site.ledger.head()
    site.ledger.rotate_key(generate_key())
    check_witnesses(site.ledger.state(), [old])
    assert site.ledger.state().contains(old)


def test_a_wrong_key_opens_nothing_for_writing(site: Hospital):
    site.ledger.close()
    with pytest.raises(SigningError, match="is not the one in force"):
        Ledger.open(site.path, key=generate_key(), salt=SALT)


# --- older copies ----------------------------------------------------------------------------------------


def test_a_file_rolled_back_under_an_open_ledger_is_noticed(site: Hospital, tmp_path: Path):
    site.reserve(work(1))
    shutil.copyfile(site.path, tmp_path / "backup")
    site.reserve(work(2))
    shutil.copyfile(tmp_path / "backup", site.path)  # into the same file
    gone = r"^ledger, entry 2: entries that were here are gone: the file was replaced by an older one$"
    with pytest.raises(TamperedError, match=gone):
        site.reserve(work(3))
    with pytest.raises(TamperedError, match=gone):
        site.ledger.receipt(work(1))


def test_a_file_moved_into_the_place_of_an_open_ledger_is_noticed(site: Hospital, tmp_path: Path):
    # The open file would be one that no name leads to: everything written to it would be gone at the next start.
    site.reserve(work(1))
    shutil.copyfile(site.path, tmp_path / "backup")
    site.reserve(work(2))
    (tmp_path / "backup").replace(site.path)
    with pytest.raises(TamperedError, match="replaced by an older one"):
        site.reserve(work(3))


def test_a_file_that_was_removed_is_not_written_to(site: Hospital):
    site.reserve(work(1))
    site.path.unlink()
    with pytest.raises(
        LedgerError,
        match=r": unable to open database file; nothing runs .* check the disk, its space and who may write there$",
    ):
        site.reserve(work(2))
    assert not site.path.exists()


def test_a_file_with_other_entries_of_the_same_number_is_noticed(site: Hospital, tmp_path: Path):
    shutil.copyfile(site.path, tmp_path / "fork.sqlite")
    site.reserve(work(1))
    fork = Ledger.open(tmp_path / "fork.sqlite", key=site.key, salt=SALT)
    fork.reserve(work(1), plan(2.0), model=MODEL, policy=POLICY)
    with raw(tmp_path / "fork.sqlite") as connection:
        connection.execute(
            "PRAGMA user_version = 1"
        )  # SQLite re-reads a file whose count of changes is another
    shutil.copyfile(tmp_path / "fork.sqlite", site.path)
    with pytest.raises(TamperedError, match=r"^ledger, entry 1: it is not the entry that was here before$"):
        site.ledger.state()
    fork.reserve(work(2), plan(1.0), model=MODEL, policy=POLICY)
    shutil.copyfile(tmp_path / "fork.sqlite", site.path)
    with pytest.raises(TamperedError, match="does not follow the entry before"):
        site.ledger.state()


def test_a_restored_old_copy_is_noticed_by_whoever_kept_a_head(site: Hospital, tmp_path: Path):
    site.pay(work(1))
    shutil.copyfile(site.path, tmp_path / "backup")
    site.pay(work(2))
    kept = site.ledger.head()
    site.ledger.close()
    shutil.copyfile(tmp_path / "backup", site.path)
    site.reopen()  # alone it cannot know
    with refused(RefusalCode.ROLLED_BACK):
        check_witnesses(site.ledger.state(), [kept])
    site.pay(work(3))
    site.pay(work(4))
    with refused(RefusalCode.FORKED):
        check_witnesses(site.ledger.state(), [kept])


def test_heads_that_nobody_of_this_site_signed_hold_nothing_up(site: Hospital):
    site.pay(work(1))
    state, head = site.ledger.state(), site.ledger.head()
    stranger = generate_key()
    large = dataclasses.replace(head, size=99, key=stranger.public, signature="")
    forged = dataclasses.replace(large, signature=stranger.sign("ledger-head", large.statement()))
    bent = dataclasses.replace(head, size=99)  # our signature, of another head
    elsewhere = dataclasses.replace(head, dataset="f" * 64, size=99)
    check_witnesses(state, [forged, bent, elsewhere, large, head])


# --- the file ---------------------------------------------------------------------------------------------


def pragmas(connection: sqlite3.Connection) -> dict[str, object]:
    names = ("synchronous", "journal_mode", "trusted_schema", "cell_size_check", "busy_timeout")
    return {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names}


@pytest.mark.parametrize(("more", "synchronous"), [({}, 3), ({"durable": True}, 3), ({"durable": False}, 0)])
def test_what_is_acknowledged_is_flushed_and_the_file_is_not_trusted(
    site: Hospital, more: dict[str, bool], synchronous: int
):
    site.ledger.close()
    made = Store.create(site.path.with_name("new.sqlite"), **more)
    for opened in (made, Store(site.path, writable=True, **more)):
        with opened.transaction() as connection:
            assert pragmas(connection) == {
                "synchronous": synchronous,  # 3: EXTRA, 0: OFF
                "journal_mode": "delete",
                "trusted_schema": 0,
                "cell_size_check": 1,
                "busy_timeout": 30_000,
            }


@pytest.mark.parametrize(("seeded", "synchronous"), [(False, 3), (True, 0)])
def test_only_a_simulation_does_without_flushing(tmp_path: Path, seeded: bool, synchronous: int):
    made = hospital(tmp_path, seeded=seeded)
    with made.reopen().writing() as transaction:
        assert pragmas(transaction.connection)["synchronous"] == synchronous


@pytest.mark.parametrize(
    ("torn", "access", "may_write"),
    [(False, True, False), (True, True, True), (True, False, False), (False, False, False)],
)
def test_a_reader_writes_only_where_a_killed_writer_has_to_be_rolled_back(
    site: Hospital, monkeypatch: pytest.MonkeyPatch, torn: bool, access: bool, may_write: bool
):
    site.ledger.close()
    if torn:
        site.path.with_name(f"{site.path.name}-journal").touch()
    asked: list[tuple[Path, int]] = []
    monkeypatch.setattr(os, "access", lambda *of: asked.append(of) or access)
    expected = contextlib.nullcontext() if may_write else pytest.raises(LedgerError, match="readonly")
    with expected, Store(site.path, writable=False).reading() as connection:
        connection.execute("DELETE FROM patients")
    assert asked == ([(site.path, os.W_OK)] if torn else [])


def test_an_entry_that_is_not_there_is_named(site: Hospital):
    with (
        site.ledger.reading() as connection,
        pytest.raises(LedgerError, match=r"^entry 7 is missing or damaged$"),
    ):
        store.body(connection, 7)


# --- heads -----------------------------------------------------------------------------------------------


def test_each_entry_can_be_proven_and_no_other(site: Hospital):
    for number in (1, 2, 3):
        site.pay(work(number))
    head = site.ledger.head()
    assert head.is_signed()
    for seq in range(7):
        entry = site.ledger.prove(seq).entry_in(head)
        assert entry is not None
        assert entry.seq == seq
    for seq in (-1, 7):
        with pytest.raises(LedgerError, match=f"there is no entry {seq}; entries are 0 to 6"):
            site.ledger.prove(seq)


def test_heads_of_other_ledgers_are_kept_the_largest_of_each(site: Hospital, tmp_path: Path):
    other = hospital(tmp_path / "other", dataset="elsewhere")
    first = other.ledger.head()
    other.pay(work(1))
    second = other.ledger.head()
    forged = dataclasses.replace(second, size=50)
    site.ledger.keep([second, first, forged, site.ledger.head()])
    assert site.ledger.witnessed() == (second,)
    site.ledger.keep([first])
    site.reopen()
    assert site.ledger.witnessed() == (second,)


def test_no_more_ledgers_are_witnessed_than_there_is_room_for(site: Hospital, monkeypatch):
    monkeypatch.setattr(store, "MAX_WITNESSED", 2)
    key = generate_key()

    def head(dataset: str, size: int) -> Head:
        bare = Head(dataset=dataset * 64, root="0" * 64, size=size, time=0, tip="0" * 64, key=key.public)
        return dataclasses.replace(bare, signature=key.sign("ledger-head", bare.statement()))

    site.ledger.keep([head("a", 1), head("b", 1), head("c", 1)])
    site.ledger.keep([head("c", 9), head("b", 2)])
    assert [(each.dataset[0], each.size) for each in site.ledger.witnessed()] == [("a", 1), ("b", 2)]


def test_a_kept_head_that_was_spoiled_is_left_out(site: Hospital, tmp_path: Path):
    site.ledger.keep([hospital(tmp_path / "other", dataset="elsewhere").ledger.head()])
    with raw(site.path) as connection:
        connection.execute("UPDATE witnessed SET head = 'nonsense'")
    assert site.ledger.witnessed() == ()


def test_a_receipt_grows_from_a_head_that_this_ledger_contains_alone(site: Hospital, tmp_path: Path):
    kept = site.pay(work(1)).head
    site.pay(work(2))
    assert site.ledger.receipt(work(2), kept).since == kept.size
    foreign = hospital(tmp_path / "other", dataset="elsewhere").ledger.head()
    assert site.ledger.receipt(work(2), foreign).since == 0
    assert site.ledger.receipt(work(2), dataclasses.replace(kept, size=99)).since == 0
