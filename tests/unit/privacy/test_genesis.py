"""The beginning of a ledger: once, for patients in no other ledger of the folder, and with a schedule it can pay."""

from __future__ import annotations

from pathlib import Path

import pytest

from privacy import genesis, store
from privacy.administration import (
    set_patients,
)
from privacy.errors import LedgerError, RefusalCode, TamperedError
from privacy.filters import FixedPlan
from privacy.ledger import Ledger
from privacy.signing import generate_key
from tests.support.ledger_cases import (
    PATIENTS,
    RULE,
    SALT,
    Hospital,
    hospital,
    plan,
    refused,
    work,
)


@pytest.fixture
def site(tmp_path: Path) -> Hospital:
    """A ledger that pays for 4.912 nats at order 4: four plans of one nat each."""
    return hospital(tmp_path)


# --- several ledgers in a folder -------------------------------------------------------------------------


def test_a_patient_is_in_one_ledger_of_a_folder(site: Hospital, tmp_path: Path):
    with pytest.raises(LedgerError, match=r"ledger\.sqlite already holds 1 of these patients"):
        hospital(tmp_path, name="other.sqlite", patients=["dora", "emil"], dataset="other")
    assert not (tmp_path / "other.sqlite").exists()
    other = hospital(tmp_path, name="other.sqlite", patients=["emil"], dataset="other")
    other.reserve(work(1), plan(4.0))
    assert other.ledger.state().genesis.dataset != site.ledger.state().genesis.dataset
    site.reserve(work(1), plan(4.0))


def test_whatever_else_lies_in_a_folder_hides_no_ledger(site: Hospital, tmp_path: Path):
    (tmp_path / "folder.sqlite").mkdir()
    text = "of these patients, and what is spent on a patient must add up in one place: put these records into that "
    text += "dataset, or leave those patients out$"
    with pytest.raises(LedgerError, match=f"already holds 4 {text}"):
        hospital(tmp_path, name="other.sqlite", dataset="other")


@pytest.mark.parametrize("seeded", [False, True])
def test_a_hospitals_ledger_is_flushed_to_disk_from_its_first_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeded: bool
):
    made: list[bool] = []
    create = store.Store.create

    def spy(path: Path, *, durable: bool = True) -> store.Store:
        made.append(durable)
        return create(path, durable=durable)

    monkeypatch.setattr(store.Store, "create", spy)
    claimed = {"seeded": True} if seeded else {}
    ledger = genesis.begin(
        tmp_path / "ledger.sqlite",
        site="hospital",
        dataset="cohort",
        rule=RULE,
        patients=PATIENTS,
        key=generate_key(),
        salt=SALT,
        **claimed,
    )
    assert made == [not seeded]
    assert ledger.state().genesis.claims == ("seeded" if seeded else "dp")


def test_a_withdrawn_patient_cannot_begin_anew_in_another_ledger(site: Hospital, tmp_path: Path):
    set_patients(site.ledger, PATIENTS[1:])
    with pytest.raises(LedgerError, match="already holds 1 of these patients"):
        hospital(tmp_path, name="other.sqlite", patients=["anna"], dataset="other")


def test_a_ledger_is_begun_once(site: Hospital, tmp_path: Path):
    before = site.path.read_bytes()
    with pytest.raises(LedgerError, match="exists already; a ledger is made once"):
        hospital(tmp_path)
    assert site.path.read_bytes() == before
    assert site.path.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(LedgerError, match="No such file or directory; give a folder that can be written"):
        genesis.begin(
            tmp_path / "missing" / "ledger.sqlite",
            site="hospital",
            dataset="cohort",
            rule=RULE,
            patients=PATIENTS,
            key=generate_key(),
            salt=SALT,
        )
    with pytest.raises(LedgerError, match="there is no ledger; `python -m deploy ledger init` begins one"):
        Ledger.open(tmp_path / "ledger.sqlite")


# --- schedules -------------------------------------------------------------------------------------------


def test_a_schedule_is_followed_in_its_order(tmp_path: Path):
    one, two = plan(0.2, steps=2), plan(0.1, steps=4)
    schedule = FixedPlan(schedule=(one.release(), two.release()), epsilon=8.0, delta=1e-5)
    fixed = hospital(tmp_path, rule=schedule)
    with refused(RefusalCode.OFF_PLAN):
        fixed.reserve(work(1), plan(0.2, steps=3))
    fixed.reserve(work(1), one)
    with refused(RefusalCode.OFF_PLAN):
        fixed.reserve(work(2), one)
    fixed.reopen()
    fixed.reserve(work(2), two)
    with refused(RefusalCode.OFF_PLAN):
        fixed.reserve(work(3), two)
    assert fixed.kinds().count("RESERVE") == 2


def test_a_schedule_that_costs_more_than_its_cap_begins_no_ledger(tmp_path: Path):
    schedule = FixedPlan(schedule=(plan(100.0).release(),), epsilon=1.0, delta=1e-5)
    with pytest.raises(TamperedError, match=r"the schedule spends epsilon .* the cap is 1"):
        hospital(tmp_path, rule=schedule)
    assert list(tmp_path.iterdir()) == []
