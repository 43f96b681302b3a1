"""Admission: from a reply to an update that may be aggregated, or to a named rejection.

The checks run from cheap to dear, and nothing is decoded before its size is known to be right: transport,
size and headers of the tensors, form (`client.contract`), identity, values, hash. The first that fails
decides.

Guarantees (tests/unit/server/test_admission.py, tests/unit/server/test_hostile.py):
    An admitted update has exactly the expected names, shapes and dtypes, is finite, not longer than the
    bound, relative to the weights that were sent, for this run and round, and from the site that was asked. A
    rejection holds a site and a code from a closed vocabulary: never a value, never text from the other end.

It does not judge whether an admissible update is honest (`server.robust` bounds that), nor what stands behind
a claim (`server.witness` does, where a site has a ledger).
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from flwr.app import Array, Message, RecordDict
from flwr.common.constant import ErrorCode

from client.contract import (
    PROTOCOL_VERSION,
    Description,
    Failure,
    FailureCode,
    Plan,
    TrainRequest,
    Update,
    Weights,
    arrays_of,
    configs_of,
    decode_reply,
)
from privacy.claim import Claim
from privacy.plan import PrivacyPlan
from server.errors import ServerError, StrategyError
from vae.weights import hash_weights

_HEADER_START = 10  # bytes of magic, version and the length of what follows, which the last two hold
_HEADER_BYTES = 1024  # of NumPy's format 1.0 for a plain dtype; np.save of numpy 2 writes 128
_TEXT_BYTES = 1 << 20  # a reply's JSON, its claim included
_CHUNK = 1 << 17

# What Flower 1.41 answers in a site's place. Its reason may quote an exception, so only the number is read.
_FLOWER_FAILURES: Mapping[int, FailureCode] = {
    ErrorCode.NODE_UNAVAILABLE: FailureCode.UNREACHABLE,
    ErrorCode.MESSAGE_UNAVAILABLE: FailureCode.TIMED_OUT,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: FailureCode.TIMED_OUT,
}


class RejectionCode(StrEnum):
    """Why a reply did not count: the whole vocabulary. `round-lost`: admitted, but the round was not applied."""

    NO_REPLY = "no-reply"
    LATE = "late"
    ROUND_LOST = "round-lost"
    DUPLICATE = "duplicate"
    SITE_FAILED = "site-failed"
    MALFORMED = "malformed"
    MISSING_TENSOR = "missing-tensor"
    UNEXPECTED_TENSOR = "unexpected-tensor"
    WRONG_SHAPE = "wrong-shape"
    WRONG_DTYPE = "wrong-dtype"
    VERSION = "version"
    WRONG_SITE = "wrong-site"
    WRONG_RUN = "wrong-run"
    WRONG_ROUND = "wrong-round"
    STALE_BASE = "stale-base"
    NOT_FINITE = "not-finite"
    NORM_TOO_LARGE = "norm-too-large"
    HASH_MISMATCH = "hash-mismatch"
    CLAIM = "claim-mismatch"
    RECEIPT_MISSING = "receipt-missing"
    RECEIPT_INVALID = "receipt-invalid"
    RECEIPT_OTHER = "receipt-of-other-work"
    ROLLED_BACK = "ledger-rolled-back"
    FORKED = "ledger-forked"


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """One reply that did not count, as it stands in the report.

    Attributes:
        round: Global round.
        site: Name of the site that was asked.
        code: Why.
        failure: What the site said, if the code is `site-failed`.
    """

    round: int
    site: str
    code: RejectionCode
    failure: FailureCode | None = None

    @property
    def reason(self) -> str:
        """Return the code, followed by the site's own if there is one."""
        return self.code.value if self.failure is None else f"{self.code.value}:{self.failure.value}"


class RejectedError(ServerError):
    """One reply is refused.

    Attributes:
        site: Name of the site that was asked.
        code: Why.
        failure: What the site said, if the code is `site-failed`.
    """

    def __init__(self, site: str, code: RejectionCode, failure: FailureCode | None = None) -> None:
        self.site, self.code, self.failure = site, code, failure
        super().__init__(f"{site}: {self.rejection(0).reason}")

    def rejection(self, round_: int) -> Rejection:
        """Return the entry for the report."""
        return Rejection(round=round_, site=self.site, code=self.code, failure=self.failure)


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What the reply to one request has to be.

    Attributes:
        site: Name of the site that was asked.
        run_id: As in the request.
        round: As in the request.
        base_hash: As in the request.
        shapes: name -> shape of the weights that were sent; all are float32.
        plan: What privacy was asked for; None does not compare.
    """

    site: str
    run_id: str
    round: int
    base_hash: str
    shapes: Mapping[str, tuple[int, ...]]
    plan: Plan | None = None

    @classmethod
    def of(cls, site: str, request: TrainRequest, weights: Weights) -> Expectation:
        """Return what must come back for `request`, sent with `weights`."""
        return cls(
            site=site,
            run_id=request.run_id,
            round=request.round,
            base_hash=request.base_hash,
            shapes={name: tuple(array.shape) for name, array in weights.items()},
            plan=request.plan,
        )


@dataclass(frozen=True, kw_only=True)
class Admission:
    """The rules of a federation for replies.

    Attributes:
        max_update_norm: Largest L2 norm of a whole update [parameter units], > 0; a public constant.
        version: Protocol that replies must speak.
    """

    max_update_norm: float
    version: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        if not 0 < self.max_update_norm < math.inf:
            raise StrategyError(f"max_update_norm is {self.max_update_norm}; it must be positive and finite")

    def check(self, reply: Message, expected: Expectation) -> Update:
        """Return the update in a reply.

        Args:
            reply: What came back; nothing in it is trusted.
            expected: Built from the request itself.

        Raises:
            RejectedError: the reply does not count; says which site and why.
        """
        update = _decode(_content(reply, expected), expected)
        self._check_identity(update, expected)
        if not keeps(update.claim, expected.plan):
            raise RejectedError(expected.site, RejectionCode.CLAIM)
        self._check_values(update, expected.site)
        return update

    def _check_identity(self, update: Update, expected: Expectation) -> None:
        """Check that the update answers this very request."""
        for fits, code in (
            (update.version == self.version, RejectionCode.VERSION),
            (update.site == update.claim.site == expected.site, RejectionCode.WRONG_SITE),
            (update.run_id == expected.run_id, RejectionCode.WRONG_RUN),
            (update.round == expected.round, RejectionCode.WRONG_ROUND),
            (update.base_hash == expected.base_hash, RejectionCode.STALE_BASE),
        ):
            if not fits:
                raise RejectedError(expected.site, code)

    def _check_values(self, update: Update, site: str) -> None:
        """Check values: finite, within the bound, and those that the site hashed."""
        norm = update_norm(update.delta)
        if not math.isfinite(norm):
            raise RejectedError(site, RejectionCode.NOT_FINITE)
        if norm > self.max_update_norm:
            raise RejectedError(site, RejectionCode.NORM_TOO_LARGE)
        if hash_weights(update.delta) != update.update_hash:
            raise RejectedError(site, RejectionCode.HASH_MISMATCH)


def keeps(claim: Claim, plan: Plan | None) -> bool:
    """Return whether a claim promises at least what was asked for: a site may tighten, never loosen."""
    if not isinstance(plan, PrivacyPlan):
        return True
    return (
        claim.kind in (("dp",) if plan.randomness == "os" else ("dp", "seeded"))
        and claim.unit in (plan.unit, "patient")
        and claim.delta <= plan.delta
    )


def update_norm(delta: Weights) -> float:
    """Return the L2 norm over all parameters.

    Squares of float32 are summed in float64, whose range they cannot leave: the result is infinite or NaN
    exactly if a value is.
    """
    total = 0.0
    for array in delta.values():
        values = array.reshape(-1)
        for start in range(0, values.size, _CHUNK):
            chunk = values[start : start + _CHUNK].astype(np.float64)
            total += float(np.einsum("i,i->", chunk, chunk))
    return math.sqrt(total)


def _content(reply: Message, expected: Expectation) -> RecordDict:
    """Return the content of a reply that has one of plausible size."""
    if reply.has_error():
        failure = _FLOWER_FAILURES.get(reply.error.code, FailureCode.INTERNAL)
        raise RejectedError(expected.site, RejectionCode.SITE_FAILED, failure)
    if not reply.has_content():
        raise RejectedError(expected.site, RejectionCode.MALFORMED)
    content = reply.content
    # A site sends no figures, whatever they are.
    if len(content) != len(arrays_of(content)) + 1 or len(configs_of(content)) != 1:
        raise RejectedError(expected.site, RejectionCode.MALFORMED)
    texts = [value for record in configs_of(content).values() for value in record.values()]
    if any(isinstance(value, str | bytes) and len(value) > _TEXT_BYTES for value in texts):
        raise RejectedError(expected.site, RejectionCode.MALFORMED)
    return content


def _decode(content: RecordDict, expected: Expectation) -> Update:
    """Return the update in a content."""
    if arrays_of(content):  # a failure has none
        _check_tensors(content, expected)
    try:
        answer = decode_reply(content)
    except Exception as error:  # not only ContractError: deep nesting and endless numbers raise others
        raise RejectedError(expected.site, RejectionCode.MALFORMED) from error
    if isinstance(answer, Failure):  # whatever name it gives: the node that was asked has answered
        raise RejectedError(expected.site, RejectionCode.SITE_FAILED, answer.code)
    if isinstance(answer, Description):
        raise RejectedError(expected.site, RejectionCode.MALFORMED)
    return answer


def _check_tensors(content: RecordDict, expected: Expectation) -> None:
    """Check names and headers of all tensors before one is decoded: a header may claim terabytes."""
    if len(arrays_of(content)) != 1:
        raise RejectedError(expected.site, RejectionCode.MALFORMED)
    (record,) = arrays_of(content).values()
    if expected.shapes.keys() - record.keys():
        raise RejectedError(expected.site, RejectionCode.MISSING_TENSOR)
    if record.keys() - expected.shapes.keys():
        raise RejectedError(expected.site, RejectionCode.UNEXPECTED_TENSOR)
    for name, shape in expected.shapes.items():
        found_shape, found_dtype, num_bytes = _header(record[name], expected.site)
        if found_dtype != np.float32:
            raise RejectedError(expected.site, RejectionCode.WRONG_DTYPE)
        if found_shape != shape:
            raise RejectedError(expected.site, RejectionCode.WRONG_SHAPE)
        if num_bytes != math.prod(shape) * 4:
            raise RejectedError(expected.site, RejectionCode.MALFORMED)


def _header(array: Array, site: str) -> tuple[tuple[int, ...], np.dtype[np.generic], int]:
    """Return shape and dtype that the bytes themselves announce, and how many bytes of values follow."""
    announced = _HEADER_START + int.from_bytes(array.data[_HEADER_START - 2 : _HEADER_START], "little")
    head = array.data[: min(announced, _HEADER_BYTES)]
    try:
        shape, dtype = _parsed(head)
    except Exception as error:  # whatever a hostile header raises, it is not a header
        raise RejectedError(site, RejectionCode.MALFORMED) from error
    return shape, dtype, len(array.data) - len(head)


@functools.lru_cache(maxsize=512)
def _parsed(head: bytes) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Return what a header says; remembered, because honest updates have the same headers in every round.

    Raises:
        Exception: of any kind, if it is none.
    """
    start = io.BytesIO(head)
    if np.lib.format.read_magic(start) != (1, 0):
        raise ValueError("not version 1.0 of NumPy's format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(start)
    return tuple(shape), dtype
