"""Who is in a dataset: pseudonyms that need the salt, and places that change as patients come, leave and return."""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import store
from privacy.errors import LedgerError, SigningError
from privacy.roster import (
    Place,
    changes,
    create_salt,
    fingerprint,
    load_salt,
    pseudonym,
    read,
    roster_hash,
    taking_part,
    write,
)

SALT = b"s" * 32
ANNA, BOB, CLEO = (pseudonym(SALT, name) for name in ("anna", "bob", "cleo"))


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """An empty ledger's tables."""
    opened = sqlite3.connect(":memory:", isolation_level=None)
    for statement in store._SCHEMA:
        opened.execute(statement)
    yield opened
    opened.close()


def test_a_pseudonym_by_hand():
    assert pseudonym(SALT, "é") == hmac.new(SALT, b"patient\x00\xc3\xa9", hashlib.sha256).digest()
    assert fingerprint(SALT, "é") == hmac.new(SALT, b"dataset\x00\xc3\xa9", hashlib.sha256).hexdigest()


def test_pseudonyms_are_unlinkable_without_the_salt_and_apart_from_datasets():
    assert pseudonym(SALT, "anna") != pseudonym(b"t" * 32, "anna")
    assert pseudonym(SALT, "anna").hex() != fingerprint(SALT, "anna")
    assert len({ANNA, BOB, CLEO}) == 3


def test_a_salt_is_made_once_and_read_by_its_owner_alone(tmp_path: Path):
    path = tmp_path / "site" / "keys" / "salt"
    salt = create_salt(path)
    assert len(salt) == 32
    assert load_salt(path) == salt
    assert create_salt(tmp_path / "other") != salt
    with pytest.raises(SigningError, match="exists already"):
        create_salt(path)
    path.chmod(0o640)
    with pytest.raises(SigningError, match="others can read it"):
        load_salt(path)


def test_the_table_is_written_and_read(connection: sqlite3.Connection):
    write(connection, {ANNA: Place(cohort="c0"), BOB: Place(cohort="c1", withdrawn=7)})
    write(connection, {ANNA: Place(cohort="c0", withdrawn=9)})
    assert read(connection) == {ANNA: Place(cohort="c0", withdrawn=9), BOB: Place(cohort="c1", withdrawn=7)}


def test_a_damaged_row_is_named_and_its_number_is_no_length():
    class Damaged:
        """What SQLite returns where a bit of a row's types has flipped."""

        def execute(self, _: str) -> list[tuple[object, str, int]]:
            return [(10**15, "c0", 0)]  # bytes(10**15) would ask for a petabyte

    with pytest.raises(LedgerError, match="the table of patients is damaged"):
        read(Damaged())  # type: ignore[arg-type]


def test_the_hash_changes_with_each_place_of_each_patient():
    table = {ANNA: Place(cohort="c0"), BOB: Place(cohort="c0", withdrawn=3)}
    others = [
        {},
        {ANNA: Place(cohort="c0")},
        {ANNA: Place(cohort="c1"), BOB: Place(cohort="c0", withdrawn=3)},
        {ANNA: Place(cohort="c0"), BOB: Place(cohort="c0", withdrawn=4)},
        {ANNA: Place(cohort="c0"), BOB: Place(cohort="c0")},
        {ANNA: Place(cohort="c0"), CLEO: Place(cohort="c0", withdrawn=3)},
        {BOB: Place(cohort="c0"), ANNA: Place(cohort="c0", withdrawn=3)},
        {**table, CLEO: Place(cohort="c0")},
    ]
    assert len({roster_hash(each) for each in [table, *others]}) == 1 + len(others)
    assert roster_hash(dict(reversed(table.items()))) == roster_hash(table)


def test_who_is_new_opens_a_cohort_and_who_is_missing_withdraws():
    table = {ANNA: Place(cohort="c0"), BOB: Place(cohort="c0")}
    assert changes(table, [BOB, CLEO], opens="c1", seq=5) == {
        CLEO: Place(cohort="c1"),
        ANNA: Place(cohort="c0", withdrawn=5),
    }
    assert changes(table, [ANNA, BOB], opens="c1", seq=5) == {}


def test_who_returns_is_in_the_cohort_of_before():
    table = {ANNA: Place(cohort="c0", withdrawn=4), BOB: Place(cohort="c1")}
    assert changes(table, [ANNA, BOB], opens="c2", seq=9) == {ANNA: Place(cohort="c0")}
    assert changes(table, [BOB], opens="c2", seq=9) == {}  # withdrawn once, at entry 4


def test_only_cohorts_that_were_charged_and_patients_who_did_not_withdraw_take_part():
    table = {ANNA: Place(cohort="c0"), BOB: Place(cohort="c0", withdrawn=2), CLEO: Place(cohort="c1")}
    assert taking_part(table, ["c0"]) == {ANNA}
    assert taking_part(table, ["c0", "c1"]) == {ANNA, CLEO}
    assert taking_part(table, []) == frozenset()


@given(st.lists(st.sets(st.integers(0, 5)), max_size=8))
def test_nobody_changes_cohort_and_exactly_those_who_are_present_take_part(history: list[set[int]]):
    table: dict[bytes, Place] = {}
    opened, first = 0, {}
    for seq, present in enumerate(history, start=1):
        names = [bytes([number]) for number in present]
        changed = changes(table, names, opens=f"c{opened}", seq=seq)
        if any(place.cohort == f"c{opened}" for name, place in changed.items() if name not in table):
            opened += 1
        table |= changed
        for name, place in table.items():
            assert first.setdefault(name, place.cohort) == place.cohort
        assert taking_part(table, [f"c{number}" for number in range(opened)]) == set(names)
        assert changes(table, names, opens="c99", seq=seq + 1) == {}
