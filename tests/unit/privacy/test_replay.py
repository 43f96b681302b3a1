"""Each rule of the document (deploy/docs/ledger.md) broken once, by an entry that the right key has signed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from privacy.accounting import Release
from privacy.entries import NO_HASH, Entry
from privacy.errors import TamperedError
from privacy.filters import FixedPlan, RenyiFilter
from privacy.records import Genesis, cap_statement, rotation_statement
from privacy.replay import State, replay
from privacy.signing import SigningKey, generate_key
from tests.support.ledger_cases import RULE, approvals, next_entry, plan, sign, with_steps, work

KEY, NEW_KEY = generate_key(), generate_key()
APPROVERS = sorted((generate_key() for _ in range(3)), key=lambda key: key.public)
GENESIS: dict[str, Any] = {
    "site": "hospital",
    "dataset": "d" * 64,
    "unit": "patient",
    "neighbouring": "add_remove",
    "delta": RULE.delta,
    "cap": RULE.epsilon,
    "rule": {"name": "renyi-filter", "order": RULE.order},
    "key": KEY.public,
    "approvers": [key.public for key in APPROVERS],
    "claims": "dp",
    "cohort": "c0",
    "roster": "0" * 64,
    "libraries": {},
}


def reserving(number: int = 1, nats: float = 1.0, **changes: Any) -> dict[str, Any]:
    """Return the fields of a reservation."""
    fields = {
        **work(number).to_dict(),
        "releases": [plan(nats).release().to_dict()],
        "cohorts": ["c0"],
        "mechanism": {"unit": "patient"},
        "model": "1" * 64,
        "policy": "2" * 64,
        "randomness": "os",
        "run_cap": None,
    }
    return fields | changes


class Chain:
    """Entries as they would lie in a file, each signed by the key in force."""

    def __init__(self, **genesis: Any) -> None:
        self.state, self.key = State(), KEY
        self.rows: list[tuple[bytes, bytes]] = []
        self.add("GENESIS", GENESIS | genesis)

    def add(
        self, kind: str, fields: Mapping[str, Any], *, key: SigningKey | None = None, **common: Any
    ) -> Entry:
        entry = next_entry(self.state, kind, fields, **common)
        signature = sign(self.state, entry, key or self.key)
        self.state.apply(entry, signature)
        self.rows.append((entry.body, bytes.fromhex(signature)))
        return entry

    def refuses(self, problem: str, kind: str, fields: Mapping[str, Any], **more: Any) -> None:
        """Check that the next entry breaks a rule, and that nothing has changed by trying."""
        before = copy.deepcopy(vars(self.state))
        frontier = before.pop("_frontier").root()
        with pytest.raises(TamperedError, match=problem) as error:
            self.add(kind, fields, **more)
        assert error.value.entry == self.state.size
        after = dict(vars(self.state))
        assert after.pop("_frontier").root() == frontier
        caches = ("_by_cohort", "_by_run")
        assert {name: value for name, value in after.items() if name not in caches} == {
            name: value for name, value in before.items() if name not in caches
        }
        for cohort in self.state.cohorts:
            assert self.state.releases(cohort) == State.releases(_without_caches(self.state), cohort)


def _without_caches(state: State) -> State:
    return dataclasses.replace(state, _by_cohort={}, _by_run={})


@pytest.fixture
def chain() -> Chain:
    """GENESIS alone: 4.912 nats at order 4."""
    return Chain()


def test_a_whole_history_is_replayed_to_where_it_stood(chain: Chain):
    chain.add("RESERVE", reserving(1))
    chain.add("COMMIT", {"reserve": 1, "steps": [2], "update": "a" * 64})
    chain.add("ROSTER", {"opens": "c1", "roster": "3" * 64})
    chain.add("RESERVE", reserving(2, cohorts=["c0", "c1"]))
    chain.add("REFUSE", {**work(3).to_dict(), "code": "budget-exhausted"})
    chain.add("CAP_CHANGE", {"from": 8, "to": 7.5, "approvals": []})
    chain.add("ROTATE_KEY", rotation(chain, NEW_KEY))
    chain.key = NEW_KEY
    chain.add("MODEL_RELEASE", {"run": "study", "round": 2, "model": "4" * 64, "audience": "public"})
    chain.add("INCIDENT", {"code": "drill", "reference": ""})
    state = replay(chain.rows)
    assert state == dataclasses.replace(chain.state, _frontier=state._frontier)
    assert state.head() == chain.state.head()
    assert state.head().is_signed()
    assert state.size == 10
    assert (state.cap, state.roster, state.keys) == (7.5, "3" * 64, [KEY.public, NEW_KEY.public])
    assert state.cohorts == {"c0": [1, 4], "c1": [4]}
    assert state.releases("c0") == (with_steps(plan().release(), 6),)
    assert state.releases("c1") == (plan().release(),)
    assert state.releases_of_run("study") == (with_steps(plan().release(), 6),)
    assert state.reservations[work(1)].work == work(1)
    assert state.refused == {(work(3), "budget-exhausted")}
    for seq in range(1, 10):
        older = replay(chain.rows[:seq])
        assert state.contains(older.head())
        assert not older.contains(state.head())


def test_genesis_is_read_as_it_was_written():
    chain = Chain(libraries={"opacus": "1.6"}, claims="seeded")
    assert chain.state.genesis == Genesis(
        site="hospital",
        dataset="d" * 64,
        delta=RULE.delta,
        cap=RULE.epsilon,
        rule=RULE,
        key=KEY.public,
        approvers=tuple(key.public for key in APPROVERS),
        claims="seeded",
        libraries={"opacus": "1.6"},
    )


def test_nothing_is_no_ledger():
    with pytest.raises(TamperedError, match=r"^ledger, entry 0: the ledger has no entry$"):
        replay([])
    with pytest.raises(ValueError, match="the ledger has no entry yet"):
        _ = State().genesis


# --- 1: place, time, signature ----------------------------------------------------------------------------


def test_genesis_is_the_first_entry_and_no_other(chain: Chain):
    chain.refuses("entry 1: GENESIS must be the first entry and no other$", "GENESIS", GENESIS)
    empty = State()
    entry = next_entry(empty, "INCIDENT", {"code": "drill", "reference": ""})
    with pytest.raises(TamperedError, match="GENESIS must be the first"):
        empty.apply(entry, "0" * 128)


@pytest.mark.parametrize("seq", [0, 2, 5])
def test_numbers_have_no_gap(chain: Chain, seq: int):
    chain.refuses("an entry is missing, added or moved", "INCIDENT", {"code": "x", "reference": ""}, seq=seq)


def test_each_entry_names_the_one_before(chain: Chain):
    for prev in (NO_HASH, "f" * 64):
        chain.refuses(
            "does not follow the entry before", "INCIDENT", {"code": "x", "reference": ""}, prev=prev
        )


def test_time_does_not_go_back(chain: Chain):
    chain.add("INCIDENT", {"code": "x", "reference": ""}, time=1000)
    chain.add("INCIDENT", {"code": "x", "reference": ""}, time=1000)
    chain.refuses(
        "entry 3: its time is before that of the entry before$",
        "INCIDENT",
        {"code": "x", "reference": ""},
        time=999,
    )


def test_the_key_in_force_signs(chain: Chain):
    incident = {"code": "x", "reference": ""}
    for key in (generate_key(), APPROVERS[0]):
        chain.refuses("the signature is not that of the site's key", "INCIDENT", incident, key=key)


def test_a_signature_is_of_the_head_and_of_its_own_form(chain: Chain):
    entry = next_entry(chain.state, "INCIDENT", {"code": "x", "reference": ""})
    statement = chain.state.head_of(entry).statement()
    right = KEY.sign("ledger-head", statement)
    for signature in (
        "",
        right[:-2],
        right + "00",
        right.upper().replace("0", "O"),
        KEY.sign("cap-change", statement),
        KEY.sign("ledger-head", {**statement, "time": 0}),
        KEY.sign("ledger-head", {**statement, "size": 1}),
        KEY.sign("ledger-head", {**statement, "root": "f" * 64}),
        KEY.sign_bytes(entry.body).hex(),
    ):
        with pytest.raises(TamperedError, match="ledger, entry 1: "):
            chain.state.apply(entry, signature)
    assert chain.state.size == 1
    for raw in ("text", None, 5, b"", b"\x00", bytes.fromhex(right)[:-1]):
        kind = "" if isinstance(raw, bytes) else "the signature is not bytes$"
        with pytest.raises(TamperedError, match=f"ledger, entry 1: {kind}"):
            replay([*chain.rows, (entry.body, raw)])  # type: ignore[list-item]
    with pytest.raises(TamperedError, match="ledger, entry 1: kind is None"):
        replay([*chain.rows, (b"{}", bytes.fromhex(right))])
    chain.state.apply(entry, right)


def test_whatever_was_changed_before_the_signatures_do_not_fit(chain: Chain):
    for number in (1, 2, 3):
        chain.add("RESERVE", reserving(number))
    body, signature = chain.rows[2]
    rows = [*chain.rows[:2], (body.replace(b'"steps":4', b'"steps":1'), signature), *chain.rows[3:]]
    with pytest.raises(TamperedError, match="ledger, entry 2: the signature"):
        replay(rows)
    for rows in (
        [*chain.rows[:2], *chain.rows[3:]],
        [*chain.rows[:2], chain.rows[3], chain.rows[2]],
        [*chain.rows[:2], chain.rows[1], *chain.rows[2:]],
    ):
        with pytest.raises(TamperedError, match="ledger, entry 2: it is numbered"):
            replay(rows)
    assert replay(chain.rows[:2]).size == 2  # a cut end cannot be seen: only a kept head shows it


# --- 2: once ----------------------------------------------------------------------------------------------


def test_work_is_reserved_once(chain: Chain):
    chain.add("RESERVE", reserving(1, 0.1))
    chain.refuses("entry 2: this work was reserved before$", "RESERVE", reserving(1, 0.1))
    chain.refuses("this work was reserved before", "RESERVE", reserving(1, 0.2))
    chain.add("RESERVE", reserving(1, 0.1, base="f" * 64))
    chain.add("RESERVE", reserving(1, 0.1, run="other"))


def test_a_reservation_is_committed_once_and_for_no_more(chain: Chain):
    chain.add("RESERVE", reserving(1, 0.1))
    commit = {"reserve": 1, "steps": [4], "update": "a" * 64}
    for steps in ([5], [4, 0], [0, 0]):
        chain.refuses("more than entry 1 reserved", "COMMIT", {**commit, "steps": steps})
    for seq in (0, 2, 3):
        chain.refuses(f"commits entry {seq}, which is no reservation", "COMMIT", {**commit, "reserve": seq})
    chain.add("COMMIT", commit)
    chain.refuses("entry 1 was committed before", "COMMIT", commit)
    chain.refuses("commits entry 2, which is no reservation", "COMMIT", {**commit, "reserve": 2})


def test_fewer_steps_count_for_cohorts_and_runs(chain: Chain):
    chain.add("RESERVE", reserving(1, 4.0))
    chain.refuses("budget-exhausted", "RESERVE", reserving(2, 1.0))
    chain.add("COMMIT", {"reserve": 1, "steps": [1], "update": "a" * 64})  # one of four nats
    chain.add("RESERVE", reserving(2, 3.9))
    chain.refuses("budget-exhausted", "RESERVE", reserving(3, 0.1))
    assert chain.state.releases_of_run("study")[0].steps == 1


# --- 3: cohorts, randomness, relation ---------------------------------------------------------------------


def test_cohorts_that_are_charged_exist(chain: Chain):
    chain.refuses("charges c1, which was never opened", "RESERVE", reserving(cohorts=["c0", "c1"]))
    four = ["c1", "c2", "c3", "c4"]
    chain.refuses("charges c1, c2, c3, which was never opened", "RESERVE", reserving(cohorts=four))
    chain.add("ROSTER", {"opens": "c1", "roster": "1" * 64})
    chain.add("RESERVE", reserving(cohorts=["c0", "c1"]))


@pytest.mark.parametrize("opens", ["c0", "c2", "c10"])
def test_cohorts_are_opened_in_order(chain: Chain, opens: str):
    chain.refuses(f"opens cohort {opens}, the next is c1", "ROSTER", {"opens": opens, "roster": "1" * 64})
    chain.add("ROSTER", {"opens": None, "roster": "1" * 64})
    chain.add("ROSTER", {"opens": "c1", "roster": "2" * 64})


def test_seeded_noise_is_for_ledgers_that_claim_nothing(chain: Chain):
    chain.refuses("1: seeded noise in a ledger that claims", "RESERVE", reserving(randomness="seeded"))
    Chain(claims="seeded").add("RESERVE", reserving(randomness="seeded"))


def test_releases_have_the_relation_of_the_ledger(chain: Chain):
    other = dataclasses.replace(plan().release(), neighbouring="replace_one").to_dict()
    chain.refuses("another neighbouring relation", "RESERVE", reserving(releases=[other]))
    both = [plan().release().to_dict(), other]
    chain.refuses("another neighbouring relation", "RESERVE", reserving(releases=both))


# --- 4: the caps ------------------------------------------------------------------------------------------


def test_no_cohort_goes_over_the_cap(chain: Chain):
    chain.refuses("budget-exhausted: cohort c0", "RESERVE", reserving(nats=4.9122))
    chain.add("RESERVE", reserving(1, 4.0))
    chain.add("ROSTER", {"opens": "c1", "roster": "1" * 64})
    chain.refuses("budget-exhausted: cohort c0", "RESERVE", reserving(2, 1.0, cohorts=["c0", "c1"]))
    chain.add("RESERVE", reserving(2, 1.0, cohorts=["c1"]))
    chain.refuses("budget-exhausted: cohort c1", "RESERVE", reserving(3, 4.0, cohorts=["c1"]))


def test_a_refusal_says_what_is_spent_and_what_it_would_become(chain: Chain):
    # At order 4 and delta 1e-5, n nats are an epsilon of n + 3.087862.
    chain.add("RESERVE", reserving(1, 1.0))
    text = r"cohort c0: epsilon {} of {} is spent and this would make it {} \(at delta 1e-05\); nothing was trained$"
    chain.refuses(text.format(r"4\.088", 8, r"9\.088"), "RESERVE", reserving(2, 5.0))
    run_cap = {"delta": 1e-6, "epsilon": 5.5, "order": 4}
    of_run = r"run-budget-exhausted: this run has spent epsilon 4\.855 of the 5\.5 that one run may \(at delta 1e-06\)$"
    chain.refuses(of_run, "RESERVE", reserving(2, 1.0, run_cap=run_cap))  # ln(10) / 3 = 0.767528 more
    chain.add("CAP_CHANGE", change(chain, 0, []))
    chain.refuses(text.format(0, 0, 0), "RESERVE", reserving(2, 1.0))


def test_a_cap_below_one_is_a_cap():
    # 0.9 + (ln 1e-5 + ln 64) / 63 - ln(63/64) = 0.799 nats at order 64.
    chain = Chain(rule={"name": "renyi-filter", "order": 64}, cap=0.9)
    chain.add("RESERVE", reserving(1, releases=[plan(0.7, order=64).release().to_dict()]))
    chain.refuses(
        "budget-exhausted", "RESERVE", reserving(2, releases=[plan(0.2, order=64).release().to_dict()])
    )


def test_all_releases_of_a_reservation_count(chain: Chain):
    twice = [plan(2.0).release().to_dict(), plan(3.0).release().to_dict()]
    chain.refuses("budget-exhausted", "RESERVE", reserving(releases=twice))
    unsampled = Release(sampling_probability=0.01, noise_multiplier=1.0, steps=3, sampler="unamplified")
    chain.refuses("budget-exhausted", "RESERVE", reserving(releases=[unsampled.to_dict()]))  # 3 * 4 / 2 nats


def test_a_cost_beyond_every_number_is_over_every_cap(chain: Chain):
    # 4 / (2 s^2) = 1.7e308 nats for each of two releases: finite, and their sum is not.
    huge = [
        Release(sampling_probability=1.0, noise_multiplier=noise, steps=1).to_dict()
        for noise in (1.0847e-154, 1.0848e-154)
    ]
    chain.refuses("budget-exhausted", "RESERVE", reserving(releases=huge))


def test_no_run_goes_over_its_cap(chain: Chain):
    cap = {"delta": 1e-5, "epsilon": 5.0, "order": 4}  # 1.912 nats
    chain.refuses("run-budget-exhausted", "RESERVE", reserving(1, 2.0, run_cap=cap))
    chain.add("RESERVE", reserving(1, 1.0, run_cap=cap))
    chain.refuses("run-budget-exhausted", "RESERVE", reserving(2, 1.0, run_cap=cap))
    chain.add("RESERVE", reserving(2, 1.0, run_cap=cap, run="other"))
    chain.refuses("epsilon must be", "RESERVE", reserving(3, 0.1, run_cap={**cap, "epsilon": 0}))


def test_a_cap_of_nothing_begins_no_ledger():
    with pytest.raises(TamperedError, match="epsilon must be a finite number > 0"):
        Chain(cap=0)


SCHEDULE = [plan(0.2, steps=2).release().to_dict(), plan(0.1, steps=4).release().to_dict()]
FIXED = {"name": "fixed-plan", "schedule": SCHEDULE}


def fixed(number: int, index: int, **changes: Any) -> dict[str, Any]:
    return reserving(number, releases=[SCHEDULE[index] | changes])


def test_a_schedule_is_followed_in_its_order():
    chain = Chain(rule=FIXED)
    assert isinstance(chain.state.genesis.rule, FixedPlan)
    assert chain.state.genesis.order is None
    chain.refuses("off-plan", "RESERVE", fixed(1, 0, steps=3))
    chain.refuses("off-plan", "RESERVE", fixed(1, 0, noise_multiplier=99.0))
    chain.add("RESERVE", fixed(1, 0))
    chain.refuses("off-plan", "RESERVE", fixed(2, 0))
    chain.add("RESERVE", fixed(2, 1))
    chain.refuses("off-plan", "RESERVE", fixed(3, 1))
    chain.refuses("off-plan: cohort c0: it is not the next part of the schedule$", "RESERVE", fixed(3, 0))


def test_parts_of_a_schedule_may_be_reserved_together():
    chain = Chain(rule=FIXED)
    chain.refuses("off-plan", "RESERVE", reserving(1, releases=[SCHEDULE[0], SCHEDULE[0]]))
    chain.add("RESERVE", reserving(1, releases=SCHEDULE))
    chain.refuses("off-plan", "RESERVE", fixed(2, 1))


def test_a_schedule_costs_no_more_than_the_cap():
    with pytest.raises(TamperedError, match=r"schedule: the schedule spends epsilon .*, the cap is 0\.1"):
        Chain(rule=FIXED, cap=0.1)


def test_a_filter_of_an_order_too_small_for_its_delta_allows_nothing():
    chain = Chain(rule={"name": "renyi-filter", "order": 2}, cap=1)
    assert isinstance(chain.state.genesis.rule, RenyiFilter)
    chain.refuses("budget-exhausted", "RESERVE", reserving(nats=1e-9))


# --- 5: the cap changes -----------------------------------------------------------------------------------


def change(chain: Chain, to: float, keys: list[SigningKey], /, **statement: Any) -> dict[str, Any]:
    """Return the fields of a change of the cap, signed for this place unless told otherwise."""
    signed = cap_statement("d" * 64, chain.state.cap, to, chain.state.tip) | statement
    return {"from": chain.state.cap, "to": to, "approvals": approvals(keys, signed)}


def test_a_change_starts_from_the_cap_in_force(chain: Chain):
    for wrong in (7, 9, 0):
        fields = change(chain, 6.0, APPROVERS[:2]) | {"from": wrong}
        chain.refuses(f"changes a cap of {wrong}, in force is 8", "CAP_CHANGE", fields)
    chain.add("CAP_CHANGE", change(chain, 6.0, []))
    chain.refuses("changes a cap of 8, in force is 6", "CAP_CHANGE", change(chain, 5.0, []) | {"from": 8})


def test_a_lowered_cap_binds(chain: Chain):
    chain.add("RESERVE", reserving(1, 1.0))
    chain.add("CAP_CHANGE", change(chain, 5.0, []))  # 1.912 nats
    chain.refuses("budget-exhausted", "RESERVE", reserving(2, 1.0))
    chain.add("CAP_CHANGE", change(chain, 0, []))
    chain.refuses("budget-exhausted", "RESERVE", reserving(2, 1e-9))


def test_a_raise_needs_two_different_approvers_of_genesis(chain: Chain):
    one, two, three = APPROVERS
    for keys in ([], [one], [one, one], [one, generate_key()], [KEY, one], [KEY, KEY]):
        chain.refuses("raises the cap without two", "CAP_CHANGE", change(chain, 9.0, keys))
    chain.add("CAP_CHANGE", change(chain, 9.0, [three, one]))
    chain.add("RESERVE", reserving(1, 5.9))
    chain.add("CAP_CHANGE", change(chain, 10.0, [one, two, three]))


@pytest.mark.parametrize(
    "statement", [{"dataset": "e" * 64}, {"from": 7}, {"prev": NO_HASH}, {"to": 9.5}, {"extra": 1}]
)
def test_an_approval_is_for_one_change_at_one_place(chain: Chain, statement: dict[str, Any]):
    chain.refuses("without two", "CAP_CHANGE", change(chain, 9.0, APPROVERS[:2], **statement))


def test_an_approval_cannot_be_used_again(chain: Chain):
    signed = change(chain, 9.0, APPROVERS[:2])
    chain.add("CAP_CHANGE", signed)
    chain.add("CAP_CHANGE", change(chain, 8, []))
    chain.refuses("without two", "CAP_CHANGE", signed)


def test_a_ledger_without_approvers_cannot_be_raised():
    chain = Chain(approvers=[])
    chain.refuses("without two", "CAP_CHANGE", change(chain, 9.0, APPROVERS[:2]))


def test_the_cap_of_a_schedule_cannot_be_raised_and_lowering_it_ends_the_ledger():
    chain = Chain(rule=FIXED)
    chain.refuses("without two", "CAP_CHANGE", change(chain, 9.0, APPROVERS[:2]))
    chain.add("RESERVE", fixed(1, 0))
    chain.add("CAP_CHANGE", change(chain, 7.0, []))
    assert chain.state.is_ended
    chain.refuses("off-plan: cohort c0: a cap was lowered", "RESERVE", fixed(2, 1))
    chain.refuses("without two", "CAP_CHANGE", change(chain, 8.0, APPROVERS[:2]))
    chain.add("COMMIT", {"reserve": 1, "steps": [2], "update": "a" * 64})  # what was paid for may still leave


# --- 6: the key changes -----------------------------------------------------------------------------------


def rotation(chain: Chain, key: SigningKey, /, **statement: Any) -> dict[str, Any]:
    signed = rotation_statement("d" * 64, key.public, chain.state.tip) | statement
    return {"key": key.public, "proof": key.sign("rotate-key", signed)}


def test_the_new_key_signs_that_it_takes_over(chain: Chain):
    right = rotation(chain, NEW_KEY)
    by_the_old = KEY.sign("rotate-key", rotation_statement("d" * 64, NEW_KEY.public, chain.state.tip))
    for fields in (
        right | {"proof": by_the_old},
        right | {"key": generate_key().public},
        rotation(chain, NEW_KEY, prev=NO_HASH),
        rotation(chain, NEW_KEY, dataset="e" * 64),
        rotation(chain, NEW_KEY, key=KEY.public),
        right
        | {
            "proof": NEW_KEY.sign(
                "ledger-head", rotation_statement("d" * 64, NEW_KEY.public, chain.state.tip)
            )
        },
    ):
        chain.refuses("the new key has not signed", "ROTATE_KEY", fields)
    chain.refuses("the signature is not that of the site's key", "ROTATE_KEY", right, key=NEW_KEY)
    chain.add("ROTATE_KEY", right)


def test_after_a_rotation_the_old_key_signs_nothing(chain: Chain):
    chain.add("ROTATE_KEY", rotation(chain, NEW_KEY))
    incident = {"code": "x", "reference": ""}
    chain.refuses("the signature is not that of the site's key", "INCIDENT", incident, key=KEY)
    chain.key = NEW_KEY
    chain.add("INCIDENT", incident)
    assert chain.state.head().key == NEW_KEY.public


# --- what people write ------------------------------------------------------------------------------------


def test_refusals_are_counted_until_something_else_is_written(chain: Chain):
    for number in (1, 2, 3):
        chain.add("REFUSE", {**work(number).to_dict(), "code": "off-plan"})
    assert chain.state.refusals_in_a_row == 3
    chain.add("INCIDENT", {"code": "x", "reference": ""})
    assert chain.state.refusals_in_a_row == 0
    assert len(chain.state.refused) == 3
