"""What a ledger's entries mean: one pass over them gives what was spent, or the first entry that breaks a rule.

`State.apply` takes the next entry and its signature; it checks everything before it changes anything. The store
(`privacy.ledger`) applies an entry to decide whether it may be written, and applies all of them again whenever
a ledger is opened: there is one set of rules, and no stored total to believe.

Guarantees (tests/unit/privacy/test_replay.py, tests/property/test_ledger_machine.py): in every state the rule
of GENESIS holds for every cohort with the cap that was in force when it was last charged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from privacy.accounting import Release, merge_releases
from privacy.entries import NO_HASH, Entry, decode, releases_of
from privacy.errors import PlanError, RefusalCode, RefusedError, TamperedError
from privacy.filters import FixedPlan, RenyiFilter
from privacy.heads import Head
from privacy.merkle import Frontier, leaf_hash
from privacy.records import (
    FIRST_COHORT,
    Genesis,
    Reservation,
    Work,
    cap_statement,
    rotation_statement,
    rule_of,
)
from privacy.signing import verify


@dataclass
class State:
    """Where a ledger stands. Built by `replay`, or empty.

    Attributes:
        size: Number of entries.
        tip: SHA-256 of the last body.
        time: Of the last entry.
        key: Public key in force.
        keys: All keys that ever were.
        cap: Epsilon in force.
        cohorts: Cohort -> reservations that charged it, by seq.
        reservations: Everything paid for, in order.
        refused: Refusals that are written down.
        refusals_in_a_row: REFUSE entries since the last of another kind.
        roster: Hash of the table of patients.
        roots: Merkle roots after each entry.
        leaves: Leaf hashes of all entries.
        signature: Of the last head.
        signer: Key of that signature.
        is_ended: Whether a schedule was ended by a lowered cap.
    """

    size: int = 0
    tip: str = NO_HASH
    time: int = 0
    key: str = ""
    keys: list[str] = field(default_factory=list)
    cap: float = 0.0
    cohorts: dict[str, list[int]] = field(default_factory=dict)
    reservations: dict[Work, Reservation] = field(default_factory=dict)
    refused: set[tuple[Work, str]] = field(default_factory=set)
    refusals_in_a_row: int = 0
    roster: str = NO_HASH
    roots: list[str] = field(default_factory=list)
    leaves: list[bytes] = field(default_factory=list)
    signature: str = ""
    signer: str = ""
    is_ended: bool = False
    _genesis: Genesis | None = None
    _works: dict[int, Work] = field(default_factory=dict)
    _frontier: Frontier = field(default_factory=Frontier)
    _by_cohort: dict[str, tuple[Release, ...]] = field(
        default_factory=dict
    )  # so that entry 10,000 costs no more
    _by_run: dict[str, tuple[Release, ...]] = field(default_factory=dict)

    @property
    def genesis(self) -> Genesis:
        """Return what was fixed first.

        Raises:
            ValueError: nothing was written yet.
        """
        if self._genesis is None:
            raise ValueError("the ledger has no entry yet")
        return self._genesis

    def head_of(self, entry: Entry) -> Head:
        """Return the unsigned head after `entry`, which need not be applied yet."""
        grown = self._frontier.copy()
        grown.append(leaf_hash(entry.body))
        dataset = entry.fields["dataset"] if self._genesis is None else self._genesis.dataset
        key = entry.fields["key"] if self._genesis is None else self.key
        return Head(
            dataset=dataset,
            root=grown.root().hex(),
            size=grown.size,
            time=entry.time,
            tip=entry.digest,
            key=key,
        )

    def releases(self, cohort: str) -> tuple[Release, ...]:
        """Return everything that was spent on the patients of a cohort, in order."""
        if cohort not in self._by_cohort:
            spent = (self.reservations[self._works[seq]].cost for seq in self.cohorts[cohort])
            self._by_cohort[cohort] = merge_releases(release for cost in spent for release in cost)
        return self._by_cohort[cohort]

    def releases_of_run(self, run: str) -> tuple[Release, ...]:
        """Return everything that a run has spent, on whichever cohort, in order."""
        if run not in self._by_run:
            spent = (paid.cost for work, paid in self.reservations.items() if work.run == run)
            self._by_run[run] = merge_releases(release for cost in spent for release in cost)
        return self._by_run[run]

    def refusal(
        self, cohort: str, releases: Iterable[Release], run: str, run_cap: Mapping[str, Any] | None
    ) -> RefusedError | None:
        """Return why a cohort cannot be charged with more releases, None if it can."""
        new = tuple(releases)
        genesis, before = self.genesis, self.releases(cohort)
        if isinstance(genesis.rule, FixedPlan):
            fits = not self.is_ended and _follows(genesis.rule, before, new)
            if not fits:
                why = (
                    "a cap was lowered since" if self.is_ended else "it is not the next part of the schedule"
                )
                return RefusedError(RefusalCode.OFF_PLAN, f"cohort {cohort}: {why}")
        else:
            rule = dataclasses.replace(genesis.rule, epsilon=self.cap) if self.cap > 0 else None
            if rule is None or not rule.allows((*before, *new)):
                spent = 0.0 if rule is None else rule.epsilon_spent(before)
                after = 0.0 if rule is None else rule.epsilon_spent((*before, *new))
                return RefusedError(
                    RefusalCode.BUDGET_EXHAUSTED,
                    f"cohort {cohort}: epsilon {spent:.4g} of {self.cap:g} is spent and this would make it "
                    f"{after:.4g} (at delta {genesis.delta:g}); nothing was trained",
                )
        return None if run_cap is None else self._run_refusal(new, run, run_cap)

    def _run_refusal(
        self, new: tuple[Release, ...], run: str, run_cap: Mapping[str, Any]
    ) -> RefusedError | None:
        """Return why a run cannot spend more, None if it can."""
        before = self.releases_of_run(run)
        rule = RenyiFilter(epsilon=run_cap["epsilon"], delta=run_cap["delta"], order=run_cap["order"])
        if rule.allows((*before, *new)):
            return None
        return RefusedError(
            RefusalCode.RUN_BUDGET_EXHAUSTED,
            f"this run has spent epsilon {rule.epsilon_spent(before):.4g} of the {rule.epsilon:g} that one run may "
            f"(at delta {rule.delta:g})",
        )

    def check(self, entry: Entry, signature: str) -> tuple[Head, Callable[[], object]]:
        """Return the head after the next entry, and what it changes, without changing anything.

        Raises:
            TamperedError: it breaks a rule.
        """
        self._check_place(entry)
        try:
            change = _RULES[entry.kind](self, entry)
            head = dataclasses.replace(self.head_of(entry), signature=signature)
        except (PlanError, RefusedError) as error:
            raise TamperedError(entry.seq, str(error)) from error
        if not head.is_signed():
            raise TamperedError(entry.seq, "the signature is not that of the site's key over this head")
        return head, change

    def apply(self, entry: Entry, signature: str) -> None:
        """Take the next entry.

        Raises:
            TamperedError: it breaks a rule; nothing has changed then.
        """
        head, change = self.check(entry, signature)
        change()
        self.size, self.tip, self.time = head.size, head.tip, entry.time
        self.leaves.append(leaf_hash(entry.body))
        self._frontier.append(self.leaves[-1])
        self.roots.append(head.root)
        self.signature = signature
        self.signer = head.key
        self.refusals_in_a_row = self.refusals_in_a_row + 1 if entry.kind == "REFUSE" else 0

    def read(self, body: bytes, signature: bytes) -> None:
        """Take the next entry as it lies in a file.

        Raises:
            TamperedError: it is no entry, or breaks a rule; nothing has changed then.
        """
        if not isinstance(signature, bytes):
            raise TamperedError(self.size, "the signature is not bytes")
        self.apply(decode(body, self.size), signature.hex())

    def head(self) -> Head:
        """Return the head after the last entry, with its signature."""
        return Head(
            dataset=self.genesis.dataset,
            root=self.roots[-1],
            size=self.size,
            time=self.time,
            tip=self.tip,
            key=self.signer,
            signature=self.signature,
        )

    def contains(self, head: Head) -> bool:
        """Return whether the first entries are exactly those of `head`, which is not larger."""
        return 1 <= head.size <= self.size and self.roots[head.size - 1] == head.root

    def _check_place(self, entry: Entry) -> None:
        """Check number, chain, time, and that GENESIS is the first entry and no other."""
        for broken, problem in (
            (entry.seq != self.size, f"it is numbered {entry.seq}: an entry is missing, added or moved"),
            (entry.prev != self.tip, "it does not follow the entry before: one of the two was changed"),
            (entry.time < self.time, "its time is before that of the entry before"),
            ((entry.kind == "GENESIS") != (self.size == 0), "GENESIS must be the first entry and no other"),
        ):
            if broken:
                raise TamperedError(self.size, problem)

    def _genesis_of(self, entry: Entry) -> Callable[[], object]:
        fields = entry.fields
        made = Genesis(
            site=fields["site"],
            dataset=fields["dataset"],
            delta=fields["delta"],
            cap=fields["cap"],
            rule=rule_of(fields),
            key=fields["key"],
            approvers=tuple(fields["approvers"]),
            claims=fields["claims"],
            libraries=dict(fields["libraries"]),
        )

        def change() -> None:
            self._genesis, self.cap, self.key = made, made.cap, made.key
            self.keys, self.roster = [made.key], fields["roster"]
            self.cohorts[FIRST_COHORT] = []

        return change

    def _roster(self, entry: Entry) -> Callable[[], object]:
        opens = entry.fields["opens"]
        if opens is not None and opens != f"c{len(self.cohorts)}":
            raise TamperedError(entry.seq, f"it opens cohort {opens}, the next is c{len(self.cohorts)}")

        def change() -> None:
            self.roster = entry.fields["roster"]
            if opens is not None:
                self.cohorts[opens] = []

        return change

    def _reserve(self, entry: Entry) -> Callable[[], object]:
        fields, seq = entry.fields, entry.seq
        work = Work(run=fields["run"], round=fields["round"], base=fields["base"])
        releases = releases_of(fields["releases"])
        unknown = [name for name in fields["cohorts"] if name not in self.cohorts]
        for broken, problem in (
            (work in self.reservations, "this work was reserved before"),
            (bool(unknown), f"it charges {', '.join(unknown[:3])}, which was never opened"),
            (
                fields["randomness"] == "seeded" and self.genesis.claims == "dp",
                "seeded noise in a ledger that claims differential privacy",
            ),
            (
                any(release.neighbouring != "add_remove" for release in releases),
                "a release with another neighbouring relation than the ledger's",
            ),
        ):
            if broken:
                raise TamperedError(seq, problem)
        for cohort in fields["cohorts"]:
            if refusal := self.refusal(cohort, releases, work.run, fields["run_cap"]):
                raise refusal
        paid = Reservation(
            seq=seq, work=work, releases=releases, cohorts=tuple(fields["cohorts"]), fields=fields
        )

        def change() -> None:
            for cohort in paid.cohorts:
                self._by_cohort[cohort] = merge_releases((*self.releases(cohort), *releases))
                self.cohorts[cohort].append(seq)
            self._by_run[work.run] = merge_releases((*self.releases_of_run(work.run), *releases))
            self.reservations[work], self._works[seq] = paid, work

        return change

    def _commit(self, entry: Entry) -> Callable[[], object]:
        fields, seq = entry.fields, entry.seq
        work = self._works.get(fields["reserve"])
        if work is None:
            raise TamperedError(seq, f"it commits entry {fields['reserve']}, which is no reservation")
        paid, steps = self.reservations[work], tuple(fields["steps"])
        if paid.steps is not None:
            raise TamperedError(seq, f"entry {paid.seq} was committed before")
        if len(steps) != len(paid.releases) or any(
            done > release.steps for done, release in zip(steps, paid.releases, strict=True)
        ):
            raise TamperedError(seq, f"it claims steps {list(steps)}, more than entry {paid.seq} reserved")

        def change() -> None:
            self.reservations[work] = dataclasses.replace(
                paid, steps=steps, update=fields["update"], committed=seq
            )
            if steps != tuple(release.steps for release in paid.releases):
                self._by_cohort.clear()
                self._by_run.clear()

        return change

    def _refuse(self, entry: Entry) -> Callable[[], object]:
        fields = entry.fields
        work = Work(run=fields["run"], round=fields["round"], base=fields["base"])
        return lambda: self.refused.add((work, fields["code"]))

    def _cap_change(self, entry: Entry) -> Callable[[], object]:
        fields, genesis = entry.fields, self.genesis
        if fields["from"] != self.cap:
            raise TamperedError(entry.seq, f"it changes a cap of {fields['from']}, in force is {self.cap}")
        fixed = isinstance(genesis.rule, FixedPlan)
        if fields["to"] > self.cap:
            statement = cap_statement(genesis.dataset, self.cap, fields["to"], entry.prev)
            signed = {
                each["key"]
                for each in fields["approvals"]
                if verify(each["key"], each["signature"], "cap-change", statement)
            }
            if fixed or len(signed & set(genesis.approvers)) < 2:
                raise TamperedError(entry.seq, "it raises the cap without two of the approvers of GENESIS")

        def change() -> None:
            self.cap = fields["to"]
            self.is_ended = self.is_ended or fixed

        return change

    def _rotate(self, entry: Entry) -> Callable[[], object]:
        fields = entry.fields
        statement = rotation_statement(self.genesis.dataset, fields["key"], entry.prev)
        if not verify(fields["key"], fields["proof"], "rotate-key", statement):
            raise TamperedError(entry.seq, "the new key has not signed that it takes over")

        def change() -> None:
            self.key = fields["key"]
            self.keys.append(fields["key"])

        return change

    def _note(self, entry: Entry) -> Callable[[], object]:
        return lambda: None


def replay(rows: Iterable[tuple[bytes, bytes]]) -> State:
    """Return where a ledger stands after all its entries.

    Args:
        rows: Body and raw signature of each entry, in order.

    Raises:
        TamperedError: names the first entry that breaks a rule.
    """
    state = State()
    for body, signature in rows:
        state.read(body, signature)
    if state.size == 0:
        raise TamperedError(0, "the ledger has no entry")
    return state


def _follows(plan: FixedPlan, before: tuple[Release, ...], new: tuple[Release, ...]) -> bool:
    """Return whether each of the new releases is the next part of the schedule."""
    history = before
    for release in new:
        if not plan.accepts(history, release):
            return False
        history = (*history, release)
    return True


_RULES: dict[str, Callable[[State, Entry], Callable[[], object]]] = {
    "GENESIS": State._genesis_of,
    "ROSTER": State._roster,
    "RESERVE": State._reserve,
    "COMMIT": State._commit,
    "REFUSE": State._refuse,
    "CAP_CHANGE": State._cap_change,
    "ROTATE_KEY": State._rotate,
    "MODEL_RELEASE": State._note,
    "INCIDENT": State._note,
}
