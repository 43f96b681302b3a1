"""Hostile files: every trick is refused by `vae.weights.load` with the file and the trick named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from vae.errors import WeightsError
from vae.weights import hash_weights, load, save, signature

PLAIN = {"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 3), np.float32)}
EXPECTED = signature(PLAIN)


def raw_file(path: Path, header: str | bytes, data: bytes = b"", *, length: int | None = None) -> Path:
    """Write a file in the format from its header text and data, without any check."""
    text = header.encode() if isinstance(header, str) else header
    text += b" " * (-len(text) % 8)
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(shape, begin, end, dtype="F32") -> str:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]})


A, B = entry([4], 0, 16), entry([2, 3], 16, 40)
DATA = PLAIN["a"].tobytes() + PLAIN["b"].tobytes()

# What safetensors itself would take: what our own checks alone must refuse.
ACCEPTED_BY_SAFETENSORS = {
    "duplicate-key": (f'{{"a":{A},"b":{entry([3, 2], 16, 40)},"b":{B}}}', DATA, "key 'b' occurs twice"),
    "path-as-name": (f'{{"../../etc/passwd":{A},"b":{B}}}', DATA, "unexpected '../../etc/passwd'"),
    "another-shape": (
        f'{{"a":{A},"b":{entry([3, 2], 16, 40)}}}',
        DATA,
        r"'b' is float32\[3, 2\], expected float32\[2, 3\]",
    ),
    "another-dtype": (
        f'{{"a":{entry([4], 0, 16, "I32")},"b":{B}}}',
        DATA,
        r"'a' is int32\[4\], expected float32\[4\]",
    ),
    "missing": (f'{{"a":{A}}}', DATA[:16], "missing 'b'"),
    "extra": (f'{{"a":{A},"b":{B},"c":{entry([1], 40, 44)}}}', DATA + bytes(4), "unexpected 'c'"),
    "nan": (
        f'{{"a":{A},"b":{B}}}',
        np.float32("nan").tobytes() + DATA[4:],
        "'a' hold values that are not finite",
    ),
    "infinity": (
        f'{{"a":{A},"b":{B}}}',
        DATA[:-4] + np.float32("-inf").tobytes(),
        "'b' hold values that are not finite",
    ),
}

REFUSED_ANYWAY = {
    "duplicate-in-entry": (
        f'{{"a":{A},"b":{{"dtype":"F32","shape":[6],"shape":[2,3],"data_offsets":[16,40]}}}}',
        DATA,
        "key 'shape' occurs twice",
    ),
    "minus-zero": (f'{{"a":{A.replace("[0,", "[-0,")},"b":{B}}}', DATA, "invalid value|header"),
    "overlap": (f'{{"a":{A},"b":{entry([2, 3], 0, 24)}}}', DATA, "an overlap, a hole or a wrong length"),
    "hole": (
        f'{{"a":{A},"b":{entry([2, 3], 20, 44)}}}',
        DATA + bytes(4),
        "an overlap, a hole or a wrong length",
    ),
    "wrong-length": (f'{{"a":{A},"b":{entry([2, 3], 16, 36)}}}', DATA, "expected 24 bytes from 16"),
    "left-over": (f'{{"a":{A},"b":{B}}}', DATA + b"payload", "47 bytes of data, the header describes 40"),
    "cut-short": (f'{{"a":{A},"b":{B}}}', DATA[:-1], "39 bytes of data, the header describes 40"),
    "negative-shape": (f'{{"a":{entry([-4], 0, 16)},"b":{B}}}', DATA, "of 'a' cannot be read"),
    "true-as-shape": (f'{{"a":{entry([4, True], 0, 16)},"b":{B}}}', DATA, "of 'a' cannot be read"),
    "float-as-offset": (f'{{"a":{entry([4], 0, 16.0)},"b":{B}}}', DATA, "of 'a' cannot be read"),
    "three-offsets": (
        f'{{"a":{{"dtype":"F32","shape":[4],"data_offsets":[0,16,16]}},"b":{B}}}',
        DATA,
        "of 'a' cannot",
    ),
    "unknown-dtype": (f'{{"a":{entry([4], 0, 16, "F33")},"b":{B}}}', DATA, "of 'a' cannot be read"),
    "dtype-no-text": (f'{{"a":{entry([4], 0, 16, ["F32"])},"b":{B}}}', DATA, "of 'a' cannot be read"),
    "extra-field": (
        f'{{"a":{A[:-1]},"run":"me"}},"b":{B}}}',
        DATA,
        "needs exactly dtype, shape and data_offsets",
    ),
    "entry-no-object": ('{"a":[1,2],"b":3}', DATA, "'a' needs exactly"),
    "huge-shape": (
        f'{{"a":{entry([2**62, 2**62], 0, 16)},"b":{B}}}',
        DATA,
        "an overlap, a hole or a wrong length",
    ),
    "huge-number": (f'{{"a":{{"shape":[{"9" * 5000}]}}}}', DATA, "bad header"),
    "deep": ("[" * 50_000, DATA, "bad header"),
    "metadata-no-text": (
        f'{{"__metadata__":{{"round":3}},"a":{A},"b":{B}}}',
        DATA,
        "metadata must map text to text",
    ),
    "metadata-list": (f'{{"__metadata__":["x"],"a":{A},"b":{B}}}', DATA, "metadata must map text to text"),
    "no-object": ("[1, 2]", DATA, "not a JSON object"),
    "no-json": ("{'a': 1}", DATA, "bad header"),
    "bad-utf8": (b'{"\xff": 1}', DATA, "bad header"),
}


@pytest.mark.parametrize("case", ACCEPTED_BY_SAFETENSORS | REFUSED_ANYWAY)
def test_hostile_files_are_refused_by_name(tmp_path, case):
    header, data, message = (ACCEPTED_BY_SAFETENSORS | REFUSED_ANYWAY)[case]
    path = raw_file(tmp_path / "w.safetensors", header, data)
    with pytest.raises(WeightsError, match=message) as caught:
        load(path, EXPECTED)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("case", ACCEPTED_BY_SAFETENSORS)
def test_control_safetensors_takes_the_files_that_we_refuse(tmp_path, case):
    header, data, _ = ACCEPTED_BY_SAFETENSORS[case]
    assert safetensors.numpy.load_file(raw_file(tmp_path / "w.safetensors", header, data))


def test_control_the_same_file_without_a_trick_is_taken(tmp_path):
    path = raw_file(tmp_path / "w.safetensors", f'{{"a":{A},"b":{B}}}', DATA)
    loaded, metadata = load(path, EXPECTED)
    assert metadata == {}
    assert hash_weights(loaded) == hash_weights(PLAIN)


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**63, 2**64 - 1])
def test_a_header_length_that_does_not_fit_is_refused(tmp_path, length):
    path = raw_file(tmp_path / "w.safetensors", f'{{"a":{A},"b":{B}}}', DATA, length=length)
    with pytest.raises(WeightsError, match="header"):
        load(path, EXPECTED)


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x00" * 8, b"\x08" + b"\x00" * 7])
def test_a_file_of_a_few_bytes_is_refused(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="header"):
        load(path, EXPECTED)


def test_a_huge_file_is_refused_without_reading_it(tmp_path):
    path = raw_file(tmp_path / "w.safetensors", f'{{"a":{A},"b":{B}}}', DATA)
    os.truncate(path, 2**40)  # sparse: a terabyte that takes no space
    with pytest.raises(WeightsError, match=r"larger than the \d+ bytes"):
        load(path, EXPECTED)


def test_not_finite_values_pass_where_the_caller_says_so(tmp_path):
    weights = {"a": np.array([np.nan, np.inf], np.float32)}
    save(tmp_path / "w", weights, {})
    assert np.isnan(load(tmp_path / "w", signature(weights), require_finite=False)[0]["a"][0])


def test_a_hostile_name_is_quoted_and_cut_in_the_message(tmp_path):
    name = "\x1b[2J\u202e" + "x" * 5000
    path = raw_file(tmp_path / "w.safetensors", f'{{{json.dumps(name)}:{A},"b":{B}}}', DATA)
    with pytest.raises(WeightsError) as caught:
        load(path, EXPECTED)
    assert str(caught.value).isascii()
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


def test_the_errors_are_of_one_kind_whatever_the_bytes(tmp_path):
    rng = np.random.default_rng(0)
    good = raw_file(tmp_path / "good", f'{{"a":{A},"b":{B}}}', DATA).read_bytes()
    path, taken = tmp_path / "w", 0
    for _ in range(400):
        content = bytearray(good)
        for position in rng.integers(0, len(good) - len(DATA), size=rng.integers(1, 4)):
            content[position] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            loaded, _ = load(path, EXPECTED)
        except WeightsError:
            continue
        taken += 1
        assert signature(loaded) == EXPECTED
    assert taken < 40  # a changed blank at the end of the header, or the byte that was there, does no harm
