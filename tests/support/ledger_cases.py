"""Small ledgers for tests: a hospital with key, salt and approvers, plans of known cost, and what they cost by hand."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from privacy import genesis
from privacy.accounting import Release
from privacy.entries import Entry, encode
from privacy.errors import RefusalCode, RefusedError
from privacy.filters import FixedPlan, RenyiFilter
from privacy.heads import Receipt
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan
from privacy.records import Reservation, Work
from privacy.replay import State
from privacy.signing import SigningKey, generate_key

SALT = bytes(range(32))
MODEL, POLICY = "1" * 64, "2" * 64
PATIENTS = ("anna", "bob", "cleo", "dora")
RULE = RenyiFilter(epsilon=8.0, delta=1e-5, order=4)
"""Pays for 8 + (ln 1e-5 + ln 4) / 3 - ln(3/4) = 4.912138 nats."""


def plan(nats: float = 1.0, *, steps: int = 4, order: int = 4, **changes: object) -> PrivacyPlan:
    """Return a plan of everybody in every step, whose divergence at `order` is `nats`.

    With q = 1 a step costs order / (2 sigma^2), so sigma = sqrt(order steps / (2 nats)).
    """
    noise = math.sqrt(order * steps / (2 * nats))
    fields: dict[str, Any] = {
        "sampling_probability": 1.0,
        "steps": steps,
        "noise_multiplier": noise,
        "max_grad_norm": 1.0,
        "divisor": 10.0,
        "delta": 1e-5,
    }
    return PrivacyPlan(**(fields | changes))


def work(number: int = 1, run: str = "study") -> Work:
    """Return round `number` of a run."""
    return Work(run=run, round=number, base=f"{number:064x}")


def refused(code: RefusalCode, sentence: str | None = None) -> pytest.RaisesExc[RefusedError]:
    """Expect a refusal with a code and, if it is given, exactly this sentence for the people at the site."""
    text = code.value if sentence is None else re.escape(f"{code.value}: {sentence}") + "$"
    return pytest.raises(RefusedError, match=f"^{text}")


@dataclass(kw_only=True)
class Hospital:
    """A ledger with everything that its owner has.

    Attributes:
        path: The file.
        key: In force when it was begun.
        approvers: Keys of those who may raise the cap.
        ledger: Open for writing.
    """

    path: Path
    key: SigningKey
    approvers: tuple[SigningKey, ...]
    ledger: Ledger

    def reserve(
        self, of: Work, asked: PrivacyPlan | None = None, *, model: str = MODEL, **more: Any
    ) -> Reservation:
        """Reserve with the hashes that do not matter."""
        return self.ledger.reserve(of, plan() if asked is None else asked, model=model, policy=POLICY, **more)

    def pay(self, of: Work, asked: PrivacyPlan | None = None, update: str = "a" * 64) -> Receipt:
        """Reserve, commit all steps, and return the receipt."""
        paid = self.reserve(of, asked)
        self.ledger.commit(of, [release.steps for release in paid.releases], update)
        return self.ledger.receipt(of)

    def reopen(self, key: SigningKey | None = None) -> Ledger:
        """Close, and read everything again."""
        self.ledger.close()
        self.ledger = Ledger.open(self.path, key=key or self.key, salt=SALT)
        return self.ledger

    def kinds(self) -> list[str]:
        """Return the kind of each entry."""
        return [str(body["kind"]) for body in self.bodies()]

    def bodies(self) -> list[dict[str, Any]]:
        """Return each entry as it lies in the file."""
        return [json.loads(body) for body, _ in self.ledger.entries()]


def hospital(
    folder: Path,
    *,
    patients: Iterable[str] = PATIENTS,
    rule: RenyiFilter | FixedPlan = RULE,
    seeded: bool = False,
    name: str = "ledger.sqlite",
    dataset: str = "cohort",
    durable: bool = False,
) -> Hospital:
    """Begin a ledger.

    Args:
        folder: Where the file will lie.
        patients: Who takes part.
        rule: How costs add up.
        seeded: Whether it claims nothing.
        name: Of the file.
        dataset: Its name.
        durable: Flush to disk as a hospital does; tests of anything else do without.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key, approvers = generate_key(), tuple(generate_key() for _ in range(3))
    made = genesis.begin(
        folder / name,
        site="hospital",
        dataset=dataset,
        rule=rule,
        patients=patients,
        key=key,
        salt=SALT,
        approvers=[each.public for each in approvers],
        seeded=seeded,
    )
    made._store._durable = durable
    made.close()  # the next use opens the file again, so
    return Hospital(path=folder / name, key=key, approvers=approvers, ledger=made)


def approvals(keys: Sequence[SigningKey], request: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what approvers hand in."""
    return [{"key": key.public, "signature": key.sign("cap-change", request)} for key in keys]


def nats(release: Release, order: int) -> float:
    """Return the Renyi divergence of a Poisson release, written anew: Mironov, Talwar and Zhang 2019.

    log(sum over k of C(a, k) (1 - q)^(a - k) q^k exp((k^2 - k) / (2 s^2))) / (a - 1) a step, by logarithms.
    """
    q, noise = release.sampling_probability, release.noise_multiplier
    if q == 1:
        return release.steps * order / 2 / noise / noise
    logs = [
        math.lgamma(order + 1)
        - math.lgamma(k + 1)
        - math.lgamma(order - k + 1)
        + (order - k) * math.log1p(-q)
        + k * math.log(q)
        + (k * k - k) / 2 / noise / noise
        for k in range(order + 1)
    ]
    most = max(logs)
    if math.isinf(most):
        return math.inf if release.steps else 0.0
    return release.steps * (most + math.log(math.fsum(math.exp(one - most) for one in logs))) / (order - 1)


def budget(epsilon: float, delta: float, order: int) -> float:
    """Return the nats that a cap pays for, as the document has them."""
    return epsilon + (math.log(delta) + math.log(order)) / (order - 1) - math.log((order - 1) / order)


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file as somebody with an editor would."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def next_entry(state: State, kind: str, fields: Mapping[str, Any], **changes: Any) -> Entry:
    """Return what would be the next entry, with some of its common fields changed."""
    common: dict[str, Any] = {"seq": state.size, "prev": state.tip, "time": max(state.time, 1)} | changes
    return encode(kind=kind, fields=fields, **common)


def sign(state: State, entry: Entry, key: SigningKey) -> str:
    """Return the signature of the head after an entry."""
    return key.sign("ledger-head", state.head_of(entry).statement())


def force(path: Path, state: State, entry: Entry, key: SigningKey) -> None:
    """Write an entry into the file with the right signature, whatever the rules say."""
    with raw(path) as connection:
        signature = bytes.fromhex(sign(state, entry, key))
        connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (entry.seq, entry.body, signature))


def with_steps(release: Release, steps: int) -> Release:
    """Return a release of other steps."""
    return dataclasses.replace(release, steps=steps)
