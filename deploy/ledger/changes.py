"""The verbs that write: cap, key, incidents, models that left. Everything is checked before anything is written.

Raising the cap takes three steps, so that two people can take part who never meet: `request_cap` writes what is to be
signed, each approver signs it with `approve` on a machine of their own, and `set_cap` takes both approvals. An approval
is good for one change, of one ledger, after one entry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.ledger.failures import UnmetError, UsageError
from deploy.ledger.opening import as_json, last_entry, open_ledger, read_json, read_key, write_new
from deploy.ledger.standing import policy_notes
from deploy.ledger.wording import exact, name, short
from deploy.problems import nearest
from privacy.administration import cap_request, change_cap, note_incident, release_model
from privacy.entries import KINDS, Entry
from privacy.errors import PlanError
from privacy.fields import require_fields
from privacy.filters import FixedPlan
from privacy.ledger import Ledger
from privacy.signing import create_key, verify

PURPOSE = "cap-change"
MAX_CAP = 1e6
STATEMENT = ("dataset", "from", "prev", "to")


def request_cap(site: Path, cap: float, out: Path) -> float:
    """Write what two approvers have to sign to raise the cap; return the cap in force.

    Raises:
        UsageError: the cap is not higher, or the file is there already.
        UnmetError: nobody may raise this cap.
        PrivacyError: the ledger cannot be read.
    """
    with open_ledger(site) as (_, ledger):
        current = _current(ledger, cap)
        if cap < current:
            raise UsageError(f"--to {exact(cap)}: lowering the cap needs no approval; leave --request out")
        _require_can_be_raised(ledger)
        statement = cap_request(ledger, cap)
    write_new(out, as_json({"purpose": PURPOSE, "statement": statement}))
    return current


def approve(request: Path, key: Path, out: Path) -> Mapping[str, Any]:
    """Sign a request with an approver's key; return what was signed.

    Raises:
        UsageError: the file is no request, there is no such key, or `out` is there already.
        SigningError: the key cannot be used.
    """
    statement = _statement(read_json(request), request, names=("purpose", "statement"))
    signer = read_key(key, "give the one that `ledger keygen` made for you")
    signed = {"key": signer.public, "signature": signer.sign(PURPOSE, statement), "statement": statement}
    write_new(out, as_json(signed))
    return statement


def set_cap(
    site: Path, cap: float, approvals: Sequence[Path], *, confirmed: bool
) -> tuple[Entry, tuple[str, ...]]:
    """Change the cap: lower it freely, raise it with two approvals.

    Args:
        site: The hospital's file.
        cap: New epsilon.
        approvals: What `approve` wrote.
        confirmed: Whether a fixed schedule may be ended.

    Returns:
        What was written, and what to do where the hospital's file allows less.

    Raises:
        UsageError: the cap is no such number, or no other than now.
        UnmetError: it may not be raised so; names each approval that does not count.
        PrivacyError: the ledger or its key cannot be used.
    """
    with open_ledger(site, writing=True) as (config, ledger):
        signed: list[dict[str, str]] = []
        if cap < _current(ledger, cap):
            _require_can_be_lowered(ledger, cap, approvals, confirmed=confirmed)
        else:
            _require_can_be_raised(ledger)
            signed = [_approval(ledger, cap, path) for path in approvals]
            keys = [each["key"] for each in signed]
            if len(keys) < 2 or len(set(keys)) < len(keys):
                raise UnmetError(
                    f"--to {exact(cap)}: raising the cap takes approvals by two different approvers, each given once; "
                    "write a request with --request FILE and have both sign it: ledger approve --request FILE"
                )
        change_cap(ledger, cap, signed)
        return last_entry(ledger), tuple(policy_notes(config, site, ledger.state()))


def rotate(site: Path, new_key: Path) -> tuple[Entry, str]:
    """Let another key take over, making it where it is missing; return what was written, and its public part.

    Raises:
        UnmetError: the key was in force before.
        PrivacyError: the ledger or one of the keys cannot be used.
    """
    with open_ledger(site, writing=True) as (_, ledger):
        key = create_key(new_key) if not new_key.exists() else read_key(new_key, "")
        if key.public in ledger.state().keys:
            raise UnmetError(
                f"{new_key}: this key has signed the ledger before; one that was given up never comes back: name a new "
                "file"
            )
        ledger.rotate_key(key)
        return last_entry(ledger), key.public


def report_incident(site: Path, code: str, reference: str) -> Entry:
    """Write down an incident, and return its entry.

    Raises:
        UsageError: code or reference has another form.
        PrivacyError: the ledger or its key cannot be used.
    """
    _require_form("INCIDENT", "code", code, "must be small letters and hyphens, at most 40, such as key-lost")
    rule = "must be a ticket's number: letters, digits, dot, hyphen, underscore, at most 40; never a name"
    _require_form("INCIDENT", "reference", reference, rule)
    with open_ledger(site, writing=True) as (_, ledger):
        note_incident(ledger, code, reference)
        return last_entry(ledger)


def report_release(site: Path, *, run: str, round_: int, model: str, audience: str) -> Entry:
    """Write down that a model has left, and return its entry.

    Raises:
        UsageError: the ledger knows no such study, or a value has another form.
        PrivacyError: the ledger or its key cannot be used.
    """
    rule = "must be the SHA-256 of the weights: 64 hexadecimal digits in lower case"
    _require_form("MODEL_RELEASE", "model", model, rule)
    _require_form("MODEL_RELEASE", "round", round_, "must be the number of a round, 0 or more")
    with open_ledger(site, writing=True) as (_, ledger):
        runs = sorted({work.run for work in ledger.state().reservations})
        if run not in runs:
            near = nearest(run, runs)
            known = (
                f"did you mean `{name(near)}`?" if near else f"of those it has {len(runs)}: see `ledger show`"
            )
            raise UsageError(f"--run {name(run)}: no such study was paid for in this ledger; {known}")
        release_model(ledger, run=run, round_=round_, model=model, audience=audience)
        return last_entry(ledger)


def _current(ledger: Ledger, cap: float) -> float:
    """Return the cap in force, refusing a change that is none."""
    if not (math.isfinite(cap) and 0 <= cap <= MAX_CAP):
        raise UsageError(f"--to {cap}: must be an epsilon from 0 (nothing more may be spent) to {MAX_CAP:g}")
    current = ledger.state().cap
    if cap == current:
        raise UsageError(f"--to {exact(cap)}: that is the cap in force already; there is nothing to change")
    return current


def _require_can_be_lowered(
    ledger: Ledger, cap: float, approvals: Sequence[Path], *, confirmed: bool
) -> None:
    """Refuse to lower a cap with what does not belong to it, or to end a schedule by mistake."""
    if approvals:
        raise UsageError(f"--to {exact(cap)}: lowering the cap needs no approval; leave --approval out")
    if isinstance(ledger.state().genesis.rule, FixedPlan) and not confirmed:
        raise UsageError(
            f"--to {exact(cap)}: lowering the cap of a fixed schedule ends it for good, and nothing more can run on "
            "these patients; add --yes if that is meant"
        )


def _require_can_be_raised(ledger: Ledger) -> None:
    """Refuse to raise a cap that nobody may raise."""
    genesis = ledger.state().genesis
    if isinstance(genesis.rule, FixedPlan):
        raise UnmetError(
            "cap: that of a fixed schedule can never be raised, for its promise was made for that schedule; other "
            "patients need a ledger of their own"
        )
    if len(genesis.approvers) < 2:
        raise UnmetError(
            f"cap: it can never be raised, for that takes two approvers and entry 0 names {len(genesis.approvers)}; "
            "other patients need a ledger of their own"
        )


def _approval(ledger: Ledger, cap: float, path: Path) -> dict[str, str]:
    """Return key and signature of an approval that counts.

    Raises:
        UsageError: the file is no approval.
        UnmetError: it does not count; says why.
    """
    content = read_json(path)
    signed = _statement(content, path, names=("key", "signature", "statement"))
    wanted = cap_request(ledger, cap)
    if signed != wanted:
        reasons = {
            "dataset": "it is for another ledger",
            "from": "the cap was changed since the request",
            "to": f"it approves epsilon {exact(signed['to'])}, not {exact(cap)}",
            "prev": "an entry was written since the request, and an approval is good for one place only",
        }
        reason = next(why for field, why in reasons.items() if signed[field] != wanted[field])
        raise UnmetError(f"{path}: {reason}; write a new request and have it signed")
    key, signature = str(content["key"]), str(content["signature"])
    if key not in ledger.state().genesis.approvers:
        raise UnmetError(
            f"{path}: {name(short(key))} is no approver of this ledger; entry 0 names them for good"
        )
    if not verify(key, signature, PURPOSE, wanted):
        raise UnmetError(f"{path}: the signature is not that of its key; have it signed again")
    return {"key": key, "signature": signature}


def _statement(content: object, path: Path, *, names: Sequence[str]) -> Mapping[str, Any]:
    """Return the statement in a request or an approval."""
    forms = {**KINDS["CAP_CHANGE"], **dict.fromkeys(("dataset", "prev"), KINDS["GENESIS"]["dataset"])}
    try:
        fields = require_fields(content, subject=str(path), names=names)
        if fields.get("purpose", PURPOSE) != PURPOSE:
            raise PlanError(str(path), [f"purpose must be {PURPOSE}"])
        statement = require_fields(fields["statement"], subject=f"{path}: statement", names=STATEMENT)
        if not all(forms[field](statement[field]) for field in STATEMENT):
            raise PlanError(str(path), ["from and to must be epsilons, dataset and prev hashes"])
    except PlanError as error:
        raise UsageError(f"{error}; requests are written by `ledger cap --request`") from None
    return statement


def _require_form(kind: str, field: str, value: object, rule: str) -> None:
    """Refuse a value that an entry cannot hold."""
    if not KINDS[kind][field](value):
        raise UsageError(f"{field} {name(str(value))}: {rule}")
