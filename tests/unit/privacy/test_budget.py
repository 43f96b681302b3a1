"""A run's view of a ledger: the policy is applied, and proofs go to who keeps heads, whatever others hand around."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from privacy.accounting import Release
from privacy.budget import LedgerSpending, lifetime_rule, run_filter
from privacy.errors import RefusalCode
from privacy.filters import FixedPlan, choose_order
from privacy.heads import Head
from privacy.policy import Cap
from privacy.signing import SigningKey, generate_key
from tests.support.ledger_cases import MODEL, PATIENTS, RULE, Hospital, hospital, plan, refused, work
from tests.support.site_ledgers import POLICY


@pytest.fixture
def site(tmp_path: Path) -> Hospital:
    return hospital(tmp_path)


@pytest.fixture
def spending(site: Hospital) -> LedgerSpending:
    return LedgerSpending(site.ledger, POLICY)


def forged_head(dataset: str, size: int, key: SigningKey) -> Head:
    """Return a head of somebody's own making."""
    bare = Head(dataset=dataset, root="e" * 64, size=size, time=0, tip="e" * 64, key=key.public)
    return dataclasses.replace(bare, signature=key.sign("ledger-head", bare.statement()))


def pay(spending: LedgerSpending, number: int) -> None:
    """Reserve and commit one round."""
    spending.reserve(work(number), plan(0.1), model=MODEL)
    spending.commit(work(number), 4, f"{number:064x}")


def test_a_round_is_reserved_committed_and_remembered(site: Hospital, spending: LedgerSpending):
    assert spending.reserve(work(), plan(), model=MODEL) is None
    assert spending.history("study") == (plan().release(),)
    spending.commit(work(), 3, "a" * 64)
    assert spending.reserve(work(), plan(), model=MODEL) == "a" * 64
    assert spending.history("study") == (dataclasses.replace(plan().release(), steps=3),)
    assert spending.history("another") == ()
    reserve, commit = site.bodies()[1:]
    assert reserve["policy"] == POLICY.hash()
    assert reserve["model"] == MODEL
    assert commit["steps"] == [3]


def test_the_policy_caps_a_run_and_says_how_few_patients_are_enough(site: Hospital):
    tight = dataclasses.replace(POLICY, per_run=Cap(epsilon=5.0, delta=1e-5), min_patients=4)
    spending = LedgerSpending(site.ledger, tight)
    spending.reserve(work(1), plan(0.1), model=MODEL)
    cap = site.bodies()[1]["run_cap"]
    assert (cap["epsilon"], cap["delta"]) == (5.0, 1e-5)
    with refused(RefusalCode.RUN_BUDGET_EXHAUSTED):
        spending.reserve(work(2), plan(4.0), model=MODEL)
    crowd = LedgerSpending(site.ledger, dataclasses.replace(POLICY, min_patients=5))
    with refused(RefusalCode.COHORT_TOO_SMALL):
        crowd.reserve(work(3), plan(0.1), model=MODEL)


def test_a_cap_of_the_policy_below_the_ledgers_holds_at_once(site: Hospital, spending: LedgerSpending):
    spending.reserve(work(1), plan(1.0), model=MODEL)
    smaller = dataclasses.replace(POLICY, lifetime=Cap(epsilon=6.0, delta=1e-5))  # pays for 2.912 nats
    LedgerSpending(site.ledger, smaller).reserve(work(2), plan(1.9), model=MODEL)
    with refused(RefusalCode.BUDGET_EXHAUSTED) as caught:
        LedgerSpending(site.ledger, smaller).reserve(work(3), plan(0.1), model=MODEL)
    assert "the policy allows epsilon 6 at delta 1e-05 in a lifetime, less than the ledger" in str(
        caught.value
    )
    assert site.kinds()[-1] == "REFUSE"
    stricter = dataclasses.replace(POLICY, lifetime=Cap(epsilon=8.0, delta=1e-8))  # pays for 2.609 nats
    with refused(RefusalCode.BUDGET_EXHAUSTED):
        LedgerSpending(site.ledger, stricter).reserve(work(4), plan(0.1), model=MODEL)
    spending.reserve(work(5), plan(1.9), model=MODEL)  # by the ledger's own cap there is enough


def test_a_cap_as_large_as_the_ledgers_changes_nothing(site: Hospital):
    for cap in (Cap(epsilon=8.0, delta=1e-5), Cap(epsilon=9.0, delta=1e-4)):
        assert lifetime_rule(dataclasses.replace(POLICY, lifetime=cap), site.ledger.state()) is None
    smaller = dataclasses.replace(POLICY, lifetime=Cap(epsilon=9.0, delta=1e-6))
    assert lifetime_rule(smaller, site.ledger.state()) == dataclasses.replace(RULE, epsilon=9.0, delta=1e-6)


def test_a_schedule_dearer_than_the_policy_allows_does_not_run(tmp_path: Path):
    made = hospital(tmp_path, rule=FixedPlan(schedule=(plan(0.1).release(),), epsilon=8.0, delta=1e-5))
    smaller = dataclasses.replace(POLICY, lifetime=Cap(epsilon=0.5, delta=1e-5))
    with refused(RefusalCode.BUDGET_EXHAUSTED) as caught:
        LedgerSpending(made.ledger, smaller).reserve(work(), plan(0.1), model=MODEL)
    assert "the schedule spends epsilon" in str(caught.value)
    LedgerSpending(made.ledger, POLICY).reserve(work(), plan(0.1), model=MODEL)


def test_the_order_of_a_run_is_best_for_a_run_that_uses_all_that_the_policy_allows():
    policy = dataclasses.replace(
        POLICY,
        per_run=Cap(epsilon=2.0, delta=1e-6),
        min_noise_multiplier=1.2,
        max_sampling_probability=0.05,
    )
    hungriest = Release(sampling_probability=0.05, noise_multiplier=1.2, steps=1)
    found = run_filter(policy)
    assert found.order == choose_order(epsilon=2.0, delta=1e-6, release=hungriest)
    assert (found.epsilon, found.delta) == (2.0, 1e-6)
    most = found.max_steps([], dataclasses.replace(hungriest, steps=100_000))
    for other in (found.order // 2, found.order * 2):
        worse = dataclasses.replace(found, order=other)
        assert worse.max_steps([], dataclasses.replace(hungriest, steps=100_000)) < most


def test_only_patients_of_the_cohorts_that_paid_are_sampled(spending: LedgerSpending):
    spending.reserve(work(), plan(), model=MODEL)
    assert spending.may_sample(work(), [*PATIENTS, "emil"]) == [True] * 4 + [False]


def test_a_refusal_of_the_policy_is_written_down(site: Hospital, spending: LedgerSpending):
    spending.refuse(work(), RefusalCode.POLICY_MODEL)
    assert site.bodies()[1]["code"] == "model-not-allowed"


def test_a_head_that_somebody_kept_holds_an_older_copy_up(site: Hospital, spending: LedgerSpending):
    pay(spending, 1)
    spending.check([site.ledger.head()])
    grown = dataclasses.replace(site.ledger.head(), size=4, signature="")
    newer = dataclasses.replace(grown, signature=site.key.sign("ledger-head", grown.statement()))
    with refused(RefusalCode.ROLLED_BACK):
        spending.check([newer])


def test_heads_of_others_are_kept_and_handed_back(site: Hospital, spending: LedgerSpending, tmp_path: Path):
    other = hospital(tmp_path / "other", dataset="elsewhere").ledger.head()
    assert spending.witness([other, site.ledger.head()]) == (other,)
    assert spending.witness([]) == (other,)


def test_a_receipt_grows_from_the_head_that_the_server_kept(site: Hospital, spending: LedgerSpending):
    pay(spending, 1)
    server = site.ledger.head()
    pay(spending, 2)
    peer = site.ledger.head()  # larger: another site has it from another study
    pay(spending, 3)
    receipt = spending.receipt(work(3), [server, peer])
    assert receipt is not None
    assert receipt.since == server.size
    assert receipt.break_with(server) is None


def test_a_head_that_somebody_made_up_for_this_dataset_does_not_spoil_the_receipt(
    site: Hospital, spending: LedgerSpending
):
    pay(spending, 1)
    server = site.ledger.head()
    pay(spending, 2)
    liar = forged_head(server.dataset, 1000, generate_key())
    for heads in ([server, liar], [liar, server]):
        spending.check(heads)
        receipt = spending.receipt(work(2), heads)
        assert receipt is not None
        assert receipt.break_with(server) is None


def test_a_receipt_for_nobody_who_kept_anything_proves_the_work_alone(spending: LedgerSpending):
    pay(spending, 1)
    receipt = spending.receipt(work(1), [])
    assert receipt is not None
    assert (receipt.since, receipt.consistency) == (0, ())
    found = receipt.fault(run="study", round_=1, base=work(1).base, update=f"{1:064x}", known=None)
    assert found is None
