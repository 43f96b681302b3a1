"""Contact sheets of synthetic scans, for the eye: rows of axial, coronal and sagittal slices.

The caller writes the word "synthetic" beside every picture made from this; the array itself holds scans
alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def montage(
    records: Sequence[npt.NDArray[np.floating]], *, columns: int | None = None, scale: int = 1
) -> Array:
    """Lay records out as one picture, upright, patient's left on the left.

    Args:
        records: Each [X, Y], or [X, Y, Z] (shown as its middle axial, coronal and sagittal slice), in [0,
            1], all of one shape.
        columns: Records in a row; None for about a square.
        scale: Whole-number magnification.

    Returns:
        [height, width] float32 in [0, 1]; row 0 is the top.

    Raises:
        ValueError: there is no record, or shapes differ.
    """
    if not records or len({record.shape for record in records}) != 1:
        raise ValueError("a montage needs one record at least, all of one shape")
    tiles = [_tile(np.asarray(record, dtype=np.float32)) for record in records]
    width = columns or int(np.ceil(np.sqrt(len(tiles))))
    blank = np.zeros_like(tiles[0])
    tiles += [blank] * (-len(tiles) % width)
    rows = [np.concatenate(tiles[start : start + width], axis=1) for start in range(0, len(tiles), width)]
    picture = np.clip(np.concatenate(rows, axis=0), 0, 1)
    return np.repeat(np.repeat(picture, scale, axis=0), scale, axis=1)


def _tile(record: Array) -> Array:
    """Return one record as a picture."""
    if record.ndim == 2:
        return _upright(record)
    x, y, z = (size // 2 for size in record.shape)
    views = [_upright(record[:, :, z]), _upright(record[:, y, :]), _upright(record[x, :, :])]
    height = max(view.shape[0] for view in views)
    padded = []
    for view in views:
        missing = height - view.shape[0]
        padded.append(np.pad(view, ((missing // 2, missing - missing // 2), (0, 0))))
    return np.concatenate(padded, axis=1)


def _upright(plane: Array) -> Array:
    """Turn a plane so that its first axis runs to the right and its second one up."""
    return plane.T[::-1]
