"""A content travels in pieces, and whatever else comes in its place is refused."""

import hashlib

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from client.agent_pb2 import Begin, Part
from client.arrays import decode_arrays, encode_weights
from client.learning import ContractError
from client.parts import PART_BYTES, from_parts, to_parts


def _content(size=3):
    weights = {"a": np.arange(size, dtype=np.float32)}
    return RecordDict({"weights": encode_weights(weights), "request": ConfigRecord({"json": "{}"})})


@pytest.mark.parametrize("size", [1, 3, PART_BYTES // 4, PART_BYTES // 2 + 7])
def test_a_content_of_any_size_arrives_as_it_was(size):
    parts = list(to_parts(_content(size)))
    assert all(len(part.data) <= PART_BYTES for part in parts)
    assert len(parts) >= 1 + 4 * size // PART_BYTES
    arrived = from_parts(iter(parts))
    np.testing.assert_array_equal(decode_arrays(arrived, "weights")["a"], np.arange(size, dtype=np.float32))
    assert arrived.config_records["request"]["json"] == "{}"


def _begin(data, **changes):
    return Part(begin=Begin(**{"num_bytes": len(data), "sha256": hashlib.sha256(data).digest(), **changes}))


GOOD = list(to_parts(_content()))
DATA = GOOD[1].data


@pytest.mark.parametrize(
    ("parts", "rule"),
    [
        ([], "the first must announce"),
        ([Part()], "the first must announce"),
        ([GOOD[1]], "the first must announce"),
        ([GOOD[0]], "fewer bytes"),
        ([GOOD[0], Part(data=DATA[:-1])], "fewer bytes"),
        ([*GOOD, Part(data=b"x")], "more bytes"),
        ([GOOD[0], GOOD[0], GOOD[1]], "each must hold data"),
        ([GOOD[0], Part(data=b"")], "each must hold data"),
        ([_begin(DATA, num_bytes=0)], "may be announced"),
        ([_begin(DATA, num_bytes=2**63)], "may be announced"),
        ([GOOD[0], Part(data=DATA[:-1] + b"\x00")], "not those that were announced"),
        ([_begin(b"\xff\xff\xff"), Part(data=b"\xff\xff\xff")], "no content of Flower"),
    ],
)
def test_anything_else_is_refused(parts, rule):
    with pytest.raises(ContractError, match=rule):
        from_parts(iter(parts))


def test_nothing_beyond_the_announced_bytes_is_taken():
    """Of an endless stream no more is read than the part that is too much."""
    taken = []

    def endless():
        yield _begin(b"x" * 10)
        while True:
            taken.append(1)
            yield Part(data=b"x" * 4)

    with pytest.raises(ContractError, match="more bytes"):
        from_parts(endless())
    assert len(taken) == 3


def test_a_limit_below_the_content_refuses_it_before_its_bytes():
    with pytest.raises(ContractError, match="1 to 5 bytes"):
        from_parts(iter([GOOD[0]]), max_bytes=5)


@given(st.lists(st.binary(max_size=60), max_size=5), st.integers(0, 200))
def test_bytes_of_any_kind_are_refused_or_read(pieces, announced):
    data = b"".join(pieces)
    parts = [_begin(data, num_bytes=announced), *(Part(data=piece) for piece in pieces)]
    try:
        made = from_parts(iter(parts))
    except ContractError:
        return
    assert isinstance(made, RecordDict)
