"""Weights as named numpy arrays: exchange with a module, identity, and rest as safetensors.

A file is checked against the signature that its reader expects before anything is decoded (`vae.header`).

What it does not do: import torch, unless a module is given to it (the server aggregates without torch);
decide which names are shared (`vae.models.naming`); judge updates (`server.admission`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from vae import header
from vae.errors import WeightsError

if TYPE_CHECKING:  # torch stays out of the server's process
    from torch import nn

Array = npt.NDArray[Any]
Weights = dict[str, Array]
Signature = tuple[tuple[str, tuple[int, ...], str], ...]

_HEADER_BYTES = 64 * 1024  # for metadata; each tensor gets more
_HEADER_BYTES_PER_TENSOR = 512
_NAMES_SHOWN = 3


def to_numpy(module: nn.Module, names: Iterable[str]) -> Weights:
    """Return copies of the named entries of the module's state, sorted by name.

    Raises:
        ValueError: the module has no such entry.
    """
    state = module.state_dict()
    wanted = sorted(set(names))
    if unknown := [name for name in wanted if name not in state]:
        raise ValueError(f"the module has no {_some(unknown)}")
    return {name: state[name].detach().cpu().numpy().copy() for name in wanted}


def load_into(module: nn.Module, weights: Mapping[str, Array], *, partial: bool = False) -> None:
    """Write `weights` into the module, in place.

    Args:
        module: On any device.
        weights: Arrays with the module's names, shapes and dtypes.
        partial: Accept a subset of the names; the others keep their values.

    Raises:
        WeightsError: a name is missing (unless `partial`) or unexpected, or a shape or dtype differs. The
            module is untouched then.
    """
    import torch

    expected = state_signature(module)
    if partial:
        expected = tuple(entry for entry in expected if entry[0] in weights)
    require_signature(weights, expected)
    state = module.state_dict()
    with torch.no_grad():
        for name, array in weights.items():
            # A copy: torch warns of arrays that it could not write to, such as views of a received message.
            state[name].copy_(torch.from_numpy(np.array(array)))


def state_signature(module: nn.Module) -> Signature:
    """Return (name, shape, dtype) of each entry of the module's state, sorted by name; reads no values."""
    return tuple(
        (name, tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in sorted(module.state_dict().items())
    )


def signature(weights: Mapping[str, Array]) -> Signature:
    """Return (name, shape, dtype) of each array, sorted by name."""
    return tuple((name, tuple(each.shape), _dtype_name(each.dtype)) for name, each in sorted(weights.items()))


def require_signature(weights: Mapping[str, Array], expected: Signature) -> None:
    """Check that `weights` have exactly the expected names, shapes and dtypes.

    Raises:
        WeightsError: they differ; the message says in what.
    """
    if problems := _differences(signature(weights), expected):
        raise WeightsError(f"weights: {problems}")


def hash_weights(weights: Mapping[str, Array]) -> str:
    """Return the SHA-256 of names, shapes, dtypes and values, whatever their order or memory layout.

    Guarantees:
        Fields are preceded by their length, so that different weights never give the same bytes to hash.
        -0.0 and 0.0 differ, as their bytes do.
    """
    digest = hashlib.sha256(b"vae.weights 1\0")
    for name, shape, dtype in signature(weights):
        head = json.dumps([name, list(shape), dtype]).encode()
        digest.update(len(head).to_bytes(8, "big") + head)
        digest.update(_little_endian(weights[name]).tobytes())
    return digest.hexdigest()


def save(
    path: Path, weights: Mapping[str, Array], metadata: Mapping[str, str], *, sync_folder: bool = True
) -> None:
    """Write a safetensors file, whole or not at all: temporary file, fsync, rename, fsync of the folder.

    Args:
        path: Target, replaced if it exists; its folder must exist. The file is readable by its owner only.
        weights: Arrays to store.
        metadata: Public text, stored in the header.
        sync_folder: Off where the caller syncs the folder itself, once for several files.

    Guarantees:
        Equal input gives equal bytes. A failure leaves the old file or the new one, and no temporary file
        (tests/unit/vae/test_weights.py).
    """
    content = safetensors.numpy.save({name: _little_endian(array) for name, array in sorted(weights.items())})
    content = header.with_metadata(content, dict(metadata))
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if sync_folder:
        _sync_folder(path.parent)


def load(path: Path, expected: Signature, *, require_finite: bool = True) -> tuple[Weights, dict[str, str]]:
    """Read a safetensors file that must hold exactly what the caller expects.

    Args:
        path: A file from anywhere; nothing in it is trusted.
        expected: Names, shapes and dtypes (`vae.models.signature_of`).
        require_finite: Refuse NaN and infinities.

    Returns:
        The arrays, sorted by name, and the metadata.

    Raises:
        WeightsError: not such a file; the message says what differs.
        OSError: the file cannot be read.

    Guarantees:
        Never reads more than the expected tensors and a bounded header can take, however large the file is.
    """
    header_limit = _HEADER_BYTES + sum(_HEADER_BYTES_PER_TENSOR + 6 * len(name) for name, _, _ in expected)
    data_bytes = sum(math.prod(shape) * np.dtype(dtype).itemsize for _, shape, dtype in expected)
    content = _read_bounded(path, header_limit + data_bytes)
    try:
        claimed = header.parse(content, header_limit=header_limit)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    if problems := _differences(
        tuple((each.name, each.shape, each.dtype) for each in claimed.entries), expected
    ):
        raise WeightsError(f"{path}: {problems}")
    try:
        arrays = safetensors.numpy.load(content)
    except safetensors.SafetensorError as error:  # where it is stricter than JSON, such as for -0
        raise WeightsError(f"{path}: {error}") from error
    weights = {name: arrays[name] for name, _, _ in expected}
    if require_finite and (bad := [name for name, array in weights.items() if not np.isfinite(array).all()]):
        raise WeightsError(f"{path}: {_some(bad)} hold values that are not finite")
    return weights, claimed.metadata


def _read_bounded(path: Path, limit: int) -> bytes:
    """Return the content, refusing a larger file after `limit` bytes (it may grow while it is read)."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise WeightsError(f"{path}: larger than the {limit} bytes that the expected weights can take")
    return content


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _little_endian(array: Array) -> Array:
    """Return the array in C order and little-endian, copied only if it is not."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


@functools.lru_cache(maxsize=64)  # NumPy spells the name anew each time, and there are many tensors
def _dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the dtype's name; a foreign byte order shows in it, because torch cannot take one."""
    return dtype.name if dtype.isnative else dtype.str


def _differences(found: Signature, expected: Signature) -> str:
    """Return in what two signatures differ, empty if in nothing."""
    have, want = ({name: (shape, dtype) for name, shape, dtype in each} for each in (found, expected))
    problems = []
    if missing := sorted(want.keys() - have.keys()):
        problems.append(f"missing {_some(missing)}")
    if unexpected := sorted(have.keys() - want.keys()):
        problems.append(f"unexpected {_some(unexpected)}")
    for name in sorted(have.keys() & want.keys()):
        if have[name] != want[name]:
            (shape, dtype), (right_shape, right_dtype) = have[name], want[name]
            problems.append(
                f"{header.quote(name)} is {dtype}{list(shape)}, expected {right_dtype}{list(right_shape)}"
            )
    more = len(problems) - 2 * _NAMES_SHOWN
    return "; ".join(problems[: 2 * _NAMES_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _some(names: list[str]) -> str:
    """Return the first few names and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(map(header.quote, names[:_NAMES_SHOWN])) + (f" and {more} more" if more > 0 else "")
