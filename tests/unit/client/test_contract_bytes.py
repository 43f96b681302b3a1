"""Arrays travel as NumPy writes them, are read without a copy, and leave memory when the last reference goes."""

import gc
import io
import weakref

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from client.contract import (
    ContractError,
    Failure,
    FailureCode,
    arrays_of,
    configs_of,
    decode_reply,
    decode_weights,
    encode_failure,
    encode_weights,
)

ARRAYS = {
    "scalar": np.float32(3).reshape(()),
    "vector": np.arange(3, dtype=np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "transposed": np.arange(24, dtype=np.float32).reshape(2, 3, 4).T,
    "strided": np.arange(20, dtype=np.float32)[::2],
    "many axes": np.ones((1,) * 12, np.float32),
    "not a number": np.array([np.nan, np.inf, -0.0], np.float32),
}


def _saved(value, version=None):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(value, order="C"), version, allow_pickle=False)
    return buffer.getvalue()


def _content(**arrays):
    return RecordDict({"weights": ArrayRecord(arrays)})


@pytest.mark.parametrize("name", ARRAYS)
def test_the_bytes_are_those_of_numpy_and_come_back_as_they_were(name):
    value = ARRAYS[name]
    record = encode_weights({"a": value})
    assert record["a"].data == _saved(value)
    assert (record["a"].dtype, tuple(record["a"].shape)) == ("float32", value.shape)
    back = decode_weights(RecordDict({"weights": record}))["a"]
    assert back.shape == value.shape
    assert back.tobytes() == np.asarray(value, order="C").tobytes()


def test_an_array_is_read_in_place_and_cannot_be_written_to():
    back = decode_weights(RecordDict({"weights": encode_weights({"a": ARRAYS["vector"]})}))["a"]
    with pytest.raises(ValueError, match="read-only"):
        back[0] = 1.0


@pytest.mark.parametrize(
    ("data", "stated"),
    [
        pytest.param(_saved(np.ones((2, 3), np.float32)), (3, 2), id="another shape stated"),
        pytest.param(_saved(np.ones((2, 3), np.float32)), (-1,), id="a negative shape stated"),
        pytest.param(_saved(np.ones((2, 3), np.float32), (2, 0)), (2, 3), id="version 2 of the format"),
        pytest.param(_saved(np.ones((2, 3), np.float32)) + b"more", (2, 3), id="bytes behind the values"),
    ],
)
def test_the_bytes_decide_as_numpy_reads_them(data, stated):
    back = decode_weights(_content(a=Array("float32", stated, "numpy.ndarray", data)))["a"]
    assert np.array_equal(back, np.load(io.BytesIO(data), allow_pickle=False))


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        pytest.param(_saved(np.ones(6, np.float32))[:-1], "cannot be read", id="cut"),
        pytest.param(b"", "cannot be read", id="nothing"),
        pytest.param(_saved(np.ones(6, np.float64)), "float32", id="float64"),
        pytest.param(_saved(np.ones(6, ">f4")), "float32", id="big-endian"),
    ],
)
def test_what_is_no_array_of_float32_is_refused(data, rule):
    with pytest.raises(ContractError, match=rule):
        decode_weights(_content(a=Array("float32", (6,), "numpy.ndarray", data)))


def test_records_are_told_apart_by_kind():
    content = RecordDict({"weights": encode_weights({}), "request": ConfigRecord({"json": "{}"})})
    assert list(arrays_of(content)) == ["weights"]
    assert list(configs_of(content)) == ["request"]


@pytest.mark.parametrize("read", [decode_weights, decode_reply, lambda content: content.array_records])
def test_a_content_leaves_memory_at_once(read):
    content = encode_failure(Failure(site="site-1", code=FailureCode.INTERNAL))
    content["weights"] = encode_weights({"a": ARRAYS["vector"]})
    alive = weakref.ref(content)
    gc.disable()
    try:
        read(content)
        del content
        kept = alive() is not None
    finally:
        gc.enable()
    # Flower's own property ties a knot that only the garbage collector undoes: the reason for `arrays_of`.
    assert kept is (read not in (decode_weights, decode_reply))
