"""Every exception has a code, and a code is all there is."""

import pytest
import torch

from client.contract import ContractError, FailureCode
from client.failure import code_of, is_out_of_memory
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


def test_what_torch_raises_when_memory_ends_is_told_from_other_errors():
    """The allocator of the CPU raises a plain RuntimeError; 4 PiB of memory are nowhere."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    assert is_out_of_memory(raised.value)
    assert code_of(raised.value) is FailureCode.OUT_OF_MEMORY
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory\nCompile with ..."))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_an_error_that_cannot_be_printed_has_a_code_too():
    class _TextlessError(RuntimeError):
        def __str__(self):
            raise ValueError

    assert code_of(_TextlessError(3)) is FailureCode.INTERNAL
