"""Every exception has a code, and a code is all there is."""

import pytest
import torch

from client.contract import ContractError, FailureCode
from client.failure import code_of
from privacy.errors import IncompatibleModelError, PlanError, RefusalCode, RefusedError
from vae.errors import DataNotReadyError, HostileFileError, ModelSpecError, WeightsError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ContractError("x"), FailureCode.BAD_REQUEST),
        (ModelSpecError("x"), FailureCode.BAD_REQUEST),
        (WeightsError("x"), FailureCode.BAD_REQUEST),
        (IncompatibleModelError(["x"]), FailureCode.MODEL_NOT_PRIVATE),
        (RefusedError(next(iter(RefusalCode)), "x"), FailureCode.REFUSED),
        (PlanError("plan", ["x"]), FailureCode.REFUSED),
        (DataNotReadyError("x"), FailureCode.DATA_NOT_READY),
        (HostileFileError("x"), FailureCode.DATA_NOT_READY),
        (MemoryError(), FailureCode.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("x"), FailureCode.OUT_OF_MEMORY),
        (TimeoutError(), FailureCode.TIMED_OUT),
        (ZeroDivisionError(), FailureCode.INTERNAL),
    ],
    ids=lambda value: type(value).__name__,
)
def test_code(error, code):
    assert code_of(error) is code
