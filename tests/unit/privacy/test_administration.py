"""Who takes part, and the cap: a new patient has spent nothing, and nobody raises a cap alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from privacy import administration, roster
from privacy.administration import (
    cap_request,
    change_cap,
    note_incident,
    release_model,
    set_patients,
    spent_on,
)
from privacy.errors import LedgerError, RefusalCode, SigningError, TamperedError
from privacy.filters import FixedPlan
from privacy.ledger import Ledger
from privacy.signing import generate_key
from tests.support.ledger_cases import (
    PATIENTS,
    SALT,
    Hospital,
    approvals,
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


# --- cohorts ---------------------------------------------------------------------------------------------


def test_a_new_patient_has_spent_nothing(site: Hospital):
    site.reserve(work(1), plan(4.0))
    assert set_patients(site.ledger, [*PATIENTS, "emil", "fay"])
    assert spent_on(site.ledger, "emil") == ()
    assert spent_on(site.ledger, "anna") == (plan(4.0).release(),)
    paid = site.reserve(work(2), plan(2.0))  # only the new ones can afford it
    assert paid.cohorts == ("c1",)
    everybody = [*PATIENTS, "emil", "fay", "nobody"]
    assert site.ledger.may_sample(everybody, paid.cohorts) == [False] * 4 + [True, True, False]
    assert spent_on(site.ledger, "emil") == (plan(2.0).release(),)
    assert spent_on(site.ledger, "anna") == (plan(4.0).release(),)
    with refused(RefusalCode.BUDGET_EXHAUSTED):
        site.reserve(work(3), plan(3.0))


def test_a_withdrawn_patient_is_not_sampled_and_keeps_the_history(site: Hospital):
    site.reserve(work(1))
    assert set_patients(site.ledger, PATIENTS[1:])
    paid = site.reserve(work(2))
    assert site.ledger.may_sample(PATIENTS, paid.cohorts) == [False, True, True, True]
    assert spent_on(site.ledger, "anna") == (plan().release(),)
    assert len(spent_on(site.ledger, "bob")) == 2
    site.reopen()
    assert spent_on(site.ledger, "anna") == (plan().release(),)


def test_who_comes_back_is_charged_as_if_never_away(site: Hospital):
    site.reserve(work(1))
    set_patients(site.ledger, PATIENTS[1:])
    site.reserve(work(2))
    set_patients(site.ledger, PATIENTS)
    assert len(spent_on(site.ledger, "anna")) == 2
    assert site.ledger.may_sample(["anna"], ["c0"]) == [True]
    assert "c1" not in site.ledger.state().cohorts  # no fresh budget by leaving and coming back
    assert [body["opens"] for body in site.bodies() if body["kind"] == "ROSTER"] == [None, None]


def test_a_cohort_without_patients_is_not_charged(site: Hospital):
    set_patients(site.ledger, ["emil"])
    assert site.reserve(work()).cohorts == ("c1",)
    set_patients(site.ledger, [*PATIENTS, "emil"])
    assert spent_on(site.ledger, "anna") == ()
    assert site.ledger.may_sample(["anna", "emil"], ["c1"]) == [False, True]


def test_nobody_left_is_too_few(site: Hospital):
    set_patients(site.ledger, [])
    with refused(RefusalCode.COHORT_TOO_SMALL):
        site.reserve(work())


def test_the_same_patients_again_write_nothing(site: Hospital):
    assert not set_patients(site.ledger, reversed(PATIENTS))
    assert site.kinds() == ["GENESIS"]


def test_a_patient_that_the_ledger_does_not_know_is_named_so(site: Hospital):
    with pytest.raises(LedgerError, match="no such patient in this ledger"):
        spent_on(site.ledger, "nobody")


def test_too_few_patients_are_refused_and_their_number_is_not_written(site: Hospital):
    too_few = (
        "fewer than 5 patients can take part, which the policy's min_patients asks for"  # not: there are 4
    )
    with refused(RefusalCode.COHORT_TOO_SMALL, too_few):
        site.reserve(work(), min_patients=5)
    site.reserve(work(2), min_patients=4)
    site.reserve(work(3), plan(3.0))  # c0 is at 4 of 4.9
    set_patients(site.ledger, [*PATIENTS, "emil"])
    with refused(RefusalCode.COHORT_TOO_SMALL):
        site.reserve(work(4), min_patients=2)  # five take part, one of them can afford it
    assert site.reserve(work(4), min_patients=1).cohorts == ("c1",)


def test_the_table_of_patients_holds_no_names_and_is_that_of_the_ledger(site: Hospital):
    with raw(site.path) as connection:
        places = roster.read(connection)
    assert set(places) == {roster.pseudonym(SALT, patient) for patient in PATIENTS}
    assert site.ledger.state().roster == roster.roster_hash(places)
    content = site.path.read_bytes()
    assert not any(patient.encode() in content for patient in PATIENTS)
    assert b"cohort\x00" not in content


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM patients WHERE pseudonym = (SELECT min(pseudonym) FROM patients)",
        "UPDATE patients SET cohort = 'c1'",
        "UPDATE patients SET withdrawn = 1",
        "INSERT INTO patients VALUES (x'00', 'c0', 0)",
    ],
)
def test_a_changed_table_of_patients_is_noticed(site: Hospital, change: str):
    site.ledger.close()
    with raw(site.path) as connection:
        connection.execute(change)
    with pytest.raises(
        TamperedError, match=r"^ledger, entry 0: the table of patients is not the one that the ledger holds$"
    ):
        site.reopen()


# --- cap -------------------------------------------------------------------------------------------------


def test_the_cap_is_lowered_freely(site: Hospital):
    site.reserve(work(1))
    change_cap(site.ledger, 5.0)  # 1.912 nats
    with refused(RefusalCode.BUDGET_EXHAUSTED):
        site.reserve(work(2))
    site.reserve(work(2), plan(0.9))
    change_cap(site.ledger, 0.0)
    with refused(RefusalCode.BUDGET_EXHAUSTED):
        site.reserve(work(3), plan(1e-9))
    site.reopen()
    assert site.ledger.state().cap == 0.0
    assert site.ledger.state().genesis.cap == 8.0


def test_two_approvers_raise_the_cap(site: Hospital):
    for number in (1, 2, 3, 4):
        site.reserve(work(number))
    change_cap(site.ledger, 9.0, approvals(site.approvers[1:], cap_request(site.ledger, 9.0)))
    assert site.ledger.state().cap == 9.0
    site.reserve(work(5))  # 5 of 5.912
    site.reopen()
    with refused(RefusalCode.BUDGET_EXHAUSTED):
        site.reserve(work(6))


def test_one_approver_the_same_twice_and_a_stranger_raise_nothing(site: Hospital):
    request = cap_request(site.ledger, 9.0)
    one, stranger = site.approvers[0], generate_key()
    for keys in ([], [one], [one, one], [one, stranger], [stranger, generate_key()], [site.key, one]):
        with pytest.raises(TamperedError, match="raises the cap without two of the approvers"):
            change_cap(site.ledger, 9.0, approvals(keys, request))
    assert site.kinds() == ["GENESIS"]


def test_approvals_are_for_one_change_at_one_place_of_one_ledger(site: Hospital, tmp_path: Path):
    signed = approvals(site.approvers[:2], cap_request(site.ledger, 9.0))
    with pytest.raises(TamperedError, match="without two"):
        change_cap(site.ledger, 9.5, signed)  # for another cap
    note_incident(site.ledger, "drill")
    with pytest.raises(TamperedError, match="without two"):
        change_cap(site.ledger, 9.0, signed)  # an entry later
    signed = approvals(site.approvers[:2], cap_request(site.ledger, 9.0))
    change_cap(site.ledger, 9.0, signed)
    change_cap(site.ledger, 8.0)
    with pytest.raises(TamperedError, match="without two"):
        change_cap(site.ledger, 9.0, signed)  # replayed


def test_a_signature_for_another_purpose_approves_nothing(site: Hospital):
    request = cap_request(site.ledger, 9.0)
    signed = [
        {"key": key.public, "signature": key.sign("ledger-head", request)} for key in site.approvers[:2]
    ]
    with pytest.raises(TamperedError, match="without two"):
        change_cap(site.ledger, 9.0, signed)


def test_a_lowered_cap_ends_a_schedule_and_it_cannot_be_raised(tmp_path: Path):
    one = plan(0.2, steps=2)
    fixed = hospital(tmp_path, rule=FixedPlan(schedule=(one.release(),) * 3, epsilon=8.0, delta=1e-5))
    fixed.reserve(work(1), one)
    with pytest.raises(TamperedError, match="raises the cap without two"):
        change_cap(fixed.ledger, 9.0, approvals(fixed.approvers[:2], cap_request(fixed.ledger, 9.0)))
    change_cap(fixed.ledger, 7.9)
    with refused(RefusalCode.OFF_PLAN):
        fixed.reserve(work(2), one)
    with pytest.raises(TamperedError, match="raises the cap without two"):
        change_cap(fixed.ledger, 8.0, approvals(fixed.approvers[:2], cap_request(fixed.ledger, 8.0)))
    fixed.reopen()
    with refused(RefusalCode.OFF_PLAN):
        fixed.reserve(work(2), one)


# --- notes -----------------------------------------------------------------------------------------------


def test_models_that_left_and_incidents_are_written_down(site: Hospital):
    release_model(site.ledger, run="study", round_=3, model="c" * 64, audience="partners")
    note_incident(site.ledger, "laptop-lost", "INC-42")
    assert site.bodies()[1] | {"prev": "", "time": 0} == {
        "v": 1, "seq": 1, "prev": "", "time": 0, "kind": "MODEL_RELEASE", "run": "study", "round": 3,
        "model": "c" * 64, "audience": "partners",
    }  # fmt: skip
    assert (site.bodies()[2]["code"], site.bodies()[2]["reference"]) == ("laptop-lost", "INC-42")
    note_incident(site.ledger, "drill")
    assert site.bodies()[3]["reference"] == ""


def test_a_word_that_an_entry_has_no_room_for_is_not_written(site: Hospital):
    with pytest.raises(ValueError, match="reference is 'name of a patient'"):
        note_incident(site.ledger, "laptop-lost", "name of a patient")
    with pytest.raises(ValueError, match="audience is 'everybody'"):
        release_model(site.ledger, run="study", round_=3, model="c" * 64, audience="everybody")
    assert site.kinds() == ["GENESIS"]


def test_administration_needs_the_key(site: Hospital):
    site.ledger.close()
    reader = Ledger.open(site.path, salt=SALT)
    for act in (
        lambda: administration.note_incident(reader, "drill"),
        lambda: administration.set_patients(reader, []),
        lambda: administration.change_cap(reader, 1.0),
        lambda: reader.refuse(work(), RefusalCode.UNIT),
    ):
        with pytest.raises(SigningError, match="writing needs the site's key"):
            act()
