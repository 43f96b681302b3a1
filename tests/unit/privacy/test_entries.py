"""The form of entries: one way to write each, exactly the fields of its kind, and no field for a patient."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from privacy import entries
from privacy.entries import (
    KINDS,
    MAX_BODY_BYTES,
    NO_HASH,
    decode,
    encode,
    is_exact,
    releases_of,
)
from privacy.errors import PlanError, TamperedError

HASH, SIGNATURE = "ab" * 32, "cd" * 64
RELEASE = {
    "neighbouring": "add_remove", "noise_multiplier": 1.5, "sampler": "poisson", "sampling_probability": 0.1,
    "steps": 4,
}  # fmt: skip
WORK = {"run": "study", "round": 3, "base": HASH}
EXAMPLES: dict[str, dict[str, Any]] = {
    "GENESIS": {
        "site": "hospital", "dataset": HASH, "unit": "patient", "neighbouring": "add_remove", "delta": 1e-5,
        "cap": 8, "rule": {"name": "renyi-filter", "order": 4}, "key": HASH, "approvers": ["0" * 64, HASH],
        "claims": "dp", "cohort": "c0", "roster": HASH, "libraries": {"torch": "2.11"},
    },
    "ROSTER": {"opens": "c1", "roster": HASH},
    "RESERVE": {
        **WORK, "releases": [RELEASE], "cohorts": ["c0", "c2", "c10"],
        "mechanism": {"divisor": 10, "unit": "patient", "clip": 1.5, "none": None, "flag": True}, "model": HASH,
        "policy": HASH, "randomness": "os", "run_cap": {"delta": 1e-5, "epsilon": 3, "order": 8},
    },
    "COMMIT": {"reserve": 1, "steps": [4, 0], "update": HASH},
    "REFUSE": {**WORK, "code": "budget-exhausted"},
    "CAP_CHANGE": {"from": 8, "to": 9.5, "approvals": [{"key": HASH, "signature": SIGNATURE}]},
    "ROTATE_KEY": {"key": HASH, "proof": SIGNATURE},
    "MODEL_RELEASE": {"run": "study", "round": 3, "model": HASH, "audience": "public"},
    "INCIDENT": {"code": "drill", "reference": "INC-42_a.b"},
}  # fmt: skip


def document(kind: str, /, **changes: Any) -> dict[str, Any]:
    return {"v": 1, "seq": 5, "prev": HASH, "time": 100, "kind": kind, **EXAMPLES[kind]} | changes


def body(kind: str, /, **changes: Any) -> bytes:
    return rfc8785.dumps(document(kind, **changes))


def test_there_is_an_example_of_each_kind():
    assert set(EXAMPLES) == set(KINDS)
    for kind, example in EXAMPLES.items():
        assert set(example) == set(KINDS[kind])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_written_is_read_back(kind: str):
    made = encode(seq=5, prev=HASH, time=100, kind=kind, fields=EXAMPLES[kind])
    assert made.body == body(kind)
    read = decode(made.body, 5)
    assert read == made
    assert (read.seq, read.prev, read.time, read.kind) == (5, HASH, 100, kind)
    assert read.fields == EXAMPLES[kind]
    assert read.digest == hashlib.sha256(made.body).hexdigest()


def test_one_entry_byte_by_byte():
    """An old ledger has to stay readable: this text, and its hash, are for good."""
    made = encode(
        seq=7,
        prev=NO_HASH,
        time=1_700_000_000,
        kind="REFUSE",
        fields={"run": "é\n", "round": 3, "base": "0" * 64, "code": "off-plan"},
    )
    assert made.body == (
        b'{"base":"' + b"0" * 64 + b'","code":"off-plan","kind":"REFUSE","prev":"' + b"0" * 64
        + b'","round":3,"run":"\xc3\xa9\\n","seq":7,"time":1700000000,"v":1}'
    )  # fmt: skip
    assert made.digest == "ab3186f2163d5594698ea4854163e273a0455f3c234809fbde2f2ac497602376"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_field_is_needed_and_no_other_is_taken(kind: str):
    for name in document(kind):
        missing = {key: value for key, value in document(kind).items() if key != name}
        with pytest.raises(TamperedError, match=r"kind is None|missing or unknown: .*" + name):
            decode(rfc8785.dumps(missing), 5)
    with pytest.raises(TamperedError, match="missing or unknown: patients"):
        decode(body(kind, patients=12), 5)


@pytest.mark.parametrize("value", [None, True, -1, -0.5, ["x"], {"a": [1]}, "x" * 201, "\x00é" * 101])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_field_of_another_type_is_named(kind: str, value: Any):
    for name in document(kind):
        if value is None and (kind, name) in (("ROSTER", "opens"), ("RESERVE", "run_cap")):
            continue
        with pytest.raises(
            TamperedError, match=rf"{name} is .*, (must be one of|which its form does not allow)"
        ):
            decode(body(kind, **{name: value}), 5)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("GENESIS", {"v": 2}),
        ("GENESIS", {"unit": "record"}),
        ("GENESIS", {"neighbouring": "replace_one"}),
        ("GENESIS", {"delta": 0}),
        ("GENESIS", {"delta": 1}),
        ("GENESIS", {"cap": 1e6 + 1}),
        ("GENESIS", {"approvers": [HASH, "0" * 64]}),
        ("GENESIS", {"approvers": [HASH, HASH]}),
        ("GENESIS", {"approvers": [f"{number:064x}" for number in range(17)]}),
        ("GENESIS", {"rule": {"name": "renyi-filter", "order": 1}}),
        ("GENESIS", {"rule": {"name": "renyi-filter", "order": 1025}}),
        ("GENESIS", {"rule": {"name": "renyi-filter", "order": 4, "schedule": []}}),
        ("GENESIS", {"rule": {"name": "fixed-plan", "schedule": []}}),
        ("GENESIS", {"rule": {"name": "fixed-plan", "schedule": [RELEASE] * 201}}),
        ("GENESIS", {"rule": {"name": "trust-me"}}),
        ("GENESIS", {"cohort": "c1"}),
        ("GENESIS", {"claims": "none"}),
        ("GENESIS", {"key": HASH.upper()}),
        ("GENESIS", {"libraries": {str(number): "1" for number in range(41)}}),
        ("GENESIS", {"site": "x" * 101}),
        ("ROSTER", {"opens": "c01"}),
        ("ROSTER", {"opens": "c-1"}),
        ("ROSTER", {"opens": "c1\n"}),
        ("RESERVE", {"releases": []}),
        ("RESERVE", {"releases": [RELEASE] * 17}),
        ("RESERVE", {"releases": [{**RELEASE, "noise_multiplier": 0}]}),
        ("RESERVE", {"releases": [{**RELEASE, "noise_multiplier": -1}]}),
        ("RESERVE", {"releases": [{**RELEASE, "noise_multiplier": "1"}]}),
        ("RESERVE", {"releases": [{**RELEASE, "sampling_probability": 1.1}]}),
        ("RESERVE", {"releases": [{**RELEASE, "steps": 1_000_001}]}),
        ("RESERVE", {"releases": [{**RELEASE, "epsilon": 0.1}]}),
        ("RESERVE", {"cohorts": []}),
        ("RESERVE", {"cohorts": ["c2", "c1"]}),
        ("RESERVE", {"cohorts": ["c1", "c1"]}),
        ("RESERVE", {"cohorts": ["c10", "c2"]}),
        ("RESERVE", {"mechanism": {"unit": "patient"} | {str(number): 1 for number in range(20)}}),
        ("RESERVE", {"mechanism": {"unit": "patient", "patients": ["anna"]}}),
        ("RESERVE", {"mechanism": {"unit": "patient", "note": "x" * 201}}),
        ("RESERVE", {"mechanism": {"unit": "patient", "x" * 61: 1}}),
        ("RESERVE", {"mechanism": {"divisor": 10}}),
        ("RESERVE", {"mechanism": {"unit": "record"}}),
        ("RESERVE", {"randomness": "dice"}),
        ("RESERVE", {"run_cap": {"delta": 1e-5, "epsilon": 3}}),
        ("RESERVE", {"run_cap": {"delta": 1e-5, "epsilon": -1, "order": 8}}),
        ("RESERVE", {"run": "x" * 201}),
        ("COMMIT", {"steps": []}),
        ("COMMIT", {"steps": [-1]}),
        ("COMMIT", {"update": HASH[:-1]}),
        ("REFUSE", {"code": "Budget"}),
        ("REFUSE", {"code": "x" * 41}),
        ("CAP_CHANGE", {"to": -1}),
        ("CAP_CHANGE", {"approvals": [{"key": HASH, "signature": SIGNATURE}] * 17}),
        ("CAP_CHANGE", {"approvals": [{"key": HASH}]}),
        ("MODEL_RELEASE", {"audience": "everybody"}),
        ("INCIDENT", {"reference": "Anna Müller"}),
        ("INCIDENT", {"reference": "x" * 41}),
    ],
)
def test_a_value_out_of_its_range_is_refused(kind: str, changes: dict[str, Any]):
    with pytest.raises(TamperedError, match="which its form does not allow"):
        decode(body(kind, **changes), 5)
    with pytest.raises(ValueError, match="which its form does not allow"):
        encode(seq=5, prev=HASH, time=100, kind=kind, fields={**EXAMPLES[kind], **changes})


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("GENESIS", {"delta": 5e-324}),
        ("GENESIS", {"cap": 0}),
        ("GENESIS", {"cap": 1e6}),
        ("GENESIS", {"approvers": []}),
        ("GENESIS", {"approvers": [f"{number:064x}" for number in range(16)]}),
        ("GENESIS", {"rule": {"name": "renyi-filter", "order": 2}}),
        ("GENESIS", {"rule": {"name": "renyi-filter", "order": 1024}}),
        ("GENESIS", {"rule": {"name": "fixed-plan", "schedule": [RELEASE]}}),
        ("GENESIS", {"rule": {"name": "fixed-plan", "schedule": [RELEASE] * 200}}),
        ("GENESIS", {"libraries": {}}),
        ("GENESIS", {"libraries": {f"{number:060}": "1" * 60 for number in range(40)}}),
        ("GENESIS", {"site": "x"}),
        ("GENESIS", {"site": "x" * 100}),
        ("RESERVE", {"releases": [RELEASE] * 16}),
        ("RESERVE", {"cohorts": ["c0"]}),
        ("RESERVE", {"cohorts": ["c2", "c10", "c999999999"]}),
        ("RESERVE", {"mechanism": {"unit": "patient"} | {f"{number:060}": 1 for number in range(19)}}),
        ("RESERVE", {"mechanism": {"unit": "patient", "note": "x" * 200, "least": -1, "flag": False}}),
        ("RESERVE", {"mechanism": {"unit": "patient", "most": sys.float_info.max}}),
        ("RESERVE", {"run": "x" * 200, "round": 2**53 - 1}),
        ("RESERVE", {"run_cap": {"delta": 1e-5, "epsilon": 0, "order": 8}}),
        ("COMMIT", {"steps": [0], "reserve": 0}),
        ("COMMIT", {"steps": [1] * 16}),
        ("CAP_CHANGE", {"to": 0, "approvals": []}),
        ("INCIDENT", {"code": "x" * 40, "reference": "x" * 40}),
        ("INCIDENT", {"code": "x", "reference": ""}),
    ],
)
def test_a_value_at_the_edge_of_its_range_is_taken(kind: str, changes: dict[str, Any]):
    assert decode(body(kind, **changes), 5).fields == {**EXAMPLES[kind], **changes}


def test_cohorts_are_no_more_than_a_hundred_thousand():
    names = [f"c{number}" for number in range(100_001)]
    assert entries._cohorts(names[1:])
    assert not entries._cohorts(names)


@pytest.mark.parametrize(
    "changes",
    [
        {"libraries": {"x" * 61: "1"}},
        {"libraries": {"": "1"}},
        {"libraries": {"x": ""}},
        {"libraries": {"x": "1" * 61}},
    ],
)
def test_names_of_libraries_are_short_texts(changes: dict[str, Any]):
    with pytest.raises(TamperedError, match=r"libraries is .*, which its form does not allow"):
        decode(body("GENESIS", **changes), 5)


_EVEN: entries.Check = lambda value: value in (2, 4)  # noqa: E731


@pytest.mark.parametrize(
    ("make", "taken", "refused"),
    [
        (lambda: entries._text(3), ["a", "abc"], ["", "abcd", 5, None, ["a"]]),
        (lambda: entries._matches(re.compile("ab?")), ["a", "ab"], ["", "abb", "xab", b"ab", None]),
        (lambda: entries._one_of("a", "b"), ["a", "b"], ["", "c", "ab", None, ["a"]]),
        (
            lambda: entries._list_of(_EVEN, least=1, most=2),
            [[2], [2, 4]],
            [[], [2, 2, 2], [2, 3], (2,), None],
        ),
        (lambda: entries._or_null(_EVEN), [None, 2], [3, ""]),
        (
            lambda: entries._object({"a": _EVEN, "b": _EVEN}),
            [{"a": 2, "b": 4}],
            [{}, {"a": 2}, {"a": 2, "b": 3}, {"a": 3, "b": 2}, {"a": 2, "b": 2, "c": 2}, [("a", 2)], None],
        ),
    ],
)
def test_what_forms_are_made_of(
    make: Callable[[], entries.Check], taken: list[object], refused: list[object]
):
    check = make()
    assert [check(value) for value in taken] == [True] * len(taken)
    assert [check(value) for value in refused] == [False] * len(refused)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b"{}",
        b"{",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"kind":"REFUSE"}',
        b'{"kind":["REFUSE"]}',
        b'{"a":NaN}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"x" * (MAX_BODY_BYTES + 1),
    ],
)
def test_what_is_no_entry_is_refused(text: bytes):
    with pytest.raises(TamperedError, match="ledger, entry 9: "):
        decode(text, 9)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"[]", "not an object"),
        (b"x" * MAX_BODY_BYTES, "entry: "),
        (b"x" * (MAX_BODY_BYTES + 1), "the body is not bytes, or longer than an entry can be"),
        (
            b'{"kind":"X"}',
            "kind is 'X', must be one of GENESIS, ROSTER, RESERVE, COMMIT, REFUSE, CAP_CHANGE, ",
        ),
        (
            b'{"kind":"ROSTER","v":1}',
            "ROSTER: fields that are missing or unknown: opens, prev, roster, seq, time",
        ),
        (
            body("INCIDENT") + b"\n",
            "the body is not canonical JSON (RFC 8785): it was written by something else",
        ),
        (
            body("GENESIS").replace(b"hospital", b"\\ud800"),
            "a number or text that canonical JSON cannot hold",
        ),
    ],
)
def test_what_is_wrong_is_said_of_the_entry(text: bytes, problem: str):
    with pytest.raises(TamperedError, match=re.escape(f"ledger, entry 9: {problem}")) as caught:
        decode(text, 9)
    assert caught.value.entry == 9


@pytest.mark.parametrize("delta", [0.0, 1.0, 1.5])
def test_delta_is_a_probability(delta: float):
    with pytest.raises(ValueError, match=f"delta is {delta}, which its form does not allow"):
        encode(seq=5, prev=HASH, time=100, kind="GENESIS", fields=EXAMPLES["GENESIS"] | {"delta": delta})


@pytest.mark.parametrize("text", [None, "{}", 5, bytearray(b"{}")])
def test_what_is_not_bytes_is_refused(text: Any):
    with pytest.raises(TamperedError, match="the body is not bytes"):
        decode(text, 9)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b":8,", b":8.0,"),
        (b":8,", b": 8,"),
        (b":8,", b":8e0,"),
        (b"0.00001", b"1e-5"),
        (b"hospital", b"h\\u006fspital"),
        (b'"v":1}', b'"v":1}\n'),
        (b'{"approvers"', b'{"v":1,"approvers"'),
        (b'"cap":8,"claims":"dp"', b'"claims":"dp","cap":8'),
        (b"hospital", b"\\ud800"),
        (b"hospital", b"hosp\xffital"),
    ],
)
def test_there_is_one_way_to_write_an_entry(old: bytes, new: bytes):
    written = body("GENESIS", site="hospital")
    assert written.count(old) == 1
    with pytest.raises(TamperedError):
        decode(written.replace(old, new), 5)


def test_a_number_beyond_every_float_is_refused_as_any_other():
    written = body("RESERVE").replace(b'"divisor":10', b'"divisor":' + b"9" * 400)
    with pytest.raises(TamperedError, match="mechanism is"):
        decode(written, 5)
    for digits in (b"9" * 5000, b"1e999", b"9007199254740992"):
        with pytest.raises(TamperedError):
            decode(body("RESERVE").replace(b'"divisor":10', b'"divisor":' + digits), 5)


def test_a_value_that_json_does_not_have_is_refused_by_its_field():
    with pytest.raises(ValueError, match=r"ROSTER: roster is \{'x'\}, which its form does not allow$"):
        encode(seq=5, prev=HASH, time=100, kind="ROSTER", fields={"opens": None, "roster": {"x"}})


def test_an_entry_that_could_not_be_read_back_is_not_made():
    fields = EXAMPLES["RESERVE"]
    for mechanism in ({"divisor": 1e20}, {"divisor": 2.0**53}, {"divisor": 2**53}, {"note": "\ud800"}):
        changed = {**fields, "mechanism": {"unit": "patient", **mechanism}}
        with pytest.raises(ValueError, match=r"canonical|safe integer|UTF-8"):
            encode(seq=5, prev=HASH, time=100, kind="RESERVE", fields=changed)
    many = [f"c{number}" for number in range(100_000)]
    with pytest.raises(ValueError, match="longer than an entry can be"):
        encode(seq=5, prev=HASH, time=100, kind="RESERVE", fields={**fields, "cohorts": many})


def test_a_noise_that_has_an_exponent_is_written_and_read():
    for noise in (1e21, 1e308, 5e-324, 2.0**53 - 1):
        fields = {**EXAMPLES["RESERVE"], "releases": [{**RELEASE, "noise_multiplier": noise}]}
        made = encode(seq=5, prev=HASH, time=100, kind="RESERVE", fields=fields)
        assert releases_of(decode(made.body, 5).fields["releases"])[0].noise_multiplier == noise


@given(
    st.one_of(st.floats(), st.integers(), st.sampled_from([2.0**53, 2**53 - 1, 1e21, 1e20, 10**21, 10**400]))
)
def test_what_is_exact_is_what_canonical_json_reads_back(number: float):
    try:
        text = rfc8785.dumps(number)
        same = rfc8785.dumps(json.loads(text)) == text
    except (rfc8785.CanonicalizationError, OverflowError):
        same = False
    assert is_exact(number) == same


def test_what_is_not_finite_is_not_exact():
    assert not any(is_exact(number) for number in (math.nan, math.inf, -math.inf))


def test_releases_of_an_entry_are_a_list_of_releases():
    assert releases_of([RELEASE])[0].steps == 4
    with pytest.raises(PlanError, match="releases: must be a list"):
        releases_of({"steps": 4})
    with pytest.raises(PlanError, match="steps is missing"):
        releases_of([{name: value for name, value in RELEASE.items() if name != "steps"}])


@given(
    st.sampled_from(sorted(KINDS)),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=4)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    st.data(),
)
def test_whatever_json_stands_in_a_field_the_entry_is_read_or_refused(
    kind: str, value: Any, data: st.DataObject
):
    name = data.draw(st.sampled_from(sorted(document(kind))))
    text = json.dumps(
        document(kind, **{name: value}), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        return
    try:
        read = decode(raw, 5)
    except TamperedError:
        return
    assert read.body == raw
    assert encode(seq=read.seq, prev=read.prev, time=read.time, kind=read.kind, fields=read.fields) == read
