"""Updates on disk: one row a site, read in blocks of coordinates, so memory does not grow with the sites."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from server.errors import AggregationError

Block = npt.NDArray[np.float32]

_BLOCK_BYTES = 4 << 20  # of all rows together


class Spool:
    """A scratch matrix [n, width] of float32 in a file without a name: gone when closed, or when the process
    dies.

    The file is read with `pread`, not mapped: mapped pages count as resident memory, which would then grow
    with n.
    """

    def __init__(self, scratch: Path, *, width: int) -> None:
        """Open an empty spool.

        Args:
            scratch: Existing folder with room for n * width * 4 bytes.
            width: Coordinates of an update.

        Raises:
            AggregationError: the folder cannot be written to.
        """
        self._width = width
        self._rows: dict[str, int] = {}
        try:
            self._descriptor, name = tempfile.mkstemp(dir=scratch, prefix="updates-")
            Path(name).unlink()
        except OSError as error:
            raise AggregationError(
                f"scratch folder {scratch}: {error.strerror}; name one with room"
            ) from error
        self._closer = weakref.finalize(self, os.close, self._descriptor)  # also if a round is never finished

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def sites(self) -> list[str]:
        """Return the names of the rows, sorted: the order of rows in every block."""
        return sorted(self._rows)

    def append(self, site: str, arrays: Iterable[np.ndarray[Any, np.dtype[Any]]]) -> None:
        """Write one row: the arrays one after the other, in C order.

        Raises:
            AggregationError: the disk is full or fails; the row does not count.
        """
        position = len(self._rows) * self._width * 4
        try:
            for array in arrays:
                position += self._write(_bytes_of(np.ascontiguousarray(array)), position)
        except OSError as error:
            raise AggregationError(f"scratch file: {error.strerror}; name a folder with more room") from error
        self._rows[site] = len(self._rows)

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """Yield (first coordinate, [n, b] block) until all coordinates were seen; rows in the order of
        `sites`.

        The block is overwritten by the next one.
        """
        size = max(1, _BLOCK_BYTES // (4 * max(1, len(self))))
        for start in range(0, self._width, size):
            block = np.empty((len(self), min(size, self._width - start)), np.float32)
            for row, site in zip(block, self.sites, strict=True):
                self._read(_bytes_of(row), (self._rows[site] * self._width + start) * 4)
            yield start, block

    def close(self) -> None:
        """Give the disk space back."""
        self._closer()

    def _write(self, content: memoryview, position: int) -> int:
        """Write all of `content`; one call may write less."""
        done = 0
        while done < len(content):
            done += os.pwrite(self._descriptor, content[done:], position + done)
        return done

    def _read(self, content: memoryview, position: int) -> None:
        """Fill `content`; one call may read less."""
        done = 0
        while done < len(content):
            step = os.preadv(self._descriptor, [content[done:]], position + done)
            if step == 0:
                raise AggregationError("scratch file: shorter than what was written; the disk is failing")
            done += step


def _bytes_of(array: np.ndarray[Any, np.dtype[Any]]) -> memoryview:
    """Return the memory of a contiguous array as bytes, without copying."""
    return array.reshape(-1).view(np.uint8).data
