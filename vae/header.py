"""The header of a safetensors file, read strictly.

safetensors 0.8 reads a header with duplicate keys (the last wins) and takes a tensor named
`../../etc/passwd`. This reads the same bytes under stricter rules and returns what the file claims; it
decodes no data, and uses a name from a file only to compare and to quote it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from vae.errors import WeightsError

_LENGTH_BYTES = 8  # little-endian length of the header, in front of it
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a header claims of one tensor; `begin` and `end` count bytes from the start of the data."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Return the size that shape and dtype imply."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class Header:
    """A header whose entries tile the data exactly; entries are sorted by name."""

    entries: tuple[Entry, ...]
    metadata: dict[str, str]


def parse(content: bytes, *, header_limit: int) -> Header:
    """Return the header of a file.

    Args:
        content: The whole file.
        header_limit: Longest header accepted [bytes].

    Raises:
        WeightsError: too long, cut short, not JSON, a key twice, another structure than safetensors has, or
            data that overlap, leave a hole or are left over.
    """
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    if len(content) < _LENGTH_BYTES or start > min(len(content), _LENGTH_BYTES + header_limit):
        raise WeightsError("not a safetensors file, or cut short: the header's length does not fit the file")
    try:
        document = json.loads(content[_LENGTH_BYTES:start].decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, a number too long, a key twice
        raise WeightsError(f"bad header: {error}") from error
    if not isinstance(document, dict):
        raise WeightsError("bad header: not a JSON object")
    metadata = _metadata(document.pop("__metadata__", {}))
    entries = tuple(_entry(name, value) for name, value in sorted(document.items()))
    _require_tiling(entries, data_bytes=len(content) - start)
    return Header(entries=entries, metadata=metadata)


def with_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    """Return a file with `metadata` in its header, sorted: safetensors 0.8 writes them in random order."""
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    document = {"__metadata__": dict(sorted(metadata.items())), **json.loads(content[_LENGTH_BYTES:start])}
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to eight bytes
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + content[start:]


def quote(name: str) -> str:
    """Return a name that may come from a hostile file, escaped and short, for an error message."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, refusing a key that occurs twice."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {quote(key)} occurs twice")
        result[key] = value
    return result


def _metadata(value: object) -> dict[str, str]:
    """Return the metadata if they map text to text."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise WeightsError("bad header: metadata must map text to text")
    return value


def _entry(name: str, value: object) -> Entry:
    """Return what the header claims of one tensor."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"bad header: {quote(name)} needs exactly dtype, shape and data_offsets")
    dtype = _DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    shape, offsets = _naturals(value["shape"]), _naturals(value["data_offsets"])
    if dtype is None or shape is None or offsets is None or len(offsets) != 2:
        raise WeightsError(f"bad header: dtype, shape or data_offsets of {quote(name)} cannot be read")
    return Entry(name=name, shape=shape, dtype=dtype, begin=offsets[0], end=offsets[1])


def _naturals(value: object) -> tuple[int, ...] | None:
    """Return a list of integers >= 0 as a tuple, None for anything else; `true` is no integer here."""
    if isinstance(value, list) and all(type(item) is int and item >= 0 for item in value):
        return tuple(value)
    return None


def _require_tiling(entries: tuple[Entry, ...], *, data_bytes: int) -> None:
    """Check that the tensors' bytes tile the data: no overlap, no hole, nothing left over."""
    position = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position or entry.end - entry.begin != entry.num_bytes:
            raise WeightsError(
                f"bad header: data of {quote(entry.name)} lie at {entry.begin}..{entry.end}, expected "
                f"{entry.num_bytes} bytes from {position}: an overlap, a hole or a wrong length"
            )
        position = entry.end
    if position != data_bytes:
        raise WeightsError(f"{data_bytes} bytes of data, the header describes {position}")
