"""Heads and receipts: an honest one has no fault, and whatever is changed in it is named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privacy.entries import MAX_BODY_BYTES
from privacy.errors import PlanError
from privacy.heads import Fault, Head, Proven, Receipt, conflict, largest
from privacy.signing import generate_key
from tests.support.ledger_cases import Hospital, hospital, plan, work

UPDATE = "a" * 64


@pytest.fixture
def site(tmp_path: Path) -> Hospital:
    """A ledger of nine entries; rounds 1 to 4 are committed."""
    made = hospital(tmp_path)
    for number in (1, 2, 3, 4):
        made.pay(work(number), plan(0.1), UPDATE)
    return made


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Receipt, Head]:
    """A receipt for round 4, and the head of five entries that the receiver has kept."""
    made = hospital(tmp_path / "kept")
    made.pay(work(1), plan(0.1), UPDATE)
    made.pay(work(2), plan(0.1), UPDATE)
    known = made.ledger.head()
    made.pay(work(3), plan(0.1), UPDATE)
    made.pay(work(4), plan(0.1), UPDATE)
    return made.ledger.receipt(work(4), known), known


def fault_of(receipt: Receipt, known: Head | None, **changes: Any) -> Fault | None:
    """Return the fault for round 4 of the study."""
    wanted: dict[str, Any] = {"run": "study", "round_": 4, "base": work(4).base, "update": UPDATE}
    return receipt.fault(known=known, **(wanted | changes))


def test_an_honest_receipt_has_no_fault(kept: tuple[Receipt, Head]):
    receipt, known = kept
    assert (known.size, receipt.head.size, receipt.since) == (5, 9, 5)
    assert fault_of(receipt, known) is None
    assert fault_of(receipt, None) is None
    assert receipt.releases() == (plan(0.1).release(),)


def test_a_receipt_travels_as_json(kept: tuple[Receipt, Head]):
    receipt, known = kept
    travelled = Receipt.from_dict(json.loads(json.dumps(receipt.to_dict())))
    assert travelled == receipt
    assert fault_of(travelled, known) is None


@pytest.mark.parametrize(
    "change", [{"run": "other"}, {"round_": 3}, {"base": "0" * 64}, {"update": "b" * 64}]
)
def test_a_receipt_is_for_one_update_of_one_round(kept: tuple[Receipt, Head], change: dict[str, object]):
    assert fault_of(*kept, **change) is Fault.OTHER_WORK


def test_a_commit_of_another_round_is_of_other_work(site: Hospital):
    one, two = site.ledger.receipt(work(3)), site.ledger.receipt(work(4))
    assert fault_of(dataclasses.replace(two, commit=one.commit), None) is Fault.OTHER_WORK
    assert fault_of(dataclasses.replace(two, reserve=one.reserve), None) is Fault.OTHER_WORK


Change = Callable[[Receipt], Receipt]


def in_head(**changes: Any) -> Change:
    return lambda receipt: dataclasses.replace(receipt, head=dataclasses.replace(receipt.head, **changes))


def in_body(name: str, old: str, new: str) -> Change:
    """Change the text of an entry."""

    def change(receipt: Receipt) -> Receipt:
        proven: Proven = getattr(receipt, name)
        assert old in proven.body
        changed: Any = {name: dataclasses.replace(proven, body=proven.body.replace(old, new))}
        return dataclasses.replace(receipt, **changed)

    return change


def in_proof(name: str, edit: Callable[[tuple[str, ...]], tuple[str, ...]]) -> Change:
    """Change the proof of an entry."""

    def change(receipt: Receipt) -> Receipt:
        proven: Proven = getattr(receipt, name)
        changed: Any = {name: dataclasses.replace(proven, proof=edit(proven.proof))}
        return dataclasses.replace(receipt, **changed)

    return change


@pytest.mark.parametrize(
    "change",
    [
        in_head(dataset="f" * 64),
        in_head(root="f" * 64),
        in_head(size=10),
        in_head(time=0),
        in_head(tip="f" * 64),
        in_head(key="f" * 64),
        in_head(key=generate_key().public),
        in_head(signature=""),
        in_head(signature="0" * 128),
        in_body("reserve", '"study"', '"other"'),
        in_body("reserve", '"round":4', '"round":5'),
        in_body("reserve", '"steps":4', '"steps":1'),
        in_body("reserve", '"seq":7', '"seq":5'),
        in_body("reserve", '"kind":"RESERVE"', '"kind":"COMMIT"'),
        in_body("reserve", "{", "{ "),
        in_body("commit", UPDATE, "b" * 64),
        in_body("commit", '"reserve":7', '"reserve":5'),
        in_body("commit", '"steps":[4]', '"steps":[0]'),
        in_proof("reserve", lambda proof: proof[1:]),
        in_proof("reserve", lambda proof: (*proof, "0" * 64)),
        in_proof("commit", lambda proof: ("0" * 64, *proof[1:])),
        in_proof("commit", lambda _: ()),
        lambda receipt: dataclasses.replace(receipt, reserve=receipt.commit),
        lambda receipt: dataclasses.replace(receipt, commit=receipt.reserve),
    ],
)
def test_every_field_of_head_and_entries_is_bound(kept: tuple[Receipt, Head], change: Change):
    receipt, known = kept
    changed = change(receipt)
    assert changed != receipt
    assert fault_of(changed, known) is Fault.INVALID


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        "{" * 5000,
        "[" * 100_000,
        "\ud800",
        '{"seq":NaN}',
        "x" * (MAX_BODY_BYTES + 1),
        '{"kind":"RESERVE","kind":"COMMIT"}',
    ],
)
def test_a_body_that_is_no_entry_is_invalid(kept: tuple[Receipt, Head], body: str):
    receipt, known = kept
    assert fault_of(dataclasses.replace(receipt, reserve=Proven(body=body, proof=())), known) is Fault.INVALID


def test_a_number_beyond_every_float_is_invalid_and_not_an_error(kept: tuple[Receipt, Head]):
    # A site chooses what it sends: an integer of 400 digits must not stop the server's round.
    receipt, known = kept
    body = receipt.reserve.body.replace('"divisor":10', f'"divisor":{"9" * 400}')
    assert body != receipt.reserve.body
    spoiled = dataclasses.replace(receipt, reserve=dataclasses.replace(receipt.reserve, body=body))
    assert fault_of(spoiled, known) is Fault.INVALID


def test_a_ledger_that_is_smaller_than_the_kept_head_was_rolled_back(site: Hospital, kept):
    receipt, _ = kept
    larger = dataclasses.replace(receipt.head, size=10)
    assert fault_of(receipt, larger) is Fault.ROLLED_BACK


@pytest.mark.parametrize(
    "change",
    [
        lambda receipt: dataclasses.replace(receipt, since=4),
        lambda receipt: dataclasses.replace(receipt, since=9),
        lambda receipt: dataclasses.replace(receipt, consistency=()),
        lambda receipt: dataclasses.replace(receipt, consistency=receipt.consistency[1:]),
        lambda receipt: dataclasses.replace(receipt, consistency=(*receipt.consistency, "0" * 64)),
        lambda receipt: dataclasses.replace(receipt, consistency=("0" * 64, *receipt.consistency[1:])),
    ],
)
def test_without_the_proof_of_growth_a_ledger_is_another(kept: tuple[Receipt, Head], change: Change):
    receipt, known = kept
    assert fault_of(change(receipt), known) is Fault.FORKED


def test_a_kept_head_of_another_ledger_is_a_fork(kept: tuple[Receipt, Head]):
    receipt, known = kept
    assert fault_of(receipt, dataclasses.replace(known, root="f" * 64)) is Fault.FORKED
    assert fault_of(receipt, dataclasses.replace(known, dataset="f" * 64)) is Fault.FORKED


def test_a_ledger_written_anew_with_the_same_key_is_a_fork(tmp_path: Path):
    one, two = hospital(tmp_path / "one"), hospital(tmp_path / "two")
    one.pay(work(1), plan(0.1), UPDATE)
    for number in (1, 2, 3, 4):
        two.pay(work(number), plan(0.2), UPDATE)
    known = one.ledger.head()
    assert known.dataset == two.ledger.head().dataset
    assert fault_of(two.ledger.receipt(work(4), known), known) is Fault.FORKED
    lying = dataclasses.replace(two.ledger.receipt(work(4), two.ledger.head()), since=known.size)
    assert fault_of(lying, known) is Fault.FORKED


def test_the_same_head_twice_needs_no_proof(site: Hospital):
    head = site.ledger.head()
    receipt = site.ledger.receipt(work(4), head)
    assert (receipt.since, receipt.consistency) == (9, ())
    assert fault_of(receipt, head) is None
    assert fault_of(site.ledger.receipt(work(4)), head) is None  # shown none, and it is the very head


# --- form -------------------------------------------------------------------------------------------------


def test_a_head_travels_as_json_and_is_signed(site: Hospital):
    head = site.ledger.head()
    assert Head.from_dict(json.loads(json.dumps(head.to_dict()))) == head
    assert head.is_signed()
    assert not dataclasses.replace(head, signature="").is_signed()
    assert set(head.statement()) == {"dataset", "root", "size", "time", "tip"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dataset": "F" * 64}, "dataset must be 64 hexadecimal digits"),
        ({"root": "f" * 63}, "root must be 64"),
        ({"tip": None}, "tip must be 64"),
        ({"key": "g" * 64}, "key must be 64"),
        ({"key": "٣" * 64}, "key must be 64"),
        ({"size": 0}, "size must be a whole number >= 1"),
        ({"size": True}, "size must be a whole number >= 1"),
        ({"size": 2**53}, "size must be a whole number >= 1"),
        ({"size": 1.0}, "size must be a whole number >= 1"),
        ({"time": -1}, "time must be a whole number >= 0"),
        ({"signature": "0" * 127}, "signature must be 128 hexadecimal digits"),
        ({"signature": 5}, "signature must be 128 hexadecimal digits"),
        ({"name": "x"}, "'name' is unknown"),
    ],
)
def test_a_head_of_another_form_is_refused(site: Hospital, change: dict[str, object], named: str):
    with pytest.raises(PlanError, match=f"^ledger head: {named}"):
        Head.from_dict({**site.ledger.head().to_dict(), **change})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"since": -1}, "since must be a whole number >= 0"),
        ({"since": True}, "since must be a whole number >= 0"),
        ({"since": "5"}, "since must be a whole number >= 0"),
        ({"consistency": ["0" * 64] * 65}, "proofs must be lists of at most 64 hashes"),
        ({"consistency": ["0" * 63]}, "proofs must be lists of at most 64 hashes"),
        ({"consistency": "0" * 64}, "proofs must be lists of text"),
        ({"consistency": [5]}, "proofs must be lists of text"),
        ({"consistency": None}, "proofs must be lists of text"),
        ({"reserve": None}, "must be a mapping"),
        ({"reserve": {"body": 5, "proof": []}}, "body must be text"),
        ({"reserve": {"body": "x"}}, "proof is missing"),
        ({"commit": {"body": "x"}}, "proof is missing"),
        ({"commit": {"body": "x", "proof": ["zz"]}}, "proofs must be lists of at most 64 hashes"),
        ({"head": {}}, "dataset is missing"),
        ({"count": 5}, "'count' is unknown"),
    ],
)
def test_a_receipt_of_another_form_is_refused(kept, change: dict[str, object], named: str):
    subject = "ledger head" if "head" in change else "receipt"
    with pytest.raises(PlanError, match=f"^{subject}: {named}"):
        Receipt.from_dict({**kept[0].to_dict(), **change})


def test_proofs_are_no_longer_than_any_ledger_needs(kept: tuple[Receipt, Head]):
    document, most = kept[0].to_dict(), ("0" * 64,) * 64
    assert Receipt.from_dict({**document, "consistency": most}).consistency == most
    for name in ("reserve", "commit"):
        assert Receipt.from_dict({**document, name: {"body": "x", "proof": most}})
        with pytest.raises(PlanError, match="at most 64 hashes"):
            Receipt.from_dict({**document, name: {"body": "x", "proof": (*most, "0" * 64)}})


def test_the_largest_head_and_what_contradicts_it(site: Hospital):
    head = site.ledger.head()
    older = dataclasses.replace(head, size=3)
    assert largest([older, head]) == head
    assert largest([]) is None
    other = dataclasses.replace(head, root="f" * 64)
    assert conflict(head, other) == "ledger-forked"
    for same in (
        head,
        older,
        dataclasses.replace(other, size=8),
        dataclasses.replace(other, dataset="f" * 64),
    ):
        assert conflict(head, same) is None
