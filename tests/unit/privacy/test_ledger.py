"""What a ledger promises to who asks it: paid once, in full, within the cap, by whomever and in whatever order."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from pathlib import Path

import pytest

from privacy import ledger
from privacy.accounting import Release
from privacy.administration import (
    set_patients,
)
from privacy.errors import PlanError, RefusalCode, RefusedError, SigningError
from privacy.filters import RenyiFilter
from privacy.ledger import Ledger
from privacy.records import Work
from tests.support.ledger_cases import (
    MODEL,
    PATIENTS,
    POLICY,
    SALT,
    Hospital,
    hospital,
    plan,
    refused,
    with_steps,
    work,
)


@pytest.fixture
def site(tmp_path: Path) -> Hospital:
    """A ledger that pays for 4.912 nats at order 4: four plans of one nat each."""
    return hospital(tmp_path)


# --- reserve ---------------------------------------------------------------------------------------------


def test_work_is_reserved_with_its_parameters_and_never_an_epsilon(site: Hospital):
    paid = site.reserve(work())
    assert (paid.seq, paid.cohorts, paid.steps, paid.update) == (1, ("c0",), None, None)
    body = site.bodies()[1]
    assert body["kind"] == "RESERVE"
    assert (body["run"], body["round"], body["base"]) == ("study", 1, f"{1:064x}")
    assert body["releases"] == [plan().release().to_dict()]
    assert (body["model"], body["policy"], body["randomness"]) == (MODEL, POLICY, "os")
    assert body["mechanism"] == {
        "divisor": 10,
        "grad_engine": "bookkeeping",
        "max_grad_norm": 1,
        "max_records_per_patient": 8,
        "name": "patient-level DP-SGD, Gaussian noise",
        "plan_delta": 1e-5,
        "unit": "patient",
    }
    assert body["run_cap"] is None
    assert "epsilon" not in str(body).replace("epsilon_", "")


def test_the_same_work_is_paid_for_once(site: Hospital):
    first = site.reserve(work())
    assert site.reserve(work()) == first
    site.reopen()
    assert site.reserve(work()) == first
    assert site.kinds() == ["GENESIS", "RESERVE"]


def test_exactly_what_the_cap_pays_for_is_reserved(site: Hospital):
    for number in (1, 2, 3, 4):
        site.reserve(work(number))
    with refused(RefusalCode.BUDGET_EXHAUSTED):
        site.reserve(work(5))
    site.reserve(work(6), plan(0.912))  # 4.912 of 4.912138
    with refused(RefusalCode.BUDGET_EXHAUSTED):
        site.reserve(work(7), plan(0.0002))
    assert site.kinds().count("RESERVE") == 5


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 5},
        {"noise_multiplier": 9.0},
        {"sampling_probability": 0.5},
        {"max_grad_norm": 2.0},
        {"divisor": 11.0},
        {"grad_engine": "opacus"},
        {"max_records_per_patient": 9},
    ],
)
def test_other_parameters_for_the_same_work_are_refused(site: Hospital, change: dict[str, object]):
    site.reserve(work())
    with refused(RefusalCode.KEY_REUSED):
        site.reserve(work(), dataclasses.replace(plan(), **change))  # type: ignore[arg-type]
    assert site.kinds() == ["GENESIS", "RESERVE", "REFUSE"]


def test_another_model_for_the_same_work_is_refused(site: Hospital):
    site.reserve(work())
    with refused(RefusalCode.KEY_REUSED, "this work was reserved for other parameters"):
        site.reserve(work(), model="9" * 64)


def test_seeded_noise_and_single_records_are_refused_for_work_that_was_reserved_honestly(site: Hospital):
    # The noise of a seed can be subtracted. A server that asks twice must not get it for what was paid with os noise.
    site.reserve(work())
    with refused(RefusalCode.KEY_REUSED):
        site.reserve(work(), plan(randomness="seeded"))
    with refused(RefusalCode.KEY_REUSED):
        site.reserve(work(), plan(unit="record", max_records_per_patient=1))


def test_seeded_and_record_level_plans_are_refused_where_privacy_is_claimed(site: Hospital):
    with refused(RefusalCode.SEEDED, "seeded noise is for simulations alone"):
        site.reserve(work(), plan(randomness="seeded"))
    of_records = "a plan that protects single records says nothing of a patient, who has several"
    with refused(RefusalCode.UNIT, of_records):
        site.reserve(work(2), plan(unit="record", max_records_per_patient=1))
    assert site.kinds() == ["GENESIS", "REFUSE", "REFUSE"]
    assert [body.get("code") for body in site.bodies()[1:]] == ["seeded-noise", "unit-not-patient"]


def test_a_simulation_takes_seeded_noise_and_says_so(tmp_path: Path):
    simulated = hospital(tmp_path, seeded=True)
    simulated.reserve(work(), plan(randomness="seeded"))
    assert simulated.bodies()[0]["claims"] == "seeded"
    assert simulated.bodies()[1]["randomness"] == "seeded"
    with refused(RefusalCode.UNIT):
        simulated.reserve(work(2), plan(unit="record", max_records_per_patient=1))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"noise_multiplier": 1e20}, "noise_multiplier is 1e\\+20"),
        ({"noise_multiplier": 10**20}, "noise_multiplier is 100000000000000000000"),
        ({"noise_multiplier": float(2**53)}, "noise_multiplier is 9007199254740992"),
        ({"divisor": 1e17}, "divisor is 1e\\+17"),
        ({"max_grad_norm": 1e18}, "max_grad_norm is 1e\\+18"),
        ({"max_records_per_patient": 2**60}, "max_records_per_patient is 1152921504606846976"),
        ({"neighbouring": "replace_one"}, "neighbouring must be add_remove, the relation that the ledger"),
    ],
)
def test_a_plan_that_no_entry_can_hold_is_refused_before_anything(site: Hospital, change, named: str):
    # Canonical JSON writes 1e20 without an exponent and reads no integer beyond 2^53: written, the ledger never opens.
    with pytest.raises(PlanError, match=f"^plan: {named}"):
        site.reserve(work(), plan(**change))
    assert site.kinds() == ["GENESIS"]
    site.reopen()


@pytest.mark.parametrize("noise", [2.0**53 - 1, 1e21, 1e100])
def test_noise_of_any_size_that_can_be_held_is_held(site: Hospital, noise: float):
    with contextlib.suppress(RefusedError):  # where Opacus 1.6 overflows: that counts as infinite
        site.reserve(work(), plan(noise_multiplier=noise))
    assert site.kinds()[1] in ("RESERVE", "REFUSE")
    site.reopen()


def test_releases_beside_the_plans_own_are_paid_for(site: Hospital):
    metric = Release(sampling_probability=1.0, noise_multiplier=1.0, steps=1)  # 4 / 2 = 2 nats
    paid = site.reserve(work(), plan(2.5), others=[metric])
    assert paid.releases == (plan(2.5).release(), metric)
    with refused(RefusalCode.BUDGET_EXHAUSTED):
        site.reserve(work(2), plan(0.5))  # 2.5 + 2 + 0.5 = 5 > 4.912
    with refused(RefusalCode.KEY_REUSED):
        site.reserve(work(), plan(2.5))  # without the metric it is other work


def test_nothing_is_written_with_a_ledger_open_for_reading(site: Hospital):
    site.ledger.close()
    reader = Ledger.open(site.path)
    assert reader.state().size == 1
    with pytest.raises(SigningError, match="opened for reading; writing needs the site's key"):
        reader.reserve(work(), plan(), model=MODEL, policy=POLICY)
    with pytest.raises(SigningError, match=r"^the ledger was opened without the site's salt"):
        reader.may_sample(["anna"], ["c0"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"run": ""}, "run must be a text of 1 to 200 characters"),
        ({"run": "x" * 201}, "run must be a text of 1 to 200 characters"),
        ({"run": 5}, "run must be a text"),
        ({"run": "\ud800"}, "run must be text that UTF-8 can hold"),
        ({"run": "a\udfff"}, "run must be text that UTF-8 can hold"),
        ({"round": -1}, "round must be an integer from 0"),
        ({"round": True}, "round must be an integer"),
        ({"round": 2**53}, "round must be an integer from 0 to 9007199254740991"),
        ({"base": "0" * 63}, "base must be 64 hexadecimal digits"),
        ({"base": "G" * 64}, "base must be 64 hexadecimal digits"),
    ],
)
def test_work_that_no_entry_can_hold_is_refused(change: dict[str, object], named: str):
    fields: dict[str, object] = {"run": "study", "round": 1, "base": "0" * 64}
    with pytest.raises(PlanError, match=f"^work: {named}"):
        Work(**(fields | change))  # type: ignore[arg-type]
    assert Work(run="\ue000" * 200, round=0, base="0" * 64).round == 0


# --- commit ----------------------------------------------------------------------------------------------


def test_a_reservation_without_a_commit_counts_in_full(site: Hospital):
    site.reserve(work(1), plan(4.0))
    site.reopen()
    with refused(RefusalCode.BUDGET_EXHAUSTED):
        site.reserve(work(2))


def test_fewer_steps_give_back_what_was_not_done(site: Hospital):
    site.reserve(work(1), plan(4.0, steps=8))
    site.ledger.commit(work(1), [2], "a" * 64)  # 1 of 4 nats
    assert site.ledger.state().releases("c0") == (with_steps(plan(4.0, steps=8).release(), 2),)
    for number in (2, 3, 4):
        site.reserve(work(number))  # 1 + 3 = 4
    with refused(RefusalCode.BUDGET_EXHAUSTED):
        site.reserve(work(5))
    site.reopen()
    with refused(RefusalCode.BUDGET_EXHAUSTED):
        site.reserve(work(5))


def test_work_that_took_no_step_costs_nothing(site: Hospital):
    site.reserve(work(1), plan(4.0))
    site.ledger.commit(work(1), [0], "a" * 64)
    assert site.ledger.state().releases("c0") == ()
    site.reserve(work(2), plan(4.0))


def test_the_same_commit_is_written_once_and_another_is_refused(site: Hospital):
    site.reserve(work())
    site.ledger.commit(work(), [3], "a" * 64)
    site.ledger.commit(work(), [3], "a" * 64)
    site.reopen()
    site.ledger.commit(work(), [3], "a" * 64)
    for steps, update in (([2], "a" * 64), ([3], "b" * 64), ([3, 0], "a" * 64)):
        with refused(RefusalCode.ALREADY_COMMITTED, "another update was committed for this work"):
            site.ledger.commit(work(), steps, update)
    assert site.kinds() == ["GENESIS", "RESERVE", "COMMIT"]


@pytest.mark.parametrize("steps", [[5], [-1], [], [1, 1]])
def test_more_steps_than_reserved_are_not_committed(site: Hospital, steps: list[int]):
    site.reserve(work())
    with refused(RefusalCode.STEPS_EXCEED_RESERVATION, f"steps {steps} done, [4] reserved"):
        site.ledger.commit(work(), steps, "a" * 64)
    assert site.kinds() == ["GENESIS", "RESERVE"]


def test_what_was_not_reserved_is_not_committed_and_has_no_receipt(site: Hospital):
    with refused(RefusalCode.NOT_RESERVED, "work must be reserved before it is committed"):
        site.ledger.commit(work(), [4], "a" * 64)
    with refused(RefusalCode.NOT_RESERVED, "only committed work has a receipt"):
        site.ledger.receipt(work())
    site.reserve(work())
    with refused(RefusalCode.NOT_RESERVED):
        site.ledger.receipt(work())


def test_committed_work_that_is_asked_for_again_names_its_update(site: Hospital):
    site.pay(work(), update="b" * 64)
    assert site.reserve(work()).update == "b" * 64


# --- refusals --------------------------------------------------------------------------------------------


def test_a_refusal_is_written_once(site: Hospital):
    site.reserve(work(1), plan(4.0))
    for _ in range(3):
        with refused(RefusalCode.BUDGET_EXHAUSTED):
            site.reserve(work(2))
    site.ledger.refuse(work(2), RefusalCode.POLICY_MODEL)
    site.ledger.refuse(work(2), RefusalCode.POLICY_MODEL)
    site.reopen()
    site.ledger.refuse(work(2), RefusalCode.POLICY_MODEL)
    assert site.kinds() == ["GENESIS", "RESERVE", "REFUSE", "REFUSE"]
    assert site.bodies()[3]["code"] == "model-not-allowed"


def test_refusals_cannot_fill_the_disk(site: Hospital, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ledger, "MAX_REFUSALS", 5)
    for number in range(1, 9):
        with refused(RefusalCode.BUDGET_EXHAUSTED):
            site.reserve(work(number), plan(5.0))
    assert site.kinds() == ["GENESIS"] + ["REFUSE"] * 5
    site.reopen()
    with refused(RefusalCode.BUDGET_EXHAUSTED):
        site.reserve(work(20), plan(5.0))
    assert site.kinds().count("REFUSE") == 5
    site.reserve(work(21))  # another kind: refusals are written again
    with refused(RefusalCode.BUDGET_EXHAUSTED):
        site.reserve(work(22), plan(5.0))
    assert site.kinds()[-2:] == ["RESERVE", "REFUSE"]


def test_refused_work_may_be_asked_for_again_when_it_fits(site: Hospital):
    with refused(RefusalCode.BUDGET_EXHAUSTED):
        site.reserve(work(), plan(5.0))
    assert site.reserve(work(), plan(1.0)).seq == 2


# --- run cap and two studies -----------------------------------------------------------------------------


def test_one_run_may_spend_no_more_than_its_cap(site: Hospital):
    # epsilon 5 buys 5 - 3.375544 + 0.287682 = 1.912 nats at order 4.
    cap = RenyiFilter(epsilon=5.0, delta=1e-5, order=4)
    site.reserve(work(1), run_cap=cap)
    with refused(RefusalCode.RUN_BUDGET_EXHAUSTED):
        site.reserve(work(2), run_cap=cap)
    site.reserve(work(1, "other"), run_cap=cap)
    site.reopen()
    with refused(RefusalCode.RUN_BUDGET_EXHAUSTED):
        site.reserve(work(3), run_cap=cap)
    assert site.bodies()[1]["run_cap"] == {"delta": 1e-5, "epsilon": 5.0, "order": 4}


def test_a_run_that_only_new_patients_take_part_in_has_still_spent_what_it_has(site: Hospital):
    cap = RenyiFilter(epsilon=5.0, delta=1e-5, order=4)
    site.reserve(work(1), run_cap=cap)
    set_patients(site.ledger, ["emil"])
    with refused(RefusalCode.RUN_BUDGET_EXHAUSTED):
        site.reserve(work(2), run_cap=cap)


def test_a_second_study_starts_from_what_the_first_spent(site: Hospital):
    for number in (1, 2, 3):
        site.pay(work(number, "first"))
    site.reopen()
    site.pay(work(1, "second"))
    with refused(RefusalCode.BUDGET_EXHAUSTED) as refusal:
        site.reserve(work(2, "second"))
    # 4 nats certify 4 + ln(3/4) - (ln 1e-5 + ln 4) / 3 = 4 - 0.287682 + 3.375544 = 7.088
    assert "epsilon 7.088 of 8 is spent" in str(refusal.value)
    assert site.ledger.state().releases_of_run("second") == (plan().release(),)
    assert site.ledger.state().releases("c0") == (with_steps(plan().release(), 16),)


# --- several writers -------------------------------------------------------------------------------------


def test_what_another_process_wrote_counts(site: Hospital):
    other = Ledger.open(site.path, key=site.key, salt=SALT)
    other.reserve(work(1), plan(4.0), model=MODEL, policy=POLICY)
    with refused(RefusalCode.BUDGET_EXHAUSTED):
        site.reserve(work(2))
    assert site.reserve(work(1), plan(4.0)).seq == 1
    set_patients(other, [*PATIENTS, "emil"])
    assert site.reserve(work(2), plan(2.0)).cohorts == ("c1",)


def test_threads_share_one_ledger(site: Hospital):
    won: list[int] = []

    def ask(number: int) -> None:
        try:
            won.append(site.reserve(work(number)).seq)
        except RefusedError:
            won.append(0)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(seq > 0 for seq in won) == 4
    assert len(won) == 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("same", [False, True])
def test_two_processes_racing_win_exactly_what_the_cap_pays_for(site: Hospital, same: bool):
    """Two servers ask for six rounds each, their own or the same ones: four are paid for, once each."""
    site.ledger.close()
    go, start = os.pipe()
    children = {}
    for child in (1, 2):
        read, write = os.pipe()
        number = os.fork()
        if number == 0:
            code = 1
            try:
                os.read(go, 1)
                run = "study" if same else f"study-{child}"
                os.write(write, _ask_for_rounds(site, run))
                code = 0
            finally:
                os._exit(code)
        os.close(write)
        children[number] = read
    os.write(start, b"..")
    answers = []
    for number, read in children.items():
        with os.fdopen(read, "rb") as reports:
            answers.append(reports.read())
        _, status = os.waitpid(number, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    os.close(go), os.close(start)
    reserved = list(site.reopen().state().reservations)
    assert len(reserved) == 4
    if same:
        assert answers[0] == answers[1] == b"yyyynn"  # paid for once, told to both
    else:
        assert sum(answer.count(b"y") for answer in answers) == 4


def _ask_for_rounds(site: Hospital, run: str) -> bytes:
    """Reserve rounds 1 to 6 with a ledger of one's own; return y or n for each."""
    mine, answers = Ledger.open(site.path, key=site.key, salt=SALT), b""
    for number in range(1, 7):
        try:
            mine.reserve(work(number, run), plan(), model=MODEL, policy=POLICY)
            answers += b"y"
        except RefusedError:
            answers += b"n"
    return answers
