"""What callers announce takes no memory, and those who take no answers keep nobody out."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import grpc
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.common.serde import recorddict_to_proto

from client.agent_pb2 import Begin, Part
from client.contract import FailureCode, encode_request
from tests.property.test_agent_boundary import GOOD, Boundary, ended, framed, reply_of, until
from tests.unit.client.test_contract import request, some_weights, update


@pytest.fixture
def boundary(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    made = Boundary(tmp_path)
    yield made
    made.close()


def _header(shape):
    """Return what NumPy writes before an array of some shape."""
    buffer = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def _archive():
    """Return an archive of arrays, which NumPy reads as readily as an array."""
    buffer = io.BytesIO()
    np.savez(buffer, a=np.float32([1]))
    return buffer.getvalue()


def _with_array(shape, data):
    """Return a request with one array of that shape and those bytes."""
    content = encode_request(request(), some_weights())
    content["weights"] = ArrayRecord({"a": Array("float32", shape, "numpy.ndarray", data)})
    return list(framed(recorddict_to_proto(content).SerializeToString()))


LIES = {
    "part": [Part(begin=Begin(num_bytes=1 << 30, sha256=b"x" * 32)).SerializeToString(), GOOD[1]],
    "header-and-shape": _with_array((1 << 28,), _header((1 << 28,))),
    "header-alone": _with_array((1,), _header((1 << 28,))),
    "shape-alone": _with_array((1 << 28,), _header((1,)) + b"1234"),
}


@pytest.mark.parametrize("frames", LIES.values(), ids=LIES)
def test_memory_does_not_grow_with_what_is_announced(boundary, frames):
    """Each says that it brings 1 GiB and brings next to nothing."""
    boundary.trained_for(GOOD)  # what is allocated once
    before = _peak_after(lambda: boundary.trained_for(GOOD))
    grown = _peak_after(lambda: boundary.trained_for(frames)) - before
    assert grown < 64 << 20
    assert _peak_after(lambda: np.ones(1 << 27, np.uint8)) - before > 64 << 20, "the peak can be seen"


def _peak_after(act):
    """Return the most memory resident while something was done [bytes]."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        pytest.skip("this system does not tell the peak of a process's memory")
    act()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def test_an_archive_is_no_array(boundary):
    answer = boundary.trained_for(_with_array((1,), _archive()))
    assert reply_of(answer).code is FailureCode.BAD_REQUEST
    assert boundary.site.asked == []


def test_callers_who_take_no_answer_do_not_hold_the_agent(tmp_path):
    """As many as it has threads: more than a connection buffers lies ready for each."""
    made = Boundary(tmp_path, send_s=1.0)
    made.site.answer = update(delta={"a": np.zeros(1 << 21, np.float32)})
    calls = []
    for _ in range(16):
        calls.append(made.stream(GOOD))
        next(calls[-1])
    until(lambda: made.send([b""], "Describe").code is grpc.StatusCode.OK)
    assert grpc.StatusCode.CANCELLED in {ended(call).code for call in calls}
    made.close()
