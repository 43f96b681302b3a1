"""Noise that is made while gradients are computed: on a CPU in a second thread, on an accelerator where they are.

On a CPU `AheadStream` asks the key stream for the next step's deviates in a thread: the same ones, a step earlier.
AES and the inverse distribution function release the interpreter's lock, so with a second core their time is hidden.

A CPU makes the key stream (AES has instructions there), in a thread of its own while the accelerator computes
gradients; the accelerator does what is dear: the inverse normal distribution function, the sum, and the grid.
Moving a model's gradients to the CPU and back takes longer than a step.

Guarantees:
    - Made ahead on a CPU: equal to the bit to `KeyStream.normal`, however steps and threads fall (same tests as below).
    - One word of the stream a coordinate, in the order of the parameters, as `KeyStream.normal` takes them.
    - Equal to the CPU's to about 1e-15 relative, not to the bit: the two have inverse functions of their own. What is
      released is on the same grid (tests/unit/privacy/test_deviates.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from privacy.banded import BandedNoise
from privacy.noise import SLACK_BYTES, FloatArray, KeyStream, round_to_grid

_ALL_BUT_SIGN = 0x7FFF_FFFF_FFFF_FFFF
_SLACK_WORDS = SLACK_BYTES // 8
# Doubles that are noised at once.
_PIECE = 2**14


class Deviates(Protocol):
    """A source of deviates of one law."""

    def normal(self, count: int) -> FloatArray:
        """Return the next [count] deviates: standard normal, or of a discrete law with a scale of its own."""
        ...


class AheadStream:
    """Deviates of a source, made a step ahead in a thread.

    Use as a context: leaving it waits for the thread. As many steps as were announced are made, never more; nothing
    else may read the stream meanwhile. The noise of a step is in memory while its gradients are.
    """

    def __init__(self, stream: Deviates, *, count: int, steps: int) -> None:
        self._stream = stream
        self._count = count
        self._left = steps
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="noise")
        self._ahead: Future[FloatArray] | None = None

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def normal(self, count: int) -> FloatArray:
        """Return the next step's [count] deviates, which are the caller's to change.

        Raises:
            ValueError: another count than was announced, or a step more.
        """
        if count != self._count:
            raise ValueError(f"deviates were made ahead for {self._count} coordinates, not {count}")
        if self._ahead is None:
            raise ValueError("deviates of all announced steps are used")
        made = self._ahead.result()
        self._begin()
        return made

    def _begin(self) -> None:
        """Start on the next step's deviates, if there is one."""
        self._ahead = self._pool.submit(self._stream.normal, self._count) if self._left > 0 else None
        self._left -= 1


def release_into(
    deviates: FloatArray, total: FloatArray, *, scale: float, divisor: float, spacing: float
) -> None:
    """Write (total + scale deviates) / divisor, on the grid, over the deviates.

    In pieces that stay near the processor: a pass over all for each operation took as long as the key stream.

    Shapes: N coordinates.

    Args:
        deviates: [N] standard normal.
        total: [N] sum of clipped gradients; not changed.
        scale: Standard deviation of the noise on the sum, > 0.
        divisor: Public, > 0.
        spacing: Of the grid, a power of two.
    """
    for start in range(0, len(total), _PIECE):
        piece = slice(start, start + _PIECE)
        deviates[piece] = round_to_grid((total[piece] + scale * deviates[piece]) / divisor, spacing)


class DeviceStream:
    """Words of a key stream on a device, made ahead: while a step runs, those of the next are written.

    Use as a context: leaving it waits for the thread. Words that were made ahead and not asked for are lost, so nothing
    else may read the stream.

    Attributes:
        device: Where the words go.
    """

    def __init__(self, stream: KeyStream, device: torch.device) -> None:
        self.device = device
        self._stream = stream
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="noise")
        self._ahead: Future[Tensor] | None = None
        self._count = 0
        self._buffers: list[Tensor] = []
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def words(self, count: int) -> Tensor:
        """Return the next [count] words, int64 on the device; `count` >= 1 is the same at every call.

        Raises:
            ValueError: it is not.
        """
        if self._ahead is None:
            self._count = count
            pinned = self.device.type == "cuda"
            size = count + _SLACK_WORDS
            self._buffers = [torch.empty(size, dtype=torch.int64, pin_memory=pinned) for _ in range(2)]
            self._ahead = self._pool.submit(self._make, 0)
        if count != self._count:
            raise ValueError(f"words were made ahead for {self._count} coordinates, not {count}")
        made, turn = self._ahead.result(), self._turn
        words = made[:count].to(self.device, non_blocking=True)
        if self.device.type == "cuda":
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(torch.cuda.current_stream(self.device))
            self._copied[turn] = copied
        else:
            words = words.clone()
        self._turn = 1 - turn
        self._ahead = self._pool.submit(self._make, self._turn)
        return words

    def _make(self, turn: int) -> Tensor:
        """Fill a buffer once what was in it has been copied."""
        if (copied := self._copied[turn]) is not None:
            copied.synchronize()
        buffer = self._buffers[turn]
        self._stream.write_words(self._count, buffer.numpy().data.cast("B"))
        return buffer


def normal_of_words(words: Tensor) -> Tensor:
    """Return standard normal float64 deviates of words of a key stream, by the inverse distribution function.

    Args:
        words: [N] int64, uniform bits: the lowest is the sign, the others the magnitude.

    Returns:
        [N] on the same device; |deviate| at most 9.16.
    """
    # int64 shifts carry the sign bit along; torch has no shift of unsigned words.
    magnitude = torch.special.ndtri((((words >> 1) & _ALL_BUT_SIGN).to(torch.float64) + 0.5) * 2.0**-64)
    return torch.where((words & 1).bool(), magnitude, -magnitude)


def words_of(stream: KeyStream, count: int) -> Tensor:
    """Return the next [count] words of a stream, int64 on the CPU."""
    words = torch.empty(count + _SLACK_WORDS, dtype=torch.int64)
    stream.write_words(count, words.numpy().data.cast("B"))
    return words[:count]


def noised_on_device(
    clipped: Mapping[str, Tensor],
    noise: KeyStream | DeviceStream,
    *,
    scale: float,
    divisor: float,
    spacing: float,
    banded: BandedNoise | None = None,
) -> dict[str, Tensor]:
    """Return (sum + scale N(0, 1)) / divisor, rounded to multiples of `spacing`, without leaving the device.

    Args:
        clipped: Sum of clipped gradients of each parameter, all on one device.
        noise: One word a coordinate is taken, in the order of `clipped`.
        scale: Standard deviation of the noise on the sum, > 0.
        divisor: Public, > 0.
        spacing: Of the grid, a power of two.
        banded: Correlates the deviates with those of the steps before.

    Returns:
        Float64 tensors of the same names, shapes and device.
    """
    flat = torch.cat([tensor.detach().flatten().to(torch.float64) for tensor in clipped.values()])
    count = flat.numel()
    words = noise.words(count) if isinstance(noise, DeviceStream) else words_of(noise, count).to(flat.device)
    deviates = normal_of_words(words)
    if banded is not None:
        deviates = banded.correlate(deviates)
    released = torch.round((flat + scale * deviates) / divisor / spacing) * spacing
    parts = torch.split(released, [tensor.numel() for tensor in clipped.values()])
    return {
        name: part.reshape(tensor.shape) for (name, tensor), part in zip(clipped.items(), parts, strict=True)
    }
