"""The form of ledger entries: canonical JSON with exactly the fields of its kind (deploy/docs/ledger.md).

This module knows what one entry looks like; `privacy.replay` knows what a sequence of them means.

Guarantees (tests/unit/privacy/test_entries.py): `decode` accepts exactly the bytes that `encode` writes, so
that an entry has one form and one hash; nothing that could name or count patients has a field to go to.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785

from privacy.accounting import Release
from privacy.errors import PlanError, TamperedError
from privacy.fields import parse_json

VERSION = 1
NO_HASH = "0" * 64
MAX_BODY_BYTES = 1 << 16
MAX_INTEGER = 2**53 - 1
MAX_RUN = 200
COMMON = ("v", "seq", "prev", "time", "kind")

_HEX64 = re.compile(r"[0-9a-f]{64}")
_HEX128 = re.compile(r"[0-9a-f]{128}")
_CODE = re.compile(r"[a-z][a-z-]{0,39}")
_COHORT = re.compile(r"c(0|[1-9][0-9]{0,8})")
_REFERENCE = re.compile(r"[A-Za-z0-9._-]{0,40}")

Check = Callable[[object], bool]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry as it stands in the ledger.

    Attributes:
        seq: Number, from 0.
        prev: SHA-256 of the body before, 64 zeros for the first.
        time: Seconds since 1970, never smaller than before; for people, nothing is decided by it.
        kind: One of `KINDS`.
        fields: The fields of its kind.
        body: Canonical JSON; what is hashed.
    """

    seq: int
    prev: str
    time: int
    kind: str
    fields: Mapping[str, Any]
    body: bytes

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the body: the next entry's `prev`."""
        return hashlib.sha256(self.body).hexdigest()


def encode(*, seq: int, prev: str, time: int, kind: str, fields: Mapping[str, Any]) -> Entry:
    """Return an entry with its canonical body.

    Raises:
        ValueError: our own code has made an entry that breaks the form, or that `decode` would not read back: written,
            it would close the ledger for good.
    """
    document = {"v": VERSION, "seq": seq, "prev": prev, "time": time, "kind": kind, **fields}
    problem = form_problem(document)
    if problem:
        raise ValueError(f"{kind}: {problem}")
    body = rfc8785.dumps(document)
    try:
        decode(body, seq)
    except TamperedError as error:
        raise ValueError(f"{kind}: {error.problem}") from error
    return Entry(seq=seq, prev=prev, time=time, kind=kind, fields=dict(fields), body=body)


def decode(body: bytes, seq: int) -> Entry:
    """Read the body of entry `seq`.

    Raises:
        TamperedError: it is not exactly what `encode` writes.
    """
    if not isinstance(body, bytes) or len(body) > MAX_BODY_BYTES:
        raise TamperedError(seq, "the body is not bytes, or longer than an entry can be")
    try:
        document = parse_json(body, subject="entry")
        problem = form_problem(document)
    except PlanError as error:
        raise TamperedError(seq, str(error)) from error
    if problem or not isinstance(document, dict):
        raise TamperedError(seq, problem or "not an object")
    try:
        canonical = rfc8785.dumps(document)
    except rfc8785.CanonicalizationError as error:
        raise TamperedError(seq, "a number or text that canonical JSON cannot hold") from error
    if canonical != body:
        raise TamperedError(
            seq, "the body is not canonical JSON (RFC 8785): it was written by something else"
        )
    common = {name: document.pop(name) for name in COMMON}
    return Entry(
        seq=common["seq"],
        prev=common["prev"],
        time=common["time"],
        kind=common["kind"],
        fields=document,
        body=body,
    )


def form_problem(document: object) -> str:
    """Return what is wrong with the form of an entry's document; empty if nothing is."""
    if not isinstance(document, Mapping):
        return "not an object"
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        return f"kind is {kind!r:.60}, must be one of {', '.join(KINDS)}"
    checks = {**_COMMON_CHECKS, **KINDS[kind]}
    if set(document) != set(checks):
        odd = sorted(str(name) for name in set(document) ^ set(checks))
        return f"{kind}: fields that are missing or unknown: {', '.join(odd):.200}"
    broken = [name for name, check in checks.items() if not check(document[name])]
    return (
        f"{kind}: {broken[0]} is {document[broken[0]]!r:.60}, which its form does not allow" if broken else ""
    )


def is_exact(number: float) -> bool:
    """Return whether canonical JSON holds a number so that it reads back as the same.

    It writes whole numbers below 10^21 without a point or exponent, and reads those as integers, which end at 2^53.
    """
    return abs(number) <= MAX_INTEGER or (isinstance(number, float) and 1e21 <= abs(number) < math.inf)


def releases_of(values: object) -> tuple[Release, ...]:
    """Return the releases of an entry.

    Raises:
        PlanError: one is invalid.
    """
    if not isinstance(values, list):
        raise PlanError("releases", ["must be a list"])
    return tuple(Release.from_dict(value) for value in values)


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_INTEGER


def _number(value: object) -> bool:
    # Not `math.isfinite`, which raises for an integer of 400 digits.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _fraction(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _epsilon(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e6


def _matches(pattern: re.Pattern[str]) -> Check:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _text(most: int) -> Check:
    return lambda value: isinstance(value, str) and 1 <= len(value) <= most


def _one_of(*choices: object) -> Check:
    return lambda value: isinstance(value, str) and value in choices


def _list_of(check: Check, *, least: int, most: int) -> Check:
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(check, value))


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _object(fields: Mapping[str, Check]) -> Check:
    return lambda value: (
        isinstance(value, dict)
        and set(value) == set(fields)
        and all(check(value[name]) for name, check in fields.items())
    )


def _release(value: object) -> bool:
    try:
        Release.from_dict(value)
    except PlanError:
        return False
    return True


def _keys(value: object) -> bool:
    """Return whether a value is a sorted list of different public keys."""
    return (
        _list_of(_hash, least=0, most=16)(value) and isinstance(value, list) and value == sorted(set(value))
    )


def _cohorts(value: object) -> bool:
    """Return whether a value is a list of different cohorts in their order."""
    if not _list_of(_matches(_COHORT), least=1, most=100_000)(value) or not isinstance(value, list):
        return False
    numbers = [int(name[1:]) for name in value]
    return numbers == sorted(set(numbers))


def _constants(value: object) -> bool:
    """Return whether a value is a small object of plain constants."""
    return (
        isinstance(value, dict)
        and value.get("unit") == "patient"  # what is counted is spent on whole patients
        and len(value) <= 20
        and all(
            _text(60)(name) and (item is None or isinstance(item, bool) or _text(200)(item) or _number(item))
            for name, item in value.items()
        )
    )


def _libraries(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= 40
        and all(_text(60)(name) and _text(60)(item) for name, item in value.items())
    )


_hash = _matches(_HEX64)
_signature = _matches(_HEX128)
_order: Check = lambda value: _integer(value) and isinstance(value, int) and 2 <= value <= 1024  # noqa: E731
_releases = _list_of(_release, least=1, most=16)


def _rule(value: object) -> bool:
    """Return whether a value is one of the two rules of composition."""
    renyi = _object({"name": _one_of("renyi-filter"), "order": _order})
    fixed = _object({"name": _one_of("fixed-plan"), "schedule": _list_of(_release, least=1, most=200)})
    return renyi(value) or fixed(value)


_WORK: dict[str, Check] = {"run": _text(MAX_RUN), "round": _integer, "base": _hash}
_COMMON_CHECKS: dict[str, Check] = {
    "v": lambda value: _integer(value) and value == VERSION,
    "seq": _integer,
    "prev": _hash,
    "time": _integer,
    "kind": _text(40),
}

KINDS: dict[str, dict[str, Check]] = {
    "GENESIS": {
        "site": _text(100),
        "dataset": _hash,
        "unit": _one_of("patient"),
        "neighbouring": _one_of("add_remove"),
        "delta": _fraction,
        "cap": _epsilon,
        "rule": _rule,
        "key": _hash,
        "approvers": _keys,
        "claims": _one_of("dp", "seeded"),
        "cohort": _one_of("c0"),
        "roster": _hash,
        "libraries": _libraries,
    },
    "ROSTER": {"opens": _or_null(_matches(_COHORT)), "roster": _hash},
    "RESERVE": {
        **_WORK,
        "releases": _releases,
        "cohorts": _cohorts,
        "mechanism": _constants,
        "model": _hash,
        "policy": _hash,
        "randomness": _one_of("os", "seeded"),
        "run_cap": _or_null(_object({"delta": _fraction, "epsilon": _epsilon, "order": _order})),
    },
    "COMMIT": {"reserve": _integer, "steps": _list_of(_integer, least=1, most=16), "update": _hash},
    "REFUSE": {**_WORK, "code": _matches(_CODE)},
    "CAP_CHANGE": {
        "from": _epsilon,
        "to": _epsilon,
        "approvals": _list_of(_object({"key": _hash, "signature": _signature}), least=0, most=16),
    },
    "ROTATE_KEY": {"key": _hash, "proof": _signature},
    "MODEL_RELEASE": {
        "run": _text(MAX_RUN),
        "round": _integer,
        "model": _hash,
        "audience": _one_of("partners", "public"),
    },
    "INCIDENT": {"code": _matches(_CODE), "reference": _matches(_REFERENCE)},
}
"""Kind -> the check of each of its fields."""
