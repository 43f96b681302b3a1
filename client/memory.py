"""What a site does when memory does not suffice: the same round again, with fewer records computed at once.

How many records are computed at once (the physical batch) bounds memory and changes a result by rounding alone. The
logical batch, the noise and hence epsilon are the plan's, whatever this module does.

Guarantees (tests/unit/client/test_memory.py, tests/unit/client/test_site_memory.py):
    - Nothing is reserved or paid for twice: a round starts again inside the request that paid for it.
    - Nothing leaves before a round is done, so the noised sums of an attempt that ran out of memory stay in this
      process, and one update leaves however many attempts there were.
    - All attempts draw the same sample and the same noise (`OneDraw`). Fresh noise would do for an update that leaves
      alone, but then running out of memory, which can depend on whose records were sampled, would choose between
      draws: what leaves would have the law of a draw *given* that memory sufficed, which is not what was paid for.

What it does not do: find a size beforehand. A batch is halved when memory has run out, and never grows again.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Literal, TypeVar

import torch

from client.contract import FailureCode
from client.errors import SiteError
from client.failure import is_out_of_memory
from privacy.noise import KeyStream, Randomness

T = TypeVar("T")

RECORDS = 64
"""Records computed at once, as long as memory suffices."""

_log = logging.getLogger(__name__)
_KEY_WORDS = 4  # a key of 32 bytes


class OneDraw:
    """One draw of some randomness, which can be gone through again and again: as often as a round starts again.

    Of the operating system's randomness one key is taken for each purpose; seeded streams start anew by themselves, and
    are those of the source to the bit.

    Args:
        source: A fresh object.
    """

    def __init__(self, source: Randomness) -> None:
        self._source = source
        self._keys: dict[str, bytes] = {}

    @property
    def kind(self) -> Literal["os", "seeded"]:
        """Return the source's kind."""
        return self._source.kind

    def stream(self, purpose: str) -> KeyStream:
        """Return the stream of a purpose, from its beginning."""
        if self._source.kind == "seeded":
            return self._source.stream(purpose)
        if purpose not in self._keys:
            self._keys[purpose] = self._source.stream(purpose).words(_KEY_WORDS).tobytes()
        return KeyStream(self._keys[purpose])


class PhysicalBatch:
    """How many records a process computes at once; smaller for good once memory did not suffice.

    Args:
        records: To begin with, >= 1.

    Attributes:
        records: Now.
    """

    def __init__(self, records: int = RECORDS) -> None:
        if records < 1:
            raise ValueError(f"records must be >= 1, got {records}")
        self.records = records

    def fit(self, compute: Callable[[int], T]) -> T:
        """Return `compute(records)`, from its beginning again with half as many for as long as memory runs out.

        Args:
            compute: Leaves nothing behind that a second call does not overwrite, and draws from a `OneDraw` if at all.

        Raises:
            SiteError: `out-of-memory`: it runs out with one record, too.
        """
        while True:
            try:
                return compute(self.records)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self.records == 1:
                    raise SiteError(
                        FailureCode.OUT_OF_MEMORY,
                        "memory does not suffice for one record at a time, nor for all records of one patient, which "
                        "are computed at once; end what else uses this machine's memory (or its GPU's), set "
                        "`device` to cpu, or ask for a smaller model or a lower max_records_per_patient",
                    ) from error
            # Outside of the handler: the exception, whose frames hold the tensors of the attempt, is gone.
            self._halve()

    def _halve(self) -> None:
        """Compute half as many at once from now on, and let go of what nobody holds."""
        _log.warning(
            "out of memory with %d records at a time: starting again with %d, which changes neither the plan nor its "
            "epsilon; later rounds keep to it",
            self.records,
            self.records // 2,
        )
        self.records //= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
