"""Check a privacy ledger: one file, Python's standard library and `cryptography`, nothing else.

    python verify_ledger.py LEDGER [--head HEADS.json ...]

LEDGER is a hospital's ledger (SQLite) or its export (JSON lines); HEADS.json holds heads that somebody kept. Exit
status: 0 valid, 1 not (the first broken rule is named), 2 unreadable. The format is deploy/docs/ledger.md. This file
shares no code with the program that writes ledgers, so that a mistake there does not hide itself here. What it cannot
show: a cut end, unless a head was kept; that what is recorded is what ran; the epsilon of a fixed plan.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Json = dict[str, Any]
Check = Callable[[Any], bool]
Step = tuple[float, float, int]  # sampling probability, noise multiplier, steps: as they are charged
MAX_BODY, MAX_INTEGER, MAX_STEPS, SLACK = 1 << 16, 2**53 - 1, 1_000_000, 1e-9


# Dense on purpose: an auditor should have all of it on a few pages.
# ruff: noqa: E731, ANN401
# fmt: off
class Broken(Exception):  # noqa: N818 - reads as a sentence
    """A rule is broken; the text says which."""
def require(rule: str, *, holds: bool) -> None:
    """Require that a rule holds."""
    if not holds:
        raise Broken(rule)

# 1. The form of an entry: canonical JSON (RFC 8785) with exactly the fields of its kind. A bool is no number.
whole: Callable[..., bool] = lambda value, low=0, high=MAX_INTEGER: type(value) is int and low <= value <= high
exact: Check = lambda value: (type(value) is float and math.isfinite(value)) or whole(value, -MAX_INTEGER)
number: Callable[..., Check] = lambda low, high: lambda value: exact(value) and low <= value <= high
text: Callable[..., Check] = lambda most: lambda value: isinstance(value, str) and 1 <= len(value) <= most
like: Callable[..., Check] = lambda pattern: lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value))
listed: Callable[..., Check] = lambda check, least, most: lambda value: (
    isinstance(value, list) and least <= len(value) <= most and all(map(check, value)))
record: Callable[..., Check] = lambda **fields: lambda value: (
    isinstance(value, dict) and value.keys() == fields.keys() and all(fields[name](value[name]) for name in fields))
table: Callable[..., Check] = lambda most, check: lambda value: (
    isinstance(value, dict) and len(value) <= most and all(text(60)(name) and check(value[name]) for name in value))
plain: Check = lambda value: value is None or isinstance(value, bool) or text(200)(value) or exact(value)
digest, signature, cohort = like("[0-9a-f]{64}"), like("[0-9a-f]{128}"), like("c(0|[1-9][0-9]{0,8})")
code, epsilon, order = like("[a-z][a-z-]{0,39}"), number(0, 1e6), lambda value: whole(value, 2, 1024)
delta: Check = lambda value: type(value) is float and 0 < value < 1
cap_of: Check = lambda value: value is None or record(delta=delta, epsilon=epsilon, order=order)(value)
release = record(
    neighbouring=like("add_remove"), noise_multiplier=number(5e-324, math.inf), sampling_probability=number(5e-324, 1),
    sampler=like("poisson|shuffled|unamplified"), steps=lambda value: whole(value, 0, MAX_STEPS))
renyi = record(name=like("renyi-filter"), order=order)
fixed = record(name=like("fixed-plan"), schedule=listed(release, 1, 200))
WORK = {"run": text(200), "round": whole, "base": digest}
COMMON = {"v": lambda value: whole(value, 1, 1), "seq": whole, "prev": digest, "time": whole, "kind": text(40)}
KINDS: dict[str, dict[str, Check]] = {
    "GENESIS": {
        "site": text(100), "dataset": digest, "unit": like("patient"), "neighbouring": like("add_remove"),
        "delta": delta, "cap": epsilon, "rule": lambda value: renyi(value) or fixed(value), "key": digest,
        "approvers": lambda value: listed(digest, 0, 16)(value) and value == sorted(set(value)), "roster": digest,
        "claims": like("dp|seeded"), "cohort": like("c0"), "libraries": table(40, text(60))},
    "ROSTER": {"opens": lambda value: value is None or cohort(value), "roster": digest},
    "RESERVE": {
        **WORK, "releases": listed(release, 1, 16), "cohorts": listed(cohort, 1, 100_000), "model": digest,
        "mechanism": lambda value: table(20, plain)(value) and value.get("unit") == "patient", "policy": digest,
        "randomness": like("os|seeded"), "run_cap": cap_of},
    "COMMIT": {"reserve": whole, "steps": listed(whole, 1, 16), "update": digest},
    "REFUSE": {**WORK, "code": code},
    "CAP_CHANGE": {"from": epsilon, "to": epsilon, "approvals": listed(record(key=digest, signature=signature), 0, 16)},
    "ROTATE_KEY": {"key": digest, "proof": signature},
    "MODEL_RELEASE": {"run": text(200), "round": whole, "model": digest, "audience": like("partners|public")},
    "INCIDENT": {"code": code, "reference": like("[A-Za-z0-9._-]{0,40}")},
}
def canonical(value: Any) -> str:
    """Return canonical JSON: one text for one value, so that one value has one hash."""
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: item[0].encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{canonical(name)}:{canonical(item)}" for name, item in items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    return ecmascript(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
def ecmascript(value: float) -> str:
    """Return a number as ECMAScript writes it: Python's shortest digits that read back, in another layout."""
    if value == 0 or 1e-6 <= abs(value) < 1e21:
        return format(Decimal(repr(value or 0.0)), "f").removesuffix(".0")
    return re.sub("e([+-])0*", r"e\1", repr(value))
def read_body(body: bytes) -> Json:
    """Return the document of a body that has exactly the form of its kind."""
    try:
        require("longer than an entry can be", holds=len(body) <= MAX_BODY)
        entry: Json = json.loads(body.decode())  # a key that stands twice is lost here, and found by the last check
        fields = {**COMMON, **KINDS[entry["kind"]]}
        bad = sorted(set(fields) ^ set(entry)) or [name for name, check in fields.items() if not check(entry[name])]
        require(f"the field {bad[:1]!r:.60} is missing, unknown or out of form", holds=not bad)
        require("not canonical JSON: one entry could have two hashes", holds=canonical(entry).encode() == body)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise Broken(f"cannot be read as an entry ({type(error).__name__})") from error
    return entry
# 2. Cost: what releases add up to (Mironov, Talwar and Zhang 2019; the filter: Feldman and Zrnic 2021).
def charged(one: Json, steps: int) -> Step:
    """Return a release as it is charged: without Poisson sampling nothing is saved by sampling."""
    q = float(one["sampling_probability"])
    if one["sampler"] == "shuffled":  # once an epoch; q is read as the simplest fraction equal to it
        simple = Fraction(q).limit_denominator(10**6)
        steps = math.ceil(steps * (simple if float(simple) == q else Fraction(q)))
    return (q if one["sampler"] == "poisson" else 1.0, float(one["noise_multiplier"]), steps)
@lru_cache(maxsize=100_000)
def divergence(q: float, noise: float, a: int) -> float:
    """Return the Rényi divergence of order `a` of one step [nats]."""
    if q == 1:
        return a / 2 / noise / noise if noise > 1e-150 else math.inf
    terms = [
        math.lgamma(a + 1) - math.lgamma(k + 1) - math.lgamma(a - k + 1) + (a - k) * math.log1p(-q)
        + k * math.log(q) + (k * k - k) / 2 / noise / noise if noise > 1e-150 else math.inf for k in range(a + 1)]
    top = max(terms)
    return top if top == math.inf else max(0.0, top + math.log(math.fsum(math.exp(t - top) for t in terms))) / (a - 1)
def certified(steps: Iterable[Step], a: int, delta_: float) -> float:
    """Return the epsilon that order `a` certifies at delta (Balle et al. 2020, theorem 21); may be below 0."""
    total = math.fsum(count * divergence(q, noise, a) for q, noise, count in steps if count)
    return total + math.log((a - 1) / a) - (math.log(delta_) + math.log(a)) / (a - 1)
def require_filter(steps: Iterable[Step], cap: Json, what: str) -> None:
    """Require that the filter of one order allows some releases."""
    empty = certified((), cap["order"], cap["delta"])
    fits = certified(steps, cap["order"], cap["delta"]) - empty <= (cap["epsilon"] - empty) * (1 + SLACK)
    require(f"{what} has spent more than epsilon {cap['epsilon']:g}", holds=0 < cap["epsilon"] > empty and fits)
# 3. The ledger: chain, Merkle tree (RFC 6962), signatures, and what each kind of entry may do.
def is_signed(key: str, proof: str, purpose: str, document: Json) -> bool:
    """Return whether a key has signed a document for a purpose."""
    signed = f"federated-vae/{purpose}/1\n".encode() + canonical(document).encode()
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(proof), signed)
    except (InvalidSignature, ValueError):
        return False
    return True
class Ledger:
    """What the entries read so far come to."""
    def __init__(self) -> None:
        self.genesis: Json = {}
        self.tip, self.time, self.cap, self.is_ended = "0" * 64, 0, 0.0, False
        self.keys, self.roots, self.peaks = list[str](), list[str](), list[tuple[int, bytes]]()
        self.paid, self.works, self.committed = dict[int, tuple[Json, list[Step]]](), set[str](), set[int]()
        self.cohorts, self.runs = dict[str, list[int]](), dict[str, list[int]]()
    def take(self, body: bytes, proof: bytes) -> None:
        """Take the next entry."""
        entry, seq = read_body(body), len(self.roots)
        require("GENESIS must be the first entry and no other", holds=(entry["kind"] == "GENESIS") == (seq == 0))
        require("its number does not follow: an entry is missing, added or moved", holds=entry["seq"] == seq)
        require("the chain is broken: this entry or the one before was changed", holds=entry["prev"] == self.tip)
        require("its time is before that of the entry before", holds=entry["time"] >= self.time)
        if seq == 0:
            self.genesis, self.keys, self.cap, self.cohorts = entry, [entry["key"]], entry["cap"], {"c0": []}
        key = self.keys[-1]
        getattr(self, f"take_{entry['kind'].lower()}", lambda entry: None)(entry)  # others cost nothing
        self.tip, self.time = hashlib.sha256(body).hexdigest(), entry["time"]
        self.roots.append(self.root_with(body))
        head = {"root": self.roots[-1], "size": seq + 1, "time": self.time, "tip": self.tip}
        signed = is_signed(key, proof.hex(), "ledger-head", {"dataset": self.genesis["dataset"], **head})
        require("not signed by the site's key: somebody else wrote it", holds=signed)
    def root_with(self, body: bytes) -> str:
        """Add a body to the tree and return its root: SHA-256(0 || leaf), SHA-256(1 || left || right)."""
        count, node = 1, hashlib.sha256(b"\x00" + body).digest()
        while self.peaks and self.peaks[-1][0] == count:
            node, count = hashlib.sha256(b"\x01" + self.peaks.pop()[1] + node).digest(), 2 * count
        self.peaks.append((count, node))
        for _, left in reversed(self.peaks[:-1]):
            node = hashlib.sha256(b"\x01" + left + node).digest()
        return node.hex()
    def take_roster(self, entry: Json) -> None:
        """Open the next cohort: patients who join later have spent nothing."""
        require("it opens another cohort than the next", holds=entry["opens"] in (None, f"c{len(self.cohorts)}"))
        self.cohorts.update({} if entry["opens"] is None else {entry["opens"]: []})
    def take_reserve(self, entry: Json) -> None:
        """Pay for work in full, before any data are opened."""
        names, work = entry["cohorts"], canonical([entry[name] for name in WORK])
        require("this work was reserved before", holds=work not in self.works)
        require("cohorts out of order", holds=names == sorted(set(names), key=lambda name: int(name[1:])))
        require("it charges a cohort that was never opened", holds=set(names) <= set(self.cohorts))
        seeded = entry["randomness"] == "seeded" and self.genesis["claims"] == "dp"
        require("seeded noise where privacy is claimed", holds=not seeded)
        self.works.add(work)
        self.paid[entry["seq"]] = entry, [charged(one, one["steps"]) for one in entry["releases"]]
        self.runs.setdefault(entry["run"], []).append(entry["seq"])
        for name in names:
            self.cohorts[name].append(entry["seq"])
            self.require_affordable(name)
        if entry["run_cap"] is not None:
            require_filter(self.cost(self.runs[entry["run"]]), entry["run_cap"], "this run")
    def cost(self, seqs: Iterable[int]) -> list[Step]:
        """Return what reservations cost: what was done, or all until something is committed."""
        return [step for seq in seqs for step in self.paid[seq][1]]
    def require_affordable(self, name: str) -> None:
        """Require that the rule of GENESIS allows what a cohort has spent."""
        rule, spent = self.genesis["rule"], self.cost(self.cohorts[name])
        if rule["name"] == "renyi-filter":
            cap = {"epsilon": self.cap, "delta": self.genesis["delta"], "order": rule["order"]}
            return require_filter(spent, cap, f"cohort {name}")
        done = [one for seq in self.cohorts[name] for one in self.paid[seq][0]["releases"]]
        slots = [{**one, "steps": 0} for one in rule["schedule"] for _ in range(charged(one, one["steps"])[2])]
        place = iter(slots)  # each step takes the next slot of its kind: slots may be left out, never gone back to
        taken = [{**one, "steps": 0} for one, step in zip(done, spent, strict=True) for _ in range(step[2])]
        follows = all(one in place for one in taken)
        return require("not the next part of the schedule, or a cap was lowered", holds=follows and not self.is_ended)
    def take_commit(self, entry: Json) -> None:
        """Write down what was done of what was paid for."""
        seq, steps = entry["reserve"], entry["steps"]
        require("it commits what is not reserved, or once more", holds=seq in self.paid and seq not in self.committed)
        paid, releases = self.paid[seq][0], self.paid[seq][0]["releases"]
        fits = len(steps) == len(releases) and all(a <= one["steps"] for a, one in zip(steps, releases, strict=True))
        require("it claims more steps than were reserved", holds=fits)
        self.committed.add(seq)
        self.paid[seq] = paid, [charged(one, done) for done, one in zip(steps, releases, strict=True)]
    def take_cap_change(self, entry: Json) -> None:
        """Change the cap: lower it freely, raise it with two of the approvers; a schedule ends."""
        require("it changes another cap than the one in force", holds=entry["from"] == self.cap)
        statement = {"dataset": self.genesis["dataset"], "from": self.cap, "prev": entry["prev"], "to": entry["to"]}
        signed = {one["key"] for one in entry["approvals"] if is_signed(
            one["key"], one["signature"], "cap-change", statement)} & set(self.genesis["approvers"])
        approved, is_fixed = len(signed) >= 2, self.genesis["rule"]["name"] == "fixed-plan"
        holds = entry["to"] <= self.cap or (approved and not is_fixed)
        require("it raises the cap without two of the approvers", holds=holds)
        self.cap, self.is_ended = entry["to"], self.is_ended or is_fixed
    def take_rotate_key(self, entry: Json) -> None:
        """Let another key take over, which has to agree."""
        statement = {"dataset": self.genesis["dataset"], "key": entry["key"], "prev": entry["prev"]}
        require("the new key has not signed", holds=is_signed(entry["key"], entry["proof"], "rotate-key", statement))
        self.keys.append(entry["key"])
    def check_head(self, head: Json) -> None:
        """Require that everything which somebody has seen is still there."""
        statement = {name: head[name] for name in ("dataset", "root", "size", "time", "tip")}
        known = head["key"] in self.keys and is_signed(head["key"], head["signature"], "ledger-head", statement)
        require("a kept head is not of this ledger", holds=known and head["dataset"] == self.genesis["dataset"])
        require(f"cut: somebody has seen {head['size']} entries", holds=head["size"] <= len(self.roots))
        require("written anew: a kept head differs", holds=self.roots[head["size"] - 1] == head["root"])
class Verdict(NamedTuple):
    """What was found: no `problem` if valid; for each cohort epsilon at the filter's order, and at the best one."""

    problem: str
    entry: int
    ledger: Ledger
    cohorts: dict[str, tuple[float, float]]
def verify(entries: Sequence[tuple[bytes, bytes]], heads: Sequence[Json] = ()) -> Verdict:
    """Return whether a ledger (body and signature of each entry) is valid and contains what somebody has seen of it."""
    ledger, problem, place, cohorts = Ledger(), "" if entries else "there is no entry", 0, {}
    try:
        for place, (body, proof) in enumerate(entries):  # noqa: B007 - where it stopped
            ledger.take(body, proof)
        for head in heads:
            ledger.check_head(head)
    except Broken as error:
        problem = str(error)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"a kept head cannot be read ({type(error).__name__})"
    for name, seqs in ledger.cohorts.items() if not problem else ():
        spent, own = ledger.cost(seqs), ledger.genesis["rule"].get("order")
        at = {a: max(0.0, certified(spent, a, ledger.genesis["delta"])) for a in {*range(2, 257), own or 2}}
        is_free = not any(count for _, _, count in spent)
        cohorts[name] = (0.0, 0.0) if is_free else (at[own] if own else math.nan, min(at.values()))
    return Verdict(problem, place, ledger, cohorts)
def read(path: Path) -> list[tuple[bytes, bytes]]:
    """Return body and signature of every entry of a ledger or export; a ledger is opened read-only."""
    if path.read_bytes()[:15] != b"SQLite format 3":
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [(line["body"].encode(), bytes.fromhex(line["signature"])) for line in lines]
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    rows = connection.execute("SELECT body, signature FROM entries ORDER BY seq").fetchall()
    connection.close()
    return [(bytes(body), bytes(proof)) for body, proof in rows]
def main(files: Sequence[str]) -> int:
    """Read, check, and say in plain words what was found."""
    try:
        entries, kept = read(Path(files[0])), [json.loads(Path(name).read_text("utf-8")) for name in files[1:]]
    except (OSError, sqlite3.Error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        print(f"cannot be read: {error!r}; usage: python verify_ledger.py LEDGER [--head HEADS.json ...]")
        return 2
    found = verify(entries, [head for item in kept for head in (item if isinstance(item, list) else [item])])
    if found.problem:
        print(f"NOT VALID. Entry {found.entry}: {found.problem}.")
        return 1
    print(f"Valid: {len(entries)} entries, every one as it was written. Cap: epsilon {found.ledger.cap:g}.")
    for name, (at_order, best) in found.cohorts.items():
        print(f"Cohort {name}: epsilon {at_order:.4f} by the filter, {best:.4f} by RDP, at the ledger's delta.")
    print("Kept heads agree." if kept else "No kept head was given: a cut end would not show.")
    return 0
if __name__ == "__main__":
    sys.exit(main([name for name in sys.argv[1:] if name != "--head"]))
