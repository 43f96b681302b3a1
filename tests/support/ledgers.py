"""Random ledgers and ways to spoil them, built from the format document with rfc8785 and cryptography alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Row = tuple[bytes, bytes]
Json = dict[str, Any]


def new_key(rng: random.Random) -> Ed25519PrivateKey:
    """Return a key that follows from the generator."""
    return Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))


def public(key: Ed25519PrivateKey) -> str:
    """Return a public key as it is written."""
    return key.public_key().public_bytes_raw().hex()


def signed(key: Ed25519PrivateKey, purpose: str, document: Json) -> str:
    """Return a signature as it is written."""
    return key.sign(f"federated-vae/{purpose}/1\n".encode() + rfc8785.dumps(document)).hex()


def merkle_root(bodies: list[bytes]) -> bytes:
    """Return the tree hash by the recursive definition of RFC 6962, section 2.1."""
    if len(bodies) == 1:
        return hashlib.sha256(b"\x00" + bodies[0]).digest()
    split = 1
    while 2 * split < len(bodies):
        split *= 2
    return hashlib.sha256(b"\x01" + merkle_root(bodies[:split]) + merkle_root(bodies[split:])).digest()


@dataclass
class Builder:
    """Writes entries and signs them with the right key, whatever they say."""

    rng: random.Random
    key: Ed25519PrivateKey
    approvers: list[Ed25519PrivateKey] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    entries: list[Json] = field(default_factory=list)
    time: int = 1_700_000_000

    @property
    def tip(self) -> str:
        return hashlib.sha256(self.rows[-1][0]).hexdigest() if self.rows else "0" * 64

    @property
    def dataset(self) -> str:
        return self.entries[0]["dataset"]

    def add(self, kind: str, *, changes: Json | None = None, **fields: Any) -> Json:
        """Append an entry; `changes` replaces fields of any kind after they were made."""
        self.time += self.rng.randrange(3)
        entry = {"v": 1, "seq": len(self.rows), "prev": self.tip, "time": self.time, "kind": kind, **fields}
        entry.update(changes or {})
        body = rfc8785.dumps(entry)
        bodies = [row[0] for row in self.rows] + [body]
        head = {
            "dataset": self.entries[0]["dataset"] if self.entries else entry["dataset"],
            "root": merkle_root(bodies).hex(),
            "size": len(bodies),
            "time": entry["time"],
            "tip": hashlib.sha256(body).hexdigest(),
        }
        self.rows.append((body, bytes.fromhex(signed(self.key, "ledger-head", head))))
        self.entries.append(entry)
        return entry

    def head(self) -> Json:
        """Return the signed head of everything so far, as a witness keeps it."""
        bodies = [row[0] for row in self.rows]
        head = {
            "dataset": self.dataset,
            "root": merkle_root(bodies).hex(),
            "size": len(bodies),
            "time": self.entries[-1]["time"],
            "tip": self.tip,
        }
        return {**head, "key": public(self.key), "signature": self.rows[-1][1].hex()}

    def digest(self) -> str:
        return self.rng.randbytes(32).hex()


RELEASES = [
    {"sampling_probability": 0.1, "noise_multiplier": 1.5, "sampler": "poisson"},
    {"sampling_probability": 0.04, "noise_multiplier": 2.0, "sampler": "poisson"},
    {"sampling_probability": 1.0, "noise_multiplier": 9.5, "sampler": "poisson"},
    {"sampling_probability": 1 / 75, "noise_multiplier": 4.0, "sampler": "shuffled"},
    {"sampling_probability": 0.3, "noise_multiplier": 12.0, "sampler": "unamplified"},
]


def release(rng: random.Random, steps: int | None = None) -> Json:
    """Return a release out of a few kinds, so that divergences can be remembered."""
    one = rng.choice(RELEASES)
    return {**one, "steps": rng.randrange(1, 30) if steps is None else steps, "neighbouring": "add_remove"}


def begin(rng: random.Random, *, fixed: bool = False) -> Builder:
    """Return a ledger with its first entry."""
    made = Builder(rng, new_key(rng), [new_key(rng) for _ in range(rng.randrange(4))])
    schedule = [release(rng, 20), release(rng, 10)]
    rule: Json = {"name": "renyi-filter", "order": rng.choice([4, 8, 12])}
    made.add(
        "GENESIS",
        site="north",
        dataset=made.digest(),
        unit="patient",
        neighbouring="add_remove",
        delta=1e-5,
        cap=rng.choice([2.5, 4, 8]) if not fixed else 60,
        rule={"name": "fixed-plan", "schedule": schedule} if fixed else rule,
        key=public(made.key),
        approvers=sorted(public(key) for key in made.approvers),
        claims=rng.choice(["dp", "seeded"]),
        cohort="c0",
        roster=made.digest(),
        libraries={"opacus": "1.6.0"},
    )
    return made


def reserve(made: Builder, *, number: int, cohorts: list[str], releases: list[Json], **changes: Any) -> Json:
    """Append a reservation of whatever it is given."""
    fields = {
        "run": f"study-{number % 2}",
        "round": number,
        "base": made.digest(),
        "releases": releases,
        "cohorts": cohorts,
        "mechanism": {"unit": "patient", "max_grad_norm": 1.0, "divisor": 14},
        "model": made.digest(),
        "policy": made.digest(),
        "randomness": "os",
        "run_cap": made.rng.choice([None, {"delta": 1e-5, "epsilon": 3.5, "order": 6}]),
    }
    return made.add("RESERVE", **{**fields, **changes})


def random_ledger(rng: random.Random, *, entries: int) -> Builder:
    """Return a ledger of every kind of entry; nothing keeps it below its cap, so some are not valid."""
    made = begin(rng, fixed=rng.random() < 0.1)
    cohorts, paid, cap = ["c0"], [], made.entries[0]["cap"]
    is_fixed = made.entries[0]["rule"]["name"] == "fixed-plan"
    while len(made.rows) < entries:
        kind = rng.choice(
            ["reserve"] * 4 + ["commit"] * 3 + ["roster", "refuse", "cap", "rotate", "model", "incident"]
        )
        if kind == "reserve":
            rule = made.entries[0]["rule"]
            one = {**rng.choice(rule["schedule"]), "steps": rng.randrange(1, 8)} if is_fixed else release(rng)
            some = sorted(
                rng.sample(cohorts, rng.randrange(1, len(cohorts) + 1)), key=lambda name: int(name[1:])
            )
            paid.append(reserve(made, number=len(made.rows), cohorts=some, releases=[one]))
        elif kind == "commit" and paid:
            of = paid.pop(rng.randrange(len(paid)))
            steps = [rng.choice([one["steps"], rng.randrange(one["steps"] + 1)]) for one in of["releases"]]
            made.add("COMMIT", reserve=of["seq"], steps=steps, update=made.digest())
        elif kind == "roster":
            opens = rng.choice([None, f"c{len(cohorts)}"])
            cohorts += [opens] if opens else []
            made.add("ROSTER", opens=opens, roster=made.digest())
        elif kind == "refuse":
            made.add("REFUSE", run="study-0", round=7, base=made.digest(), code="budget-exhausted")
        elif kind == "cap":
            to = rng.choice([cap, cap - 0.25, cap + 0.5])
            statement = {"dataset": made.dataset, "from": cap, "prev": made.tip, "to": to}
            given = made.approvers[: rng.randrange(4)]
            approvals = [
                {"key": public(key), "signature": signed(key, "cap-change", statement)} for key in given
            ]
            made.add("CAP_CHANGE", **{"from": cap}, to=to, approvals=approvals)
            cap = to
        elif kind == "rotate":
            key = new_key(rng)
            statement = {"dataset": made.dataset, "key": public(key), "prev": made.tip}
            made.add("ROTATE_KEY", key=public(key), proof=signed(key, "rotate-key", statement))
            made.key = key
        elif kind == "model":
            made.add("MODEL_RELEASE", run="study-1", round=3, model=made.digest(), audience="public")
        elif kind == "incident":
            made.add("INCIDENT", code="clock-jump", reference="IT-2026.7")
    return made


def spoiled(rng: random.Random, made: Builder) -> Iterator[tuple[str, list[Row]]]:
    """Yield what somebody without the key could do to a ledger: what was done, and the rows. Each must be found."""
    rows, place = made.rows, rng.randrange(len(made.rows))
    body, proof = rows[place]
    at = rng.randrange(len(body))
    flipped = body[:at] + bytes([body[at] ^ 1 << rng.randrange(8)]) + body[at + 1 :]
    yield "a byte of a body", [*rows[:place], (flipped, proof), *rows[place + 1 :]]
    at = rng.randrange(len(proof))
    forged = proof[:at] + bytes([proof[at] ^ 1 << rng.randrange(8)]) + proof[at + 1 :]
    yield "a byte of a signature", [*rows[:place], (body, forged), *rows[place + 1 :]]
    yield "an entry twice", [*rows[: place + 1], *rows[place:]]
    if place + 1 < len(rows):
        yield "an entry dropped", [*rows[:place], *rows[place + 1 :]]
        yield "two entries swapped", [*rows[:place], rows[place + 1], rows[place], *rows[place + 2 :]]
    yield "another key", [(body, new_key(rng).sign(body)) for body, _ in rows]
    yield "nothing left", []
