"""Noise where the gradients are: on an accelerator, from the same key stream as on a CPU.

A CPU makes the key stream (AES has instructions there) and the accelerator what is dear: the inverse normal
distribution function, the sum, and the grid. Moving a model's gradients to the CPU and back takes longer than a step.

Guarantees:
    - One word of the stream a coordinate, in the order of the parameters, as `KeyStream.normal` takes them.
    - Equal to the CPU's to about 1e-15 relative, not to the bit: the two have inverse functions of their own. What is
      released is on the same grid (tests/unit/privacy/test_deviates.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from privacy.noise import KeyStream

_ALL_BUT_SIGN = 0x7FFF_FFFF_FFFF_FFFF


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


def noised_on_device(
    clipped: Mapping[str, Tensor], noise: KeyStream, *, scale: float, divisor: float, spacing: float
) -> dict[str, Tensor]:
    """Return (sum + scale N(0, 1)) / divisor, rounded to multiples of `spacing`, without leaving the device.

    Args:
        clipped: Sum of clipped gradients of each parameter, all on one device.
        noise: One word a coordinate is taken, in the order of `clipped`.
        scale: Standard deviation of the noise on the sum, > 0.
        divisor: Public, > 0.
        spacing: Of the grid, a power of two.

    Returns:
        Float64 tensors of the same names, shapes and device.
    """
    flat = torch.cat([tensor.detach().flatten().to(torch.float64) for tensor in clipped.values()])
    words = torch.frombuffer(noise.words(flat.numel()), dtype=torch.int64).to(flat.device)
    released = torch.round((flat + scale * normal_of_words(words)) / divisor / spacing) * spacing
    parts = torch.split(released, [tensor.numel() for tensor in clipped.values()])
    return {
        name: part.reshape(tensor.shape) for (name, tensor), part in zip(clipped.items(), parts, strict=True)
    }
