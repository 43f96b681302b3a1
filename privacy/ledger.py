"""The hospital's privacy ledger: reserve before any data are opened, commit before an update leaves, refuse by name.

One SQLite file for each dataset, so that all studies on the same patients add up. Every total is recomputed from the
entries (`privacy.replay`) when the file is opened, after every signature and hash has been checked; nothing is
believed because it is stored.

Guarantees:
    What is reserved never exceeds the cap, in any state of the disk (tests/integration/test_ledger_faults.py),
    whatever is asked, in whatever order, by however many processes (tests/property/test_ledger_machine.py). An
    acknowledged entry is on disk. A crash between reserve and commit leaves the whole cost spent. The same work
    is paid for once; other parameters for the same work are refused. A ledger that is older than a head which
    somebody kept signs nothing (`privacy.witness`).

How costs add up is fixed in GENESIS (`privacy.filters` says why each rule is sound): a Rényi filter at one
order, valid when every study is chosen after seeing the results of the one before; or a schedule, all of whose
parameters are fixed in advance, by privacy loss distribution.

What it does not do: keep a hostile server from wasting the budget within the caps, or survive an administrator who
replaces ledger, key and every kept head at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from privacy import roster, store
from privacy.accounting import Release
from privacy.entries import Entry, encode, is_exact
from privacy.errors import LedgerError, PlanError, RefusalCode, RefusedError, SigningError, TamperedError
from privacy.filters import FixedPlan, RenyiFilter
from privacy.heads import Head, Proven, Receipt
from privacy.merkle import consistency_proof, inclusion_proof
from privacy.plan import PrivacyPlan, mechanism_name
from privacy.records import Reservation, Work, rotation_statement
from privacy.replay import State, replay
from privacy.signing import SigningKey

MAX_REFUSALS = 1000
"""REFUSE entries in a row; more are refused all the same, but a hostile server cannot fill the disk with them."""


class Ledger:
    """One dataset's ledger, open for reading, or for writing with the site's key.

    `privacy.genesis.begin` makes one, `Ledger.open` opens it ever after. One object may be shared by threads,
    one file by processes.
    """

    def __init__(self, file: store.Store, key: SigningKey | None, salt: bytes | None) -> None:
        """Take over an open store; see `open`."""
        self._store, self._key, self._salt = file, key, salt
        self._state = State()
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: Path, *, key: SigningKey | None = None, salt: bytes | None = None) -> Ledger:
        """Open a ledger, checking every entry, hash, signature and rule.

        Args:
            path: The file.
            key: The site's key; None to read only.
            salt: The site's salt, needed to tell who may be sampled.

        Raises:
            LedgerError: there is no such file, or it cannot be read.
            TamperedError: it is not what was written.
            SigningError: the key is not the one in force.
        """
        if not path.is_file():
            raise LedgerError(f"{path}: there is no ledger; `python -m deploy ledger init` begins one")
        opened = cls(store.Store(path, writable=key is not None), key, salt)
        with opened._store.reading() as connection:
            state = replay(store.rows(connection))
            if roster.roster_hash(roster.read(connection)) != state.roster:
                raise TamperedError(
                    state.size - 1, "the table of patients is not the one that the ledger holds"
                )
        if key is not None and key.public != state.key:
            raise SigningError(
                f"{path}: the key {key.public[:16]}... is not the one in force, {state.key[:16]}..."
            )
        opened._state = state
        if state.genesis.claims == "seeded" and key is not None:
            opened._store.close()
            opened._store = store.Store(path, writable=True, durable=False)
        return opened

    def state(self) -> State:
        """Return where the ledger stands now; not to be changed."""
        with self.reading():
            return self._state

    def head(self) -> Head:
        """Return the signed head."""
        with self.reading():
            return self._state.head()

    def reserve(
        self,
        work: Work,
        plan: PrivacyPlan,
        *,
        model: str,
        policy: str,
        run_cap: RenyiFilter | None = None,
        lifetime: RenyiFilter | FixedPlan | None = None,
        min_patients: int = 1,
        others: Sequence[Release] = (),
    ) -> Reservation:
        """Write the full cost of some work; returns when it is on disk, before any data are opened.

        Patients whose cohort cannot afford it are left out of this work; if none is left, or too few, it is refused.

        Args:
            work: What for; asked again it costs nothing.
            plan: What will run.
            model: Hash of the model's specification.
            policy: Hash of the policy in force.
            run_cap: What one run may spend.
            lifetime: The ledger's rule with a smaller cap, if the policy has one.
            min_patients: Fewest patients to train on; only compared here, never written.
            others: Releases beside the plan's own, such as metrics.

        Raises:
            PlanError: no entry could hold this plan; nothing may run, nothing is written.
            RefusedError: nothing may run; the refusal is in the ledger.
            LedgerError: the ledger cannot be written: nothing may run.
        """
        releases = (plan.release(), *others)
        _require_recordable(plan, releases)
        with self.writing() as transaction:
            known = self._state.reservations.get(work)
            if known is not None and _is_same(known, plan, releases, model):
                return known
            refused: RefusedError | None = None
            try:
                self._require_new(known, plan)
                cohorts = self._charged(
                    transaction.connection,
                    releases,
                    run=work.run,
                    run_cap=run_cap,
                    lifetime=lifetime,
                    min_patients=min_patients,
                )
            except RefusedError as refusal:
                refused = refusal
                self._note_refusal(transaction, work, refusal.code)
            else:
                fields = {
                    **work.to_dict(),
                    "releases": [release.to_dict() for release in releases],
                    "cohorts": cohorts,
                    "mechanism": _mechanism(plan),
                    "model": model,
                    "policy": policy,
                    "randomness": plan.randomness,
                    "run_cap": None if run_cap is None else dataclasses.asdict(run_cap),
                }
                transaction.append("RESERVE", fields)
        if refused is not None:
            raise refused
        return self._state.reservations[work]

    def commit(self, work: Work, steps: Sequence[int], update: str) -> None:
        """Write what was done; returns when it is on disk, before the update leaves.

        Args:
            work: As reserved.
            steps: Steps of each of its releases.
            update: SHA-256 of what will leave.

        Raises:
            RefusedError: it was not reserved, other steps or another update was committed, or more than reserved.
            LedgerError: the ledger cannot be written: the update must not leave.
        """
        with self.writing() as transaction:
            paid = self._state.reservations.get(work)
            if paid is None:
                raise RefusedError(RefusalCode.NOT_RESERVED, "work must be reserved before it is committed")
            if paid.steps is not None:
                if (paid.steps, paid.update) != (tuple(steps), update):
                    raise RefusedError(
                        RefusalCode.ALREADY_COMMITTED, "another update was committed for this work"
                    )
                return
            reserved = [release.steps for release in paid.releases]
            if len(steps) != len(reserved) or not all(
                0 <= done <= most for done, most in zip(steps, reserved, strict=True)
            ):
                raise RefusedError(
                    RefusalCode.STEPS_EXCEED_RESERVATION, f"steps {list(steps)} done, {reserved} reserved"
                )
            transaction.append("COMMIT", {"reserve": paid.seq, "steps": list(steps), "update": update})

    def refuse(self, work: Work, code: RefusalCode) -> None:
        """Write down a refusal that was decided elsewhere, by the policy say; the same one is written once."""
        with self.writing() as transaction:
            self._note_refusal(transaction, work, code)

    def receipt(self, work: Work, known: Head | None = None) -> Receipt:
        """Return the proof that committed work was paid for.

        Args:
            work: Committed work.
            known: A head of this ledger that the receiver has kept.

        Raises:
            RefusedError: the work is not committed.
        """
        with self.reading() as connection:
            paid = self._state.reservations.get(work)
            if paid is None or paid.committed is None:
                raise RefusedError(RefusalCode.NOT_RESERVED, "only committed work has a receipt")
            since = known.size if known is not None and self._state.contains(known) else 0
            proof = consistency_proof(self._state.leaves, since) if since else ()
            return Receipt(
                head=self._state.head(),
                reserve=self._proven(connection, paid.seq),
                commit=self._proven(connection, paid.committed),
                since=since,
                consistency=tuple(part.hex() for part in proof),
            )

    def prove(self, seq: int) -> Proven:
        """Return entry `seq` with the proof that it is in the ledger of the present head.

        Raises:
            LedgerError: there is no such entry.
        """
        with self.reading() as connection:
            if not 0 <= seq < self._state.size:
                raise LedgerError(f"there is no entry {seq}; entries are 0 to {self._state.size - 1}")
            return self._proven(connection, seq)

    def keep(self, heads: Iterable[Head]) -> None:
        """Keep signed heads of other sites' ledgers, the largest of each, so that this site is their witness."""
        own = self.state().genesis.dataset
        others = [head for head in heads if head.dataset != own and head.is_signed()]
        if others:
            with self._lock, self._store.transaction() as connection:
                store.keep_heads(connection, others)

    def witnessed(self) -> tuple[Head, ...]:
        """Return the heads of other ledgers that were kept."""
        with self.reading() as connection:
            return store.kept_heads(connection)

    def may_sample(self, patients: Sequence[str], cohorts: Sequence[str]) -> list[bool]:
        """Return for each patient whether work that charges `cohorts` may use their records.

        Raises:
            SigningError: the ledger was opened without its salt.
        """
        with self.reading() as connection:
            allowed = roster.taking_part(roster.read(connection), cohorts)
        return [self.pseudonym(patient) in allowed for patient in patients]

    def pseudonym(self, patient: str) -> bytes:
        """Return how a patient is called in the table of patients.

        Raises:
            SigningError: the ledger was opened without its salt.
        """
        if self._salt is None:
            raise SigningError("the ledger was opened without the site's salt: patients cannot be told apart")
        return roster.pseudonym(self._salt, patient)

    def rotate_key(self, key: SigningKey) -> None:
        """Let another key take over; from the next entry on it signs."""
        with self.writing() as transaction:
            statement = rotation_statement(self._state.genesis.dataset, key.public, self._state.tip)
            transaction.append("ROTATE_KEY", {"key": key.public, "proof": key.sign("rotate-key", statement)})
        self._key = key

    def entries(self) -> list[tuple[bytes, bytes]]:
        """Return body and signature of every entry, as `export` writes them and verifiers read them."""
        with self.reading() as connection:
            return list(store.rows(connection))

    def close(self) -> None:
        """Let go of the file."""
        self._store.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read at one moment, with the state of that moment."""
        with self._lock, self._store.reading() as connection:
            self._sync(connection)
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Transaction]:
        """Write entries in one transaction; the state follows once they are on disk."""
        if self._key is None:
            raise SigningError("the ledger was opened for reading; writing needs the site's key")
        with self._lock:
            with self._store.transaction() as connection:
                self._sync(connection)
                transaction = Transaction(connection, self._state, self._key)
                yield transaction
            if transaction.written is not None:
                self._state.apply(*transaction.written)

    def _sync(self, connection: sqlite3.Connection) -> None:
        """Follow what has been written since: by other processes, or by this one in a write that seemed to fail.

        Raises:
            TamperedError: what was here before is not here any more.
        """
        newest = store.last(connection)
        if newest is None or newest[0] + 1 < self._state.size:
            raise TamperedError(
                self._state.size - 1, "entries that were here are gone: the file was replaced by an older one"
            )
        for body, signature in store.rows(connection, self._state.size):
            self._state.read(body, signature)
        if hashlib.sha256(store.body(connection, self._state.size - 1)).hexdigest() != self._state.tip:
            raise TamperedError(self._state.size - 1, "it is not the entry that was here before")

    def _require_new(self, known: Reservation | None, plan: PrivacyPlan) -> None:
        """Refuse work that was reserved for other parameters, and seeded noise where privacy is claimed."""
        if known is not None:
            raise RefusedError(RefusalCode.KEY_REUSED, "this work was reserved for other parameters")
        if plan.randomness == "seeded" and self._state.genesis.claims == "dp":
            raise RefusedError(RefusalCode.SEEDED, "seeded noise is for simulations alone")
        if plan.unit != "patient":
            raise RefusedError(
                RefusalCode.UNIT,
                "a plan that protects single records says nothing of a patient, who has several",
            )

    def _charged(
        self,
        connection: sqlite3.Connection,
        releases: tuple[Release, ...],
        *,
        run: str,
        run_cap: RenyiFilter | None,
        lifetime: RenyiFilter | FixedPlan | None,
        min_patients: int,
    ) -> list[str]:
        """Return the cohorts that can afford some releases and have patients.

        Raises:
            RefusedError: there is none, or too few patients are left.
        """
        cap = None if run_cap is None else dataclasses.asdict(run_cap)
        places = roster.read(connection)
        inhabited = {place.cohort for place in places.values() if not place.withdrawn}
        refusals = {
            cohort: self._state.refusal(cohort, releases, run, cap)
            or self._beyond(lifetime, cohort, releases)
            for cohort in self._state.cohorts
            if cohort in inhabited
        }
        found = [cohort for cohort, refusal in refusals.items() if refusal is None]
        if refusals and not found:
            raise next(refusal for refusal in refusals.values() if refusal is not None)
        if len(roster.taking_part(places, found)) < min_patients:
            raise RefusedError(
                RefusalCode.COHORT_TOO_SMALL,
                f"fewer than {min_patients} patients can take part, which the policy's min_patients asks for",
            )
        return found

    def _beyond(
        self, lifetime: RenyiFilter | FixedPlan | None, cohort: str, releases: tuple[Release, ...]
    ) -> RefusedError | None:
        """Return why a cap of the policy, smaller than the ledger's own, holds a cohort back; None if it does not."""
        if lifetime is None:
            return None
        history = (*self._state.releases(cohort), *releases)
        if isinstance(lifetime, FixedPlan):
            why = "; ".join(lifetime.problems())
        else:
            why = "" if lifetime.allows(history) else f"it would be {lifetime.epsilon_spent(history):.4g}"
        if not why:
            return None
        return RefusedError(
            RefusalCode.BUDGET_EXHAUSTED,
            f"cohort {cohort}: the policy allows epsilon {lifetime.epsilon:g} at delta {lifetime.delta:g} in a "
            f"lifetime, less than the ledger: {why}; nothing was trained",
        )

    def _note_refusal(self, transaction: Transaction, work: Work, code: RefusalCode) -> None:
        """Write a refusal, unless it stands there already or too many do."""
        state = self._state
        if (work, code.value) not in state.refused and state.refusals_in_a_row < MAX_REFUSALS:
            transaction.append("REFUSE", {**work.to_dict(), "code": code.value})

    def _proven(self, connection: sqlite3.Connection, seq: int) -> Proven:
        """Return an entry with its inclusion proof."""
        proof = inclusion_proof(self._state.leaves, seq)
        return Proven(body=store.body(connection, seq).decode(), proof=tuple(part.hex() for part in proof))


class Transaction:
    """A transaction under way: at most one entry.

    Attributes:
        connection: For the tables beside the entries.
        state: Before the transaction; not to be changed.
        written: What was appended.
    """

    def __init__(self, connection: sqlite3.Connection, state: State, key: SigningKey) -> None:
        self.connection, self.state, self._key = connection, state, key
        self.written: tuple[Entry, str] | None = None

    def append(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write the next entry, after checking it by the rules by which it will be read."""
        entry = encode(
            seq=self.state.size,
            prev=self.state.tip,
            time=max(self.state.time, int(time.time())),
            kind=kind,
            fields=fields,
        )
        signature = self._key.sign("ledger-head", self.state.head_of(entry).statement())
        self.state.check(entry, signature)
        store.append(self.connection, entry.seq, entry.body, bytes.fromhex(signature))
        self.written = entry, signature


def _require_recordable(plan: PrivacyPlan, releases: Sequence[Release]) -> None:
    """Refuse a plan that no entry of this ledger could hold.

    Raises:
        PlanError: names every problem.
    """
    fields = [*_mechanism(plan).items(), *(item for each in releases for item in each.to_dict().items())]
    problems = [
        f"{name} is {value!r:.60}, a number that the ledger cannot hold exactly; ask for less than 2^53"
        for name, value in fields
        if isinstance(value, int | float) and not is_exact(value)
    ]
    if any(each.neighbouring != "add_remove" for each in releases):
        problems.append("neighbouring must be add_remove, the relation that the ledger counts in")
    if problems:
        raise PlanError("plan", problems)


def _is_same(known: Reservation, plan: PrivacyPlan, releases: tuple[Release, ...], model: str) -> bool:
    """Return whether work was reserved for exactly these parameters: of each noise, clip, model and randomness."""
    return (
        known.releases == releases
        and known.fields["mechanism"] == _mechanism(plan)
        and known.fields["model"] == model
        and known.fields["randomness"] == plan.randomness
    )


def _mechanism(plan: PrivacyPlan) -> dict[str, Any]:
    """Return the public constants of a plan that its release does not hold."""
    return {
        "divisor": plan.divisor,
        "grad_engine": plan.grad_engine,
        "max_grad_norm": plan.max_grad_norm,
        "max_records_per_patient": plan.max_records_per_patient,
        "name": mechanism_name(plan),  # any unit but the patient is refused
        "plan_delta": plan.delta,
        "unit": plan.unit,
    }
