"""Weights on the wire: float32 arrays in NumPy's own format, never pickles, and without copies where possible.

Records are looked up here, too: `RecordDict.array_records` of flwr 1.41 ties a content into a reference cycle, so that
every update would stay in memory until the garbage collector comes by (tests/unit/client/test_contract_bytes.py).
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from client.learning import ContractError

Weights = dict[str, np.ndarray[Any, np.dtype[Any]]]

_MAX_AXES = 8  # of an array that is read without NumPy's parser; others are read, too


def arrays_of(content: RecordDict) -> dict[str, ArrayRecord]:
    """Return the records of arrays in a content."""
    return {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}


def configs_of(content: RecordDict) -> dict[str, ConfigRecord]:
    """Return the records of settings in a content."""
    return {name: record for name, record in content.items() if isinstance(record, ConfigRecord)}


def encode_weights(weights: Mapping[str, Any]) -> ArrayRecord:
    """Return float32 arrays as Flower's record, in the given order."""
    record = ArrayRecord()
    for name, value in weights.items():
        values = np.asarray(value, order="C")
        data = b"".join((_header(values.dtype.str, values.shape), values.reshape(-1).view(np.uint8).data))
        record[name] = Array(str(values.dtype), values.shape, "numpy.ndarray", data)
    return record


def decode_arrays(content: RecordDict, record: str) -> Weights:
    """Return the arrays of one record of a message, where possible as views of its bytes.

    Raises:
        ContractError: there is no such record, or an array is not float32 or cannot be read.
    """
    arrays: Weights = {}
    for name, array in arrays_of(content).get(record, ArrayRecord()).items():
        try:
            value = _values(array)
            dtype = value.dtype  # an archive of arrays is read, too, and has none
        except Exception as error:
            raise ContractError(f"{record}: an array cannot be read") from error
        if dtype != np.float32:
            raise ContractError(f"{record}: every array must be float32")
        arrays[name] = value
    if not arrays and record not in arrays_of(content):
        raise ContractError(f"{record}: a record of arrays is needed")
    return arrays


@functools.lru_cache(maxsize=512)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return what `np.save` writes before the values of an array in C order."""
    buffer = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def _values(array: Array) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the values of one array: what `np.load` makes of the bytes, without parsing or copying the usual kind."""
    shape = tuple(array.shape)
    header = _header("<f4", shape) if len(shape) <= _MAX_AXES and all(side > 0 for side in shape) else b""
    if not header or array.stype != "numpy.ndarray" or not array.data.startswith(header):
        return array.numpy()
    return np.frombuffer(array.data, "<f4", math.prod(shape), len(header)).reshape(shape)
