"""From any exception at a site to the one code that may leave it."""

from __future__ import annotations

from client.contract import ContractError, FailureCode
from client.errors import SiteError
from privacy.errors import (
    IncompatibleModelError,
    LedgerError,
    PrivacyError,
    RefusalCode,
    RefusedError,
    SigningError,
)
from vae.errors import DataError, ModelSpecError, WeightsError

_CODES: tuple[tuple[type[BaseException], FailureCode], ...] = (
    (ContractError, FailureCode.BAD_REQUEST),
    (ModelSpecError, FailureCode.BAD_REQUEST),
    (WeightsError, FailureCode.BAD_REQUEST),
    (IncompatibleModelError, FailureCode.MODEL_NOT_PRIVATE),
    (LedgerError, FailureCode.LEDGER),
    (SigningError, FailureCode.LEDGER),
    (RefusedError, FailureCode.REFUSED),
    (PrivacyError, FailureCode.REFUSED),
    (DataError, FailureCode.DATA_NOT_READY),
    (TimeoutError, FailureCode.TIMED_OUT),
)

# What torch 2.13 says in a plain RuntimeError where memory ends outside of its allocator for GPUs.
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")

_SPENT = (RefusalCode.BUDGET_EXHAUSTED, RefusalCode.RUN_BUDGET_EXHAUSTED, RefusalCode.OFF_PLAN)


def code_of(error: BaseException) -> FailureCode:
    """Return the code for an exception; an unknown one is an internal error, never its text.

    Guarantees:
        The result is a member of a closed vocabulary (tests/unit/client/test_failure.py).
    """
    if isinstance(error, SiteError):
        return error.code
    if isinstance(error, RefusedError) and error.code in _SPENT:
        return FailureCode.BUDGET
    if is_out_of_memory(error):
        return FailureCode.OUT_OF_MEMORY
    return next((code for kind, code in _CODES if isinstance(error, kind)), FailureCode.INTERNAL)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory did not suffice, of this machine or of its GPU; torch need not be imported for that."""
    if (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    ):  # torch's, no MemoryError
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = "".join(
        part for part in error.args if isinstance(part, str)
    )  # str() may run foreign code, and fail
    return any(text in said for text in _NO_MEMORY)
