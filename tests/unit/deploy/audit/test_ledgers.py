"""A real ledger, read for an audit: whole, tampered with in every entry, cut off, and replaced by something else."""

import shutil
import sqlite3

import pytest

from deploy.audit.accounts import account_for, check_account
from deploy.audit.ledgers import prove, read_ledger
from privacy.accounting import epsilons
from tests.support.audits import RELEASE, run_rounds, write_site


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A hospital with three rounds: GENESIS, then RESERVE and COMMIT three times."""
    folder = tmp_path_factory.mktemp("hospital")
    assert run_rounds(write_site(folder), 3) == 3
    return folder / "ledger.sqlite"


@pytest.fixture
def ledger(original, tmp_path):
    return shutil.copy(original, tmp_path / "ledger.sqlite")


def edit(path, seq, change):
    """Change the body of an entry."""
    connection = sqlite3.connect(path)
    (body,) = connection.execute("SELECT body FROM entries WHERE seq = ?", (seq,)).fetchone()
    changed = change(body)
    assert changed != body
    connection.execute("UPDATE entries SET body = ? WHERE seq = ?", (changed, seq))
    connection.commit()
    connection.close()


def test_a_whole_ledger(ledger):
    found = read_ledger(ledger, "?")
    assert found.is_whole
    assert (found.site, len(found.entries), found.state.size) == ("site-2", 7, 7)
    proof = prove(found)
    assert (proof.size, proof.counts) == (7, {"GENESIS": 1, "RESERVE": 3, "COMMIT": 3})
    assert proof.head["root"] == found.state.head().root
    assert "head-of-site-2.json" in proof.command


def test_reading_changes_nothing(ledger):
    before = ledger.read_bytes()
    read_ledger(ledger, "?")
    assert ledger.read_bytes() == before


@pytest.mark.parametrize("seq", range(7))
def test_one_changed_byte_is_found_where_it_is(ledger, seq):
    # A digit of the time: the body stays valid canonical JSON, so only hash and signature can tell.
    def next_second(body):
        place = body.index(b'"time":') + 16
        return body[:place] + bytes([48 + (body[place] - 47) % 10]) + body[place + 1 :]

    edit(ledger, seq, next_second)
    found = read_ledger(ledger, "site-2")
    assert not found.is_whole
    check = found.checks[0]
    assert (check.name, check.status) == ("ledger-chain", "violated")
    assert f"entry {seq} is not what was written" in check.text
    assert len(found.entries) == seq
    assert (prove(found) is None) == (seq == 0)
    assert (account_for(found, {}) is None) == (seq == 0)


def test_less_noise_on_paper_is_found(ledger):
    edit(ledger, 1, lambda body: body.replace(b'"noise_multiplier":1.1', b'"noise_multiplier":9.1'))
    assert "entry 1" in read_ledger(ledger, "site-2").checks[0].text


def test_what_holds_is_still_accounted_for(ledger):
    edit(ledger, 5, lambda body: body.replace(b"study-1", b"study-2"))
    account = account_for(read_ledger(ledger, "site-2"), {})
    assert account.worst.releases[0].steps == 2 * RELEASE.steps


def test_an_entry_that_is_gone(ledger):
    connection = sqlite3.connect(ledger)
    connection.execute("DELETE FROM entries WHERE seq = 3")
    connection.commit()
    connection.close()
    assert "entry 3" in read_ledger(ledger, "site-2").checks[0].text


def test_the_table_of_patients_is_held_against_the_entries(ledger):
    connection = sqlite3.connect(ledger)
    connection.execute("DELETE FROM patients WHERE pseudonym = (SELECT min(pseudonym) FROM patients)")
    connection.commit()
    connection.close()
    assert "table of patients" in read_ledger(ledger, "site-2").checks[0].text


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_something_else_than_a_ledger(tmp_path, content):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    found = read_ledger(path, "site-2")
    assert found.site == "site-2"
    assert found.checks[0].status == "violated"
    assert "cannot be read as a ledger" in found.checks[0].text
    assert account_for(found, {}) is None


def test_signatures_that_are_no_bytes(ledger):
    connection = sqlite3.connect(ledger)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE entries SET signature = zeroblob(64) WHERE seq = 2")
    connection.commit()
    connection.close()
    assert "entry 2" in read_ledger(ledger, "site-2").checks[0].text


def test_figures_are_recomputed_from_parameters(ledger):
    account = account_for(read_ledger(ledger, "?"), {})
    pair = epsilons([RELEASE] * 3, 1e-5)
    cohort = account.worst
    assert (cohort.pld, cohort.rdp) == (pytest.approx(pair.pld), pytest.approx(pair.rdp))
    assert cohort.pld <= cohort.rdp <= cohort.counted == cohort.settled
    assert (account.cap, account.claims, account.delta) == (3.0, "dp", 1e-5)
    assert [(run.run, run.committed, run.reserved) for run in account.runs] == [("study-1", 3, 0)]
    assert [view.name for view in account.runs[0].views] == ["server", "other-site", "public"]
    assert [check.status for check in check_account(account)] == ["ok"] * 4
