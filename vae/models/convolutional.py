"""Encoder and decoder of 2D and 3D images: one stride-2 level for each entry of `channels`.

Built of MONAI's `Convolution` block (convolution, GroupNorm) with SiLU. Importing MONAI 1.6.1 takes about two
seconds of CPU, so nothing but `vae.models` imports this module, and only when an image model is built. The
block is worth that where images are: the same process reads and preprocesses them with MONAI.

Choices that are not obvious:

- Kernel 4 for stride 2: kernel 3 at an even size samples unevenly, and for 3D, kernel 3 and a batch of one
  (a patient with one scan) torch 2.13 takes a CPU path 5 to 10 times slower a record than for two.
- `interpolate` (nearest neighbour, then kernel 3) cannot give a checkerboard and has fewer weights;
  `transpose` (kernel 4) avoids that slow path and trains a 3D model about six times faster on a CPU.
- Convolutions keep their bias before GroupNorm: without it the encoder cannot see an image's overall gain.
- At least four channels a group where the width allows: a group of one channel erases that channel's mean.
- Covariates enter the encoder after each norm (before it, a constant channel would be normalised away), and
  the decoder beside the latent.
- Sizes that 2^levels does not divide are padded with zeros at the far ends and cropped, never resampled.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from monai.networks.blocks.convolutions import Convolution
from torch import Tensor, nn

from vae.errors import ModelSpecError
from vae.models.autoencoder import Networks
from vae.spec import ModelSpec, Upsampling

_MAX_GROUPS = 8
_MIN_CHANNELS_PER_GROUP = 4


def networks(spec: ModelSpec) -> Networks:
    """Return encoder and decoder of 2D or 3D images.

    Raises:
        ModelSpecError: an axis is too short for the number of levels.
    """
    grid = _bottleneck(spec)
    return Networks(encoder=ImageEncoder(spec, grid), decoder=ImageDecoder(spec, grid))


def _bottleneck(spec: ModelSpec) -> tuple[int, ...]:
    """Return the innermost grid; with fewer than two positions an axis a norm there has nothing to use."""
    space, levels = spec.input_shape[1:], len(spec.channels)
    grid = tuple(math.ceil(size / 2**levels) for size in space)
    if min(grid) < 2:
        raise ModelSpecError(
            f"model: input size {'x'.join(map(str, space))} is too small for {levels} levels of stride 2 "
            f"(channels {list(spec.channels)}): every axis needs more than {2**levels} positions; "
            "use fewer channels or a larger crop"
        )
    return grid


def _groups(width: int) -> int:
    """Return the largest number of groups that divides `width` and leaves enough channels in each."""
    limit = max(1, min(_MAX_GROUPS, width // _MIN_CHANNELS_PER_GROUP))
    return max(groups for groups in range(1, limit + 1) if width % groups == 0)


def _norm(width: int) -> tuple[str, dict[str, int]]:
    """Return MONAI's way to say GroupNorm."""
    return ("group", {"num_groups": _groups(width)})


class EncoderLevel(nn.Module):
    """Halves the grid: convolution, norm, shift by the covariates, SiLU."""

    def __init__(self, spec: ModelSpec, into: int, out: int) -> None:
        super().__init__()
        self.convolution = Convolution(
            len(spec.input_shape) - 1,
            into,
            out,
            strides=2,
            kernel_size=4,
            padding=1,
            act=None,
            norm=_norm(out),
        )
        self.shift = nn.Linear(spec.num_covariates, out, bias=False) if spec.num_covariates else None

    def forward(self, hidden: Tensor, covariates: Tensor) -> Tensor:
        """Return [B, out, *S / 2] of [B, into, *S] and [B, K]."""
        hidden = self.convolution(hidden)
        if self.shift is not None:
            hidden = hidden + self.shift(covariates).reshape(
                *hidden.shape[:2], *(1 for _ in hidden.shape[2:])
            )
        return nn.functional.silu(hidden)


class ImageEncoder(nn.Module):
    """From an image to mean and log variance of the posterior."""

    def __init__(self, spec: ModelSpec, grid: tuple[int, ...]) -> None:
        super().__init__()
        widths = (spec.input_shape[0], *spec.channels)
        self._padding = _padding(spec, grid)
        self.levels = nn.ModuleList(EncoderLevel(spec, into, out) for into, out in pairwise(widths))
        self.posterior = nn.Linear(widths[-1] * math.prod(grid), 2 * spec.latent_size)

    def forward(self, values: Tensor, covariates: Tensor) -> Tensor:
        """Return [B, 2 Z] of values [B, C, *S] and covariates [B, K]."""
        hidden = nn.functional.pad(values, self._padding) if any(self._padding) else values
        for level in self.levels:
            hidden = level(hidden, covariates)
        posterior: Tensor = self.posterior(hidden.flatten(1))
        return posterior


class ImageDecoder(nn.Module):
    """From a latent to the mean of the image, before the output's nonlinearity."""

    def __init__(self, spec: ModelSpec, grid: tuple[int, ...]) -> None:
        super().__init__()
        widths = (*reversed(spec.channels), spec.input_shape[0])
        dimensions = len(grid)
        self._space = spec.input_shape[1:]
        self._grid = (widths[0], *grid)
        self.features = nn.Linear(spec.latent_size + spec.num_covariates, math.prod(self._grid))
        self.levels = nn.ModuleList(
            _upsampling_level(dimensions, into, out, how=spec.upsampling, last=position == len(widths) - 2)
            for position, (into, out) in enumerate(pairwise(widths))
        )

    def forward(self, latent: Tensor, covariates: Tensor) -> Tensor:
        """Return [B, C, *S] of latent [B, Z] and covariates [B, K]."""
        features = self.features(torch.cat((latent, covariates), dim=1))
        hidden = nn.functional.silu(features).reshape(latent.shape[0], *self._grid)
        for position, level in enumerate(self.levels):
            hidden = level(hidden)
            if position < len(self.levels) - 1:
                hidden = nn.functional.silu(hidden)
        for axis, size in enumerate(self._space, start=2):
            hidden = hidden.narrow(axis, 0, size)
        return hidden


def _upsampling_level(dimensions: int, into: int, out: int, *, how: Upsampling, last: bool) -> nn.Module:
    """Return the layers that double the grid; the last level gives the image and has no norm."""
    norm = None if last else _norm(out)
    if how == "transpose":
        block: nn.Module = Convolution(
            dimensions,
            into,
            out,
            strides=2,
            kernel_size=4,
            padding=1,
            output_padding=0,
            act=None,
            norm=norm,
            is_transposed=True,
        )
        return block
    convolution = Convolution(dimensions, into, out, kernel_size=3, act=None, norm=norm)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), convolution)


def _padding(spec: ModelSpec, grid: tuple[int, ...]) -> tuple[int, ...]:
    """Return the zeros at the far end of each axis, last axis first as `torch.nn.functional.pad` wants it."""
    step = 2 ** len(spec.channels)
    missing = [cells * step - size for cells, size in zip(grid, spec.input_shape[1:], strict=True)]
    return tuple(count for lacking in reversed(missing) for count in (0, lacking))
