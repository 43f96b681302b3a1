"""Fewer records at a time where memory ends: when, how often, and that every attempt draws the same."""

import gc
import logging
import weakref

import pytest
import torch

from client.contract import FailureCode
from client.errors import SiteError
from client.memory import RECORDS, OneDraw, PhysicalBatch
from privacy.noise import SeededRandomness, SystemRandomness


class _Fits:
    """Computes what fits into memory, and notes with how many records it was asked to."""

    def __init__(self, most, error=torch.OutOfMemoryError):
        self.most, self.error, self.asked = most, error, []

    def __call__(self, records):
        self.asked.append(records)
        if records > self.most:
            raise self.error("no memory")
        return f"with {records}"


@pytest.mark.parametrize(
    ("most", "asked"), [(64, [64]), (20, [64, 32, 16]), (1, [64, 32, 16, 8, 4, 2, 1])], ids=str
)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_it_halves_until_it_fits_and_keeps_to_that(most, asked, error):
    batch, compute = PhysicalBatch(), _Fits(most, error)
    assert batch.fit(compute) == f"with {asked[-1]}"
    assert compute.asked == asked
    assert batch.records == asked[-1]
    batch.fit(compute)
    assert compute.asked == [*asked, asked[-1]]


def test_with_one_record_it_gives_up_by_code_and_says_what_to_do():
    batch, compute = PhysicalBatch(3), _Fits(0)
    with pytest.raises(SiteError, match=r"does not suffice for one record.*smaller model") as raised:
        batch.fit(compute)
    assert raised.value.code is FailureCode.OUT_OF_MEMORY
    assert compute.asked == [3, 1]
    assert batch.fit(_Fits(1)) == "with 1", "once there is memory it computes again"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, TimeoutError])
def test_other_errors_pass_at_once(error):
    batch, compute = PhysicalBatch(), _Fits(0, error)
    with pytest.raises(error, match="no memory"):
        batch.fit(compute)
    assert compute.asked == [RECORDS]
    assert batch.records == RECORDS


def test_each_halving_is_one_line_of_the_log(caplog):
    with caplog.at_level(logging.WARNING):
        PhysicalBatch().fit(_Fits(20))
    assert [record.args for record in caplog.records] == [(64, 32), (32, 16)]
    assert all("nor its epsilon" in record.getMessage() for record in caplog.records)


def test_what_an_attempt_held_is_let_go_before_the_next_one():
    """Else memory holds two attempts, and the second one fails for want of what the first one keeps."""
    held = []

    def compute(records):
        assert all(reference() is None for reference in held), "still held"
        tensor = torch.zeros(3)
        held.append(weakref.ref(tensor))
        if records > 16:
            raise torch.OutOfMemoryError("no memory")
        return records

    gc.disable()
    try:
        assert PhysicalBatch().fit(compute) == 16
    finally:
        gc.enable()


def test_no_records_is_no_batch():
    with pytest.raises(ValueError, match="records must be >= 1, got 0"):
        PhysicalBatch(0)


def test_one_draw_of_the_operating_system_s_randomness_can_be_gone_through_again():
    draw, other = OneDraw(SystemRandomness()), OneDraw(SystemRandomness())
    noise = draw.stream("noise").words(8).tolist()
    assert draw.stream("noise").words(8).tolist() == noise
    assert draw.stream("sampling").words(8).tolist() != noise, "purposes differ"
    assert other.stream("noise").words(8).tolist() != noise, "draws differ"
    assert draw.kind == "os"


def test_one_draw_of_seeded_randomness_is_that_of_its_source():
    draw, source = OneDraw(SeededRandomness(1, "run")), SeededRandomness(1, "run")
    for _ in range(2):
        assert draw.stream("noise").words(8).tolist() == source.stream("noise").words(8).tolist()
    assert draw.kind == "seeded"
