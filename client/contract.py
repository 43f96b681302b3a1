"""The contract between the server and a site: every field that crosses the wire is a field of a class here.

How a site learns, `client.learning`, and how weights travel, `client.arrays`, have modules of their own; the server
imports nothing else of `client`. Requests and replies are frozen values; `encode_*` puts them into a Flower
`RecordDict` and `decode_*` takes them out again, refusing anything that is not exactly as described (`ContractError`).

What never crosses: counts, losses, metrics, patient keys, file names, text of exceptions. A site that fails answers
with a `FailureCode` alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from client.arrays import Weights, arrays_of, configs_of, decode_arrays, encode_weights
from client.learning import ContractError, LearningPlan
from privacy.claim import Claim
from privacy.errors import PrivacyError
from privacy.heads import Head, Receipt
from privacy.plan import PrivacyPlan, plan_from_dict
from privacy.records import Work
from privacy.unsafe import NoPrivacy
from vae.errors import ModelSpecError
from vae.spec import NOTHING_TRAVELS, ModelSpec, Sharing

__all__ = [
    "BASIS",
    "MAX_HEADS",
    "PROTOCOL_VERSION",
    "ContractError",
    "Description",
    "Failure",
    "FailureCode",
    "LearningPlan",
    "Plan",
    "TrainRequest",
    "Update",
    "Weights",
    "arrays_of",
    "configs_of",
    "decode_arrays",
    "decode_reply",
    "decode_request",
    "decode_weights",
    "encode_description",
    "encode_failure",
    "encode_request",
    "encode_update",
    "encode_weights",
    "model_from_dict",
]

PROTOCOL_VERSION = 5
MAX_HEADS = 64
"""Ledger heads in one message: enough for a witness or two of each of many sites, round by round."""

Plan = PrivacyPlan | NoPrivacy

_REQUEST_FIELDS = (
    "version", "run_id", "round", "base_hash", "model", "sharing", "plan", "learning", "initial_seed",
    "num_sites", "heads", "basis_hash",
)  # fmt: skip
_UPDATE_FIELDS = (
    "kind", "version", "site", "run_id", "round", "base_hash", "update_hash", "claim", "receipt", "heads",
)  # fmt: skip
BASIS = "basis"
"""Name of the record of public directions, the second one of arrays; only with `learning.subspace` above 0."""
_WEIGHTS, _REQUEST, _REPLY = "weights", "request", "reply"


class FailureCode(StrEnum):
    """Why a site did not train: the whole vocabulary. The text of an exception stays at the site."""

    BAD_REQUEST = "bad-request"
    VERSION = "version-mismatch"
    REFUSED = "refused-by-policy"
    BUDGET = "budget-exhausted"
    LEDGER = "ledger-not-ready"
    DATA_NOT_READY = "data-not-ready"
    MODEL_NOT_PRIVATE = "model-not-private"
    OUT_OF_MEMORY = "out-of-memory"
    TIMED_OUT = "timed-out"
    UNREACHABLE = "agent-unreachable"
    BUSY = "agent-busy"
    INTERNAL = "internal-error"


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What the server asks of a site in one round.

    Attributes:
        run_id: Names the run; with `round` and `base_hash` it identifies this request for good.
        round: Global round, >= 1.
        base_hash: SHA-256 of the shared weights that come with the request.
        model: What to build; the site compares its hash with what it allows.
        sharing: Which parameters travel.
        plan: What privacy the update will have; the site may only tighten it.
        learning: Optimiser and its constants.
        initial_seed: Public seed of the run's initial weights: parameters that do not travel start from it.
        num_sites: How many sites take part in the run, as the server says.
        heads: Ledger heads that the server and other sites have kept: of this site, which must contain them,
            and of others, which it keeps.
        basis_hash: SHA-256 of the public directions that come with the request; empty without `learning.subspace`.

    Raises:
        ContractError: fields contradict each other.
    """

    run_id: str
    round: int
    base_hash: str
    model: ModelSpec
    sharing: Sharing
    plan: Plan
    learning: LearningPlan
    initial_seed: int = 0
    num_sites: int = 1
    heads: tuple[Head, ...] = ()
    basis_hash: str = ""
    version: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        if (self.sharing, self.learning.trainable) in NOTHING_TRAVELS:
            raise ContractError(
                "trainable: nothing of it is shared, so no update would ever change; share it, or train what is shared"
            )
        if self.learning.augmentations and not self.model.is_image:
            raise ContractError("augmentations: are of images, and the model is of tables; set them to 0")
        if self.learning.precision != "float32" and isinstance(self.plan, NoPrivacy):
            raise ContractError(
                "precision: is of private steps, and the plan is without privacy; use float32"
            )
        if self.learning.optimiser == "adam-corrected" and isinstance(self.plan, NoPrivacy):
            raise ContractError(
                "optimiser: adam-corrected corrects for noise, and the plan has none; use adam"
            )
        _check_subspace(self)
        if self.learning.optimiser == "adam-corrected" and getattr(self.plan, "mechanism", None) == "banded":
            raise ContractError(
                "optimiser: adam-corrected corrects for the same noise in every step, and banded noise is not; use adam"
            )
        self.learning.to_optimiser()  # a schedule without its steps is refused here, before anything is spent

    @property
    def key(self) -> str:
        """Identify the request: the same key is answered from store, never trained or paid for twice."""
        return f"{self.run_id}/{self.round}/{self.base_hash}"

    @property
    def work(self) -> Work:
        """Return what the request is for, as the ledger knows it."""
        return Work(run=self.run_id, round=self.round, base=self.base_hash)


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a site sends: the change of the shared weights, and what it says about its privacy.

    Attributes:
        site: Name of the site.
        run_id: As in the request.
        round: As in the request.
        base_hash: As in the request: what the change is relative to.
        update_hash: SHA-256 of `delta`.
        claim: All releases of this site in this run so far, this one included.
        delta: name -> float32 change of that parameter.
        receipt: Proof from the site's ledger that this update was paid for; None where there is no ledger.
        heads: Heads of other sites' ledgers that this site has kept.
    """

    site: str
    run_id: str
    round: int
    base_hash: str
    update_hash: str
    claim: Claim
    delta: Weights
    receipt: Receipt | None = None
    heads: tuple[Head, ...] = ()
    version: int = PROTOCOL_VERSION


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A site's answer when it did not train."""

    site: str
    code: FailureCode


@dataclass(frozen=True, kw_only=True)
class Description:
    """Who answers behind a node: the only thing a site says before it is asked to train."""

    site: str
    version: int = PROTOCOL_VERSION


def encode_request(request: TrainRequest, weights: Mapping[str, Any]) -> RecordDict:
    """Return the message content of a request with the base weights; directions are put beside them as `BASIS`."""
    body = {
        "version": request.version,
        "run_id": request.run_id,
        "round": request.round,
        "base_hash": request.base_hash,
        "model": json.loads(request.model.to_json()),
        "sharing": request.sharing,
        "plan": request.plan.to_dict(),
        "learning": dataclasses.asdict(request.learning),
        "initial_seed": request.initial_seed,
        "num_sites": request.num_sites,
        "heads": [head.to_dict() for head in request.heads],
        "basis_hash": request.basis_hash,
    }
    return RecordDict({_WEIGHTS: encode_weights(weights), _REQUEST: ConfigRecord({"json": json.dumps(body)})})


def decode_request(content: RecordDict) -> tuple[TrainRequest, Weights]:
    """Return the request and its base weights.

    Raises:
        ContractError: a record or field is missing, unknown, of the wrong type or out of range.
    """
    body = _body(content, _REQUEST, _REQUEST_FIELDS)
    if body["version"] != PROTOCOL_VERSION:
        raise ContractError(
            f"version: this end speaks {PROTOCOL_VERSION}; install the same release at both ends"
        )
    if body["sharing"] not in ("all", "decoder", "encoder", "norm-local"):
        raise ContractError("sharing: not one of all, decoder, encoder, norm-local")
    try:
        request = TrainRequest(
            run_id=_text(body, "run_id"),
            round=_count(body, "round"),
            base_hash=_text(body, "base_hash"),
            model=model_from_dict(body["model"]),
            sharing=body["sharing"],
            plan=plan_from_dict(body["plan"]),
            learning=LearningPlan(**body["learning"]),
            initial_seed=_count(body, "initial_seed"),
            num_sites=_count(body, "num_sites"),
            heads=_heads(body),
            basis_hash=_text(body, "basis_hash") if body["basis_hash"] != "" else "",
        )
    except (TypeError, ValueError, ModelSpecError, PrivacyError) as error:
        raise ContractError(f"request: {error}") from error
    expected = {_WEIGHTS, BASIS} if request.learning.subspace else {_WEIGHTS}
    if set(arrays_of(content)) != expected:
        raise ContractError(
            f"request: exactly the records of arrays {', '.join(sorted(expected))} are needed"
        )
    return request, decode_arrays(content, _WEIGHTS)


def _check_subspace(request: TrainRequest) -> None:
    """Refuse a subspace where it could not do what it says.

    Raises:
        ContractError: it is without privacy, without its directions, or with an engine that cannot compute it.
    """
    if bool(request.learning.subspace) != bool(request.basis_hash):
        raise ContractError("basis_hash: is given with a subspace above 0, and only with it")
    if not request.learning.subspace:
        return
    if isinstance(request.plan, NoPrivacy):
        raise ContractError("subspace: saves noise, and the plan has none; set it to 0")
    if request.plan.grad_engine != "vmap":
        raise ContractError(f"subspace: needs grad_engine vmap, got {request.plan.grad_engine}")


def encode_update(update: Update) -> RecordDict:
    """Return the message content of an update."""
    body = {
        "kind": "update",
        "version": update.version,
        "site": update.site,
        "run_id": update.run_id,
        "round": update.round,
        "base_hash": update.base_hash,
        "update_hash": update.update_hash,
        "claim": update.claim.to_json(),
        "receipt": None if update.receipt is None else update.receipt.to_dict(),
        "heads": [head.to_dict() for head in update.heads],
    }
    return RecordDict(
        {_WEIGHTS: encode_weights(update.delta), _REPLY: ConfigRecord({"json": json.dumps(body)})}
    )


def encode_failure(failure: Failure) -> RecordDict:
    """Return the message content of a failure."""
    body = {"kind": "failure", "site": failure.site, "code": failure.code.value}
    return RecordDict({_REPLY: ConfigRecord({"json": json.dumps(body)})})


def encode_description(description: Description) -> RecordDict:
    """Return the message content of a description."""
    body = {"kind": "description", "site": description.site, "version": description.version}
    return RecordDict({_REPLY: ConfigRecord({"json": json.dumps(body)})})


def decode_reply(content: RecordDict) -> Update | Failure | Description:
    """Return what a site answered.

    Raises:
        ContractError: the answer follows none of the three forms.
    """
    kind = _json(content, _REPLY).get("kind")
    try:
        if kind == "failure":
            body = _body(content, _REPLY, ("kind", "site", "code"))
            return Failure(site=_text(body, "site"), code=FailureCode(body["code"]))
        if kind == "description":
            body = _body(content, _REPLY, ("kind", "site", "version"))
            return Description(site=_text(body, "site"), version=_count(body, "version"))
        if kind == "update":
            body = _body(content, _REPLY, _UPDATE_FIELDS)
            return Update(
                version=_count(body, "version"),
                site=_text(body, "site"),
                run_id=_text(body, "run_id"),
                round=_count(body, "round"),
                base_hash=_text(body, "base_hash"),
                update_hash=_text(body, "update_hash"),
                claim=Claim.from_json(_text(body, "claim")),
                receipt=None if body["receipt"] is None else Receipt.from_dict(body["receipt"]),
                heads=_heads(body),
                delta=decode_weights(content),
            )
    except (ValueError, TypeError, PrivacyError) as error:
        raise ContractError(f"reply: {error}") from error
    raise ContractError("reply: kind is not one of update, failure, description")


def model_from_dict(fields: Any) -> ModelSpec:  # noqa: ANN401 - whatever JSON held
    """Return the model specification that `ModelSpec.to_json` wrote.

    Raises:
        ContractError: a field is missing or unknown.
        ModelSpecError: a value is out of range.
    """
    expected = {field.name for field in dataclasses.fields(ModelSpec)}
    if not isinstance(fields, dict) or set(fields) != expected:
        raise ContractError("model: exactly the fields of ModelSpec are needed")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return ModelSpec(**values)


def decode_weights(content: RecordDict) -> Weights:
    """Return the arrays of a message, where possible as views of its bytes, which cannot be written to.

    Raises:
        ContractError: there is not exactly one record of arrays, or an array is not float32 or cannot be read.
    """
    if set(arrays_of(content)) != {_WEIGHTS}:
        raise ContractError("weights: exactly one record of arrays is needed")
    return decode_arrays(content, _WEIGHTS)


def _json(content: RecordDict, record: str) -> dict[str, Any]:
    """Return the JSON object of a config record."""
    config = configs_of(content).get(record)
    text = config.get("json") if config is not None else None
    try:
        body = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):  # a number of 5,000 digits, lists in lists without end
        body = None
    if not isinstance(body, dict):
        raise ContractError(f"{record}: a JSON object is needed")
    return body


def _body(content: RecordDict, record: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Return a JSON object that has exactly the given fields."""
    body = _json(content, record)
    if set(body) != set(names):
        raise ContractError(f"{record}: the fields must be exactly {', '.join(names)}")
    return body


def _heads(body: dict[str, Any]) -> tuple[Head, ...]:
    """Return the ledger heads of a message."""
    listed = body["heads"]
    if not isinstance(listed, list) or len(listed) > MAX_HEADS:
        raise ContractError(f"heads: a list of at most {MAX_HEADS} is needed")
    return tuple(Head.from_dict(item) for item in listed)


def _text(body: dict[str, Any], name: str) -> str:
    """Return a text field."""
    value = body[name]
    if not isinstance(value, str) or not value:
        raise ContractError(f"{name}: a text is needed")
    return value


def _count(body: dict[str, Any], name: str) -> int:
    """Return a whole number >= 0 (a bool is none)."""
    value = body[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ContractError(f"{name}: a whole number >= 0 is needed")
    return value
