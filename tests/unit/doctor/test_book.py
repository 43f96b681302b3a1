"""Checks of the ledger: not begun, whole, one byte changed, torn, locked; and whether the site holds its key."""

import sqlite3

import pytest

from deploy.doctor import book
from deploy.doctor.checks import Visit
from deploy.site import load_site
from privacy.signing import create_key
from tests.support.audits import write_site
from tests.support.doctors import only, visit


@pytest.fixture
def there(tmp_path):
    """A hospital with a ledger."""
    file = write_site(tmp_path)
    return Visit(site=load_site(file), file=file, timeout_s=5.0, cache=tmp_path / "cache")


def change(there, statement, *values):
    with sqlite3.connect(there.site.ledger) as connection:
        connection.execute(statement, values)
    connection.close()


def flip_a_byte(there):
    """Change one byte of the first entry, as a person with an editor would: of the file itself."""
    path = there.file.with_name("ledger.sqlite")
    content = path.read_bytes()
    place = content.index(b'"dataset"') + 1
    path.write_bytes(content[:place] + b"D" + content[place + 1 :])


def test_a_ledger_as_it_should_be(there):
    before = {path: path.read_bytes() for path in there.file.parent.iterdir() if path.is_file()}
    assert only(book.verified, there).severity == "ok"
    assert only(book.head, there).severity == "ok"
    assert {path: path.read_bytes() for path in there.file.parent.iterdir() if path.is_file()} == before


def test_before_it_begins(tmp_path):
    there = visit(tmp_path)
    found = only(book.verified, there)
    assert found.severity == "warning"
    assert found.fix.endswith(f"python -m deploy ledger init --site {tmp_path / 'site.yaml'}")
    assert only(book.head, there).severity == "skipped"


def test_one_byte_changed(there):
    flip_a_byte(there)
    found = only(book.verified, there)
    assert found.severity == "error"
    assert found.found == "the ledger is not what was written from entry 0 on"
    assert "keep the file as it is" in found.fix


def test_another_table_of_patients(there):
    change(there, "UPDATE patients SET cohort = 'c7'")
    assert "the ledger's table of patients is not the one" in only(book.verified, there).found


@pytest.mark.parametrize("content", [b"not a ledger at all", b"SQLite format 3\0" + b"x" * 4000])
def test_what_is_no_ledger(there, content):
    there.file.with_name("ledger.sqlite").write_bytes(content)
    found = only(book.verified, there)
    assert (found.severity, found.found) == ("error", "the file of `ledger` is damaged, or no ledger")


def test_implementations_that_disagree(there, monkeypatch):
    import privacy.verify_ledger

    wrong = type("Verdict", (), {"problem": "a rule", "entry": 0})()
    monkeypatch.setattr(privacy.verify_ledger, "verify", lambda *_: wrong)
    assert "two implementations disagree" in only(book.verified, there).found


def test_a_writer_at_work_or_killed_is_left_alone(there):
    journal = there.file.with_name("ledger.sqlite-journal")
    journal.write_bytes(b"half")
    found = only(book.verified, there)
    assert found.severity == "warning"
    assert "is being written" in found.found
    assert journal.read_bytes() == b"half"


def test_a_ledger_that_cannot_be_read_now(there, monkeypatch):
    from deploy.ledger import checking
    from privacy.errors import LedgerError

    def locked(*_):
        raise LedgerError("ledger.sqlite: database is locked")

    monkeypatch.setattr(checking, "check", locked)
    assert "cannot be read now" in only(book.verified, there).found


def test_another_key(there):
    key = there.file.with_name("key.pem")
    key.unlink()
    found = only(book.head, there)
    assert (found.severity, found.fix) == ("error", f"restore {key} with mode 600")
    create_key(key)
    found = only(book.head, there)
    assert found.severity == "error"
    assert "is not the key that the ledger is signed with" in found.found
