"""A hospital's ledger against a hostile server: whatever is asked in whatever order, the cap holds and nothing is lost.

Rounds are extra, repeated, renumbered and forked; plans arrive as whatever JSON can hold. A model beside the ledger
keeps who was charged for what, and computes the divergence with the standard library alone (`ledger_cases.nats`).
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from privacy.accounting import Release
from privacy.administration import cap_request, change_cap, note_incident, set_patients, spent_on
from privacy.errors import PlanError, RefusalCode, RefusedError, SigningError, TamperedError
from privacy.filters import RenyiFilter
from privacy.heads import Head
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan, plan_from_dict
from privacy.records import Work
from privacy.replay import State
from privacy.signing import SigningKey, generate_key
from privacy.witness import check_witnesses
from tests.support.ledger_cases import MODEL, POLICY, SALT, Hospital, approvals, budget, hospital, nats, plan

NAMES = ("anna", "bob", "cleo", "dora", "emil", "fay")
DELTA, ORDER = 1e-5, 8
SLACK = 1e-6  # relative, and far above what rounding adds up to

nonsense = st.one_of(
    st.sampled_from(
        [0, -1, 0.0, -0.0, -2.5, math.nan, math.inf, -math.inf, 1e308, 1e-308, 5e-324, 1e20, 2**53, 10**400]
    ),
    st.sampled_from(["1.0", "", "sigma", None, True, [], [1.0], {}, {"a": 1}, "\ud800"]),
    st.floats(),
    st.integers(),
)
few_patients = st.one_of(st.sets(st.sampled_from(NAMES), min_size=3), st.sets(st.sampled_from(NAMES)))
works = st.builds(
    dict,
    run=st.sampled_from(["study", "other"]),
    round=st.integers(0, 5),
    base=st.sampled_from(["0" * 64, "f" * 64]),
)
run_caps = st.sampled_from([None, None, 3.0])
sane_plans = st.builds(
    lambda q, noise, steps: plan(sampling_probability=q, noise_multiplier=noise, steps=steps).to_dict(),
    st.sampled_from([0.05, 0.5, 1.0]),
    st.sampled_from([1.5, 3.0, 6.0, 20.0]),
    st.integers(0, 12),
)


@st.composite
def hostile_plans(draw: st.DrawFn) -> dict[str, object]:
    """Return a plan as JSON might hold it: a good one, with anything in some of its fields."""
    fields = draw(sane_plans)
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=2, unique=True)):
        fields[name] = draw(nonsense)
    if draw(st.integers(0, 9)) == 0:
        fields.pop(draw(st.sampled_from(sorted(fields))))
    if draw(st.integers(0, 9)) == 0:
        fields["epsilon"] = 0.1
    return fields


@dataclasses.dataclass
class Paid:
    """What the model knows of a reservation."""

    release: Release
    cohorts: tuple[str, ...]
    seq: int
    done: int | None = None
    update: str | None = None

    @property
    def cost(self) -> Release:
        return self.release if self.done is None else dataclasses.replace(self.release, steps=self.done)


class HostileServer(RuleBasedStateMachine):
    """A ledger, and beside it what it ought to hold."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-machine-"))
        self.paid: dict[Work, Paid] = {}
        self.rows: list[tuple[bytes, bytes]] = []  # acknowledged: must never change
        self.mirror = State()
        self.cohort_of: dict[str, str] = {}
        self.present: set[str] = set()
        self.cohorts = ["c0"]
        self.cap_when_charged: dict[str, float] = {}
        self.copies: list[tuple[Path, int, str]] = []

    @initialize(epsilon=st.sampled_from([2.0, 4.0, 8.0]), patients=few_patients)
    def begin(self, epsilon: float, patients: set[str]) -> None:
        cap = RenyiFilter(epsilon=epsilon, delta=DELTA, order=ORDER)
        self.at: Hospital = hospital(self.folder, rule=cap, patients=patients)
        self.key: SigningKey = self.at.key
        self.cap = epsilon
        self.present = set(patients)
        self.cohort_of = dict.fromkeys(patients, "c0")

    def teardown(self) -> None:
        if hasattr(self, "at"):
            self.at.ledger.close()
            Ledger.open(self.at.path).close()  # every signature, hash and rule once more
        shutil.rmtree(self.folder)

    # --- what the server does ---------------------------------------------------------------------------------

    @rule(rounds=st.lists(st.tuples(works, sane_plans, st.integers(1, 3), run_caps), min_size=1, max_size=6))
    def ask_for_rounds(
        self, rounds: list[tuple[dict[str, Any], dict[str, object], int, float | None]]
    ) -> None:
        """Rounds in any order and number: extra, repeated, renumbered or forked."""
        for each in rounds:
            self._ask(*each)

    @rule(
        rounds=st.lists(
            st.tuples(works, hostile_plans(), st.integers(1, 3), run_caps), min_size=1, max_size=6
        )
    )
    def ask_for_anything(
        self, rounds: list[tuple[dict[str, Any], dict[str, object], int, float | None]]
    ) -> None:
        """The same with plans that may hold anything."""
        for each in rounds:
            self._ask(*each)

    def _ask(
        self, asked: dict[str, Any], fields: dict[str, object], least: int, run_epsilon: float | None
    ) -> None:
        """Ask for one round as a site does, and judge the answer."""
        size = self.at.ledger.state().size
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a plan without privacy warns
                parsed = plan_from_dict(fields)
        except PlanError:
            return
        if not isinstance(parsed, PrivacyPlan):
            return  # such work is never paid for: there is nothing that it could cost
        work, run_cap = Work(**asked), None
        if run_epsilon is not None:
            run_cap = RenyiFilter(epsilon=run_epsilon, delta=DELTA, order=ORDER)
        before = self.paid.get(work)
        try:
            got = self.at.ledger.reserve(
                work, parsed, model=MODEL, policy=POLICY, min_patients=least, run_cap=run_cap
            )
        except PlanError:
            assert self.at.ledger.state().size == size
            return
        except RefusedError as refusal:
            self._judge_refusal(refusal.code, work, parsed, run_cap, least)
            return
        if before is not None:
            assert (got.seq, got.releases) == (before.seq, (before.release,))
            assert self.at.ledger.state().size == size  # the same work is paid for once
            return
        assert got.seq == size
        assert parsed.unit == "patient"
        assert parsed.randomness == "os"
        assert parsed.neighbouring == "add_remove"
        assert len([name for name in self.present if self.cohort_of[name] in got.cohorts]) >= least
        self.paid[work] = Paid(parsed.release(), got.cohorts, got.seq)
        for cohort in got.cohorts:
            self.cap_when_charged[cohort] = self.cap
        if run_cap is not None:
            spent = math.fsum(nats(each.cost, ORDER) for w, each in self.paid.items() if w.run == work.run)
            assert spent <= budget(run_cap.epsilon, DELTA, ORDER)

    @precondition(lambda self: self.paid)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        """The same round with the same plan: nothing is written, whatever was spent since."""
        work = data.draw(st.sampled_from(sorted(self.paid, key=str)))
        before, size = self.paid[work], self.at.ledger.state().size
        release = before.release
        same = plan(
            sampling_probability=release.sampling_probability,
            noise_multiplier=release.noise_multiplier,
            steps=release.steps,
        )
        reserved = self.at.ledger.state().reservations[work].fields["mechanism"]
        if (
            reserved["max_grad_norm"] == 1.0
            and reserved["divisor"] == 10.0
            and reserved["plan_delta"] == 1e-5
        ):
            try:
                assert self.at.ledger.reserve(work, same, model=MODEL, policy=POLICY).seq == before.seq
            except RefusedError as refusal:
                assert refusal.code is RefusalCode.KEY_REUSED  # noqa: PT017 - another constant was other
            assert self.at.ledger.state().size <= size + 1
        with pytest.raises(RefusedError, match="key-reused"):
            self.at.ledger.reserve(
                work, dataclasses.replace(same, randomness="seeded"), model=MODEL, policy=POLICY
            )

    @rule(run=nonsense, round_=nonsense, base=nonsense)
    def ask_for_nonsense(self, run: Any, round_: Any, base: Any) -> None:
        """Names of rounds that are none: refused before the ledger is asked."""
        with pytest.raises(PlanError):
            Work(run=run, round=round_, base=base)

    @rule(
        asked=works, steps=st.lists(st.integers(-1, 31), min_size=1, max_size=2), update=st.sampled_from("ab")
    )
    def commit(self, asked: dict[str, Any], steps: list[int], update: str) -> None:
        work, update = Work(**asked), update * 64
        before = self.paid.get(work)
        if before is None:
            with pytest.raises(RefusedError, match="not-reserved"):
                self.at.ledger.commit(work, steps, update)
        elif before.done is not None:
            if ([before.done], before.update) == (steps, update):
                self.at.ledger.commit(work, steps, update)
            else:
                with pytest.raises(RefusedError, match="already-committed"):
                    self.at.ledger.commit(work, steps, update)
        elif len(steps) != 1 or not 0 <= steps[0] <= before.release.steps:
            with pytest.raises(RefusedError, match="steps-exceed-reservation"):
                self.at.ledger.commit(work, steps, update)
        else:
            self.at.ledger.commit(work, steps, update)
            before.done, before.update = steps[0], update
            receipt = self.at.ledger.receipt(work)
            assert (
                receipt.fault(run=work.run, round_=work.round, base=work.base, update=update, known=None)
                is None
            )

    # --- what the hospital does -------------------------------------------------------------------------------

    @rule(patients=few_patients)
    def change_patients(self, patients: set[str]) -> None:
        changed = set_patients(self.at.ledger, patients)
        assert changed == (patients != self.present)
        if new := patients - set(self.cohort_of):
            name = f"c{len(self.cohorts)}"
            self.cohorts.append(name)
            self.cohort_of |= dict.fromkeys(new, name)
            assert all(spent_on(self.at.ledger, patient) == () for patient in new)  # has spent nothing
        self.present = set(patients)

    @rule(factor=st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    def lower_cap(self, factor: float) -> None:
        change_cap(self.at.ledger, self.cap * factor)
        self.cap *= factor

    @rule(who=st.lists(st.integers(0, 3), max_size=3), replay=st.booleans())
    def raise_cap(self, who: list[int], replay: bool) -> None:
        keys = [*self.at.approvers, generate_key()]
        new = self.cap + 1
        signed = approvals([keys[index] for index in who], cap_request(self.at.ledger, new))
        if replay:
            note_incident(self.at.ledger, "drill")  # one entry later they are worth nothing
        if len({index for index in who if index < 3}) >= 2 and not replay:
            change_cap(self.at.ledger, new, signed)
            self.cap = new
        else:
            with pytest.raises(TamperedError, match="without two of the approvers"):
                change_cap(self.at.ledger, new, signed)

    @rule()
    def reopen(self) -> None:
        self.at.reopen(self.key)

    @rule()
    def rotate_key(self) -> None:
        self.key = generate_key()
        self.at.ledger.rotate_key(self.key)

    @rule(asked=works, code=st.sampled_from([RefusalCode.POLICY_MODEL, RefusalCode.POLICY_SITES]))
    def refuse(self, asked: dict[str, Any], code: RefusalCode) -> None:
        self.at.ledger.refuse(Work(**asked), code)

    @rule()
    def another_process_writes(self) -> None:
        other = Ledger.open(self.at.path, key=self.key, salt=SALT)
        note_incident(other, "elsewhere")
        other.close()

    @precondition(lambda self: self.rows)
    @rule()
    def back_up(self) -> None:
        path = self.folder / f"copy-{len(self.copies)}"
        shutil.copyfile(self.at.path, path)
        self.copies.append((path, self.at.ledger.state().size, self.key.public))

    @precondition(lambda self: self.copies)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        """An older copy is put back: whoever kept a head finds out. Then the newest one is restored."""
        path, size, key = data.draw(st.sampled_from(self.copies))
        head: Head = self.at.ledger.head()
        newest = self.folder / "newest"
        shutil.copyfile(self.at.path, newest)
        shutil.copyfile(path, self.at.path)
        if size < head.size:
            with pytest.raises(TamperedError):
                self.at.ledger.state()
        if key != self.key.public:  # from before the key changed: it does not know whose the new head is
            with pytest.raises(SigningError, match="not the one in force"):
                Ledger.open(self.at.path, key=self.key)
        elif size < head.size:
            with pytest.raises(RefusedError, match="ledger-rolled-back"):
                check_witnesses(Ledger.open(self.at.path, key=self.key).state(), [head])
        else:
            check_witnesses(Ledger.open(self.at.path, key=self.key).state(), [head])
        self.at.ledger.close()
        shutil.copyfile(newest, self.at.path)
        self.at.reopen(self.key)

    # --- what has to hold -------------------------------------------------------------------------------------

    def _judge_refusal(
        self, code: RefusalCode, work: Work, parsed: PrivacyPlan, run_cap: RenyiFilter | None, least: int
    ) -> None:
        """A refusal has to have its reason: an honest server is not turned away."""
        release = parsed.release()
        allowed = [cohort for cohort in self._inhabited() if self._fits(cohort, release)]
        if code is RefusalCode.KEY_REUSED:
            assert work in self.paid
        elif code is RefusalCode.SEEDED:
            assert parsed.randomness == "seeded"
        elif code is RefusalCode.UNIT:
            assert parsed.unit == "record"
        elif code is RefusalCode.BUDGET_EXHAUSTED:
            assert not allowed
        elif code is RefusalCode.RUN_BUDGET_EXHAUSTED:
            assert run_cap is not None
            spent = sum(nats(each.cost, ORDER) for w, each in self.paid.items() if w.run == work.run)
            assert spent + nats(release, ORDER) > budget(run_cap.epsilon, DELTA, ORDER) * (1 - SLACK)
        else:
            assert code is RefusalCode.COHORT_TOO_SMALL
            taking_part = [name for name in self.present if self.cohort_of[name] in allowed]
            assert len(taking_part) < least

    def _inhabited(self) -> set[str]:
        return {self.cohort_of[name] for name in self.present}

    def _spent(self, cohort: str) -> float:
        return math.fsum(nats(each.cost, ORDER) for each in self.paid.values() if cohort in each.cohorts)

    def _fits(self, cohort: str, release: Release) -> bool:
        """Return whether a cohort can clearly afford a release whose cost both implementations can compute."""
        cost = nats(release, ORDER)
        return self._spent(cohort) + cost <= budget(self.cap, DELTA, ORDER) * (1 - SLACK) and (
            release.noise_multiplier < 1e6  # beyond, Opacus 1.6 may overflow, which counts as infinite
            and release.sampling_probability > 1e-6
        )

    @invariant()
    def what_was_acknowledged_is_there_and_the_chain_is_verified(self) -> None:
        if not hasattr(self, "at"):
            return
        rows = self.at.ledger.entries()
        assert rows[: len(self.rows)] == self.rows
        for body, signature in rows[len(self.rows) :]:
            self.mirror.read(body, signature)  # hash, signature and rules of each new entry
        self.rows = rows
        state = self.at.ledger.state()
        assert (self.mirror.tip, self.mirror.cap, self.mirror.roster) == (state.tip, self.cap, state.roster)
        assert set(state.reservations) == set(self.paid)
        for work, each in self.paid.items():
            there = state.reservations[work]
            assert (there.seq, there.releases, there.cohorts) == (each.seq, (each.release,), each.cohorts)
            assert (there.steps, there.update) == (None if each.done is None else (each.done,), each.update)

    @invariant()
    def no_cohort_has_spent_more_than_its_cap(self) -> None:
        for cohort, cap in self.cap_when_charged.items():
            assert self._spent(cohort) <= budget(cap, DELTA, ORDER)

    @invariant()
    def patients_are_charged_with_their_cohort_and_only_those_who_take_part_are_sampled(self) -> None:
        if not hasattr(self, "at"):
            return
        for name in sorted(self.present):
            charged = [each for each in self.paid.values() if self.cohort_of[name] in each.cohorts]
            spent = spent_on(self.at.ledger, name)
            assert [each.cost for each in sorted(charged, key=lambda one: one.seq)] == list(spent)
        if self.paid:
            last = max(self.paid.values(), key=lambda one: one.seq)
            may = self.at.ledger.may_sample(NAMES, last.cohorts)
            assert may == [name in self.present and self.cohort_of[name] in last.cohorts for name in NAMES]


TestHostileServer = HostileServer.TestCase
TestHostileServer.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=list(settings.default.suppress_health_check),
)
TestHostileServer.pytestmark = [pytest.mark.slow]
