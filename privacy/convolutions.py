"""The product of a convolution: x_bt is the patch under position t, g_bt the pixel there (`products`).

A transposed convolution is the convolution that runs the other way: its weight's gradient is that of the convolution
with x and g in each other's place.

The Gram matrix of patches needs no patches: <x_t, x_s> is the sum, over the kernel's offsets k, of the products of the
pixels at t + k and s + k, so that the Gram matrix of pixels has all that is needed. Patches are written out (im2col)
only for a few patients at a time.

References:
    Bu et al. 2022, arXiv:2205.10683, section 2 (norms from patches); Rochette et al. 2019, arXiv:1912.06015 (patients
    as groups of channels).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from privacy.products import GRAM_BLOCK, Run, broadcast, by_patient, gram_sum, scale_rows, squared_row_norms

# Numbers that the patches of a block of patients may hold.
_COLUMN_BLOCK = 2**18


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How a convolution moves.

    Attributes:
        stride: Of each axis.
        padding: Zeros at both ends of each axis; other paddings are applied to x before.
        dilation: Of each axis.
        transposed: Whether it is a transposed convolution.
        output_padding: Of a transposed one.
        groups: Groups of channels.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


@dataclass(frozen=True, kw_only=True)
class ConvolutionProduct:
    """Of a convolution: x [B, C, *S], g [B, O, *T], weight [O, C / groups, *K].

    Of a transposed one: x [B, C, *T], g [B, O, *S], weight [C, O / groups, *K]; positions are those of x.
    """

    x: Tensor
    gradient_of_output: Tensor
    weight: Tensor
    geometry: Geometry

    @property
    def key(self) -> Hashable:
        """Return layer and shapes."""
        shapes = (self.x.shape[1:], self.gradient_of_output.shape[1:], self.weight.shape)
        return "convolution", self.geometry, *(tuple(shape) for shape in shapes)

    @property
    def shape(self) -> torch.Size:
        """Return the weight's shape."""
        return self.weight.shape

    @property
    def terms(self) -> int:
        """Return the number of positions."""
        return math.prod(self._positions.shape[2:])

    @property
    def features(self) -> int:
        """Return the entries of a patch and of a pixel."""
        return int(self._images.shape[1]) * math.prod(self.shape[2:]) + int(self._positions.shape[1])

    @property
    def has_gram(self) -> bool:
        """Return whether all channels see all channels."""
        return self.geometry.groups == 1

    @property
    def has_columns(self) -> bool:
        """Return whether all channels see all channels."""
        return self.geometry.groups == 1

    @property
    def _positions(self) -> Tensor:
        """Return the side whose pixels are the positions t."""
        return self.x if self.geometry.transposed else self.gradient_of_output

    @property
    def _images(self) -> Tensor:
        """Return the side whose patches are multiplied with them."""
        return self.gradient_of_output if self.geometry.transposed else self.x

    @property
    def _padded(self) -> tuple[int, ...]:
        """Return the sizes of the padded image."""
        sizes = zip(self._images.shape[2:], self.geometry.padding, strict=True)
        return tuple(size + 2 * padding for size, padding in sizes)

    @property
    def _gram_by_pixels(self) -> bool:
        """Return whether products of all pairs of pixels are fewer than those of all pairs of patches."""
        return math.prod(self._padded) ** 2 <= 2 * self.terms**2 * math.prod(self.shape[2:])

    def gram_elements(self, records: int) -> int:
        """Return copies of both sides, and their Gram matrices."""
        terms = records * self.terms
        if self._gram_by_pixels:
            pixels = records * math.prod(self._padded)
            return pixels * (self.features + pixels) + 2 * terms**2
        return terms * (self.features + 2 * terms)

    def gram_work(self, records: int) -> int:
        """Return those of two Gram matrices."""
        pairs = (records * self.terms) ** 2
        if self._gram_by_pixels:
            pixels = records * math.prod(self._padded)
            channels, kernel = int(self._images.shape[1]), math.prod(self.shape[2:])
            return pixels**2 * channels + pairs * (int(self._positions.shape[1]) + kernel)
        return pairs * self.features

    def gradient(self, rows: slice) -> Tensor:
        """Return what autograd would, for these rows."""
        return self._kernel(self.x[rows], self.gradient_of_output[rows], self.weight, self.geometry.groups)

    def gradients(self, run: Run) -> Tensor:
        """Return the gradient of each patient: patients become groups of channels, records the batch."""
        x, g = (
            by_patient(side, run).transpose(0, 1).flatten(1, 2) for side in (self.x, self.gradient_of_output)
        )
        # The kernel reads the shape of the weight alone.
        weight = self.weight.new_empty(run.patients * self.shape[0], *self.shape[1:])
        out = self._kernel(x, g, weight, run.patients * self.geometry.groups)
        return out.reshape(run.patients, *self.shape)

    def columns(self, run: Run) -> Tensor:
        """Return V U^T of each patient, V the pixels and U the patches, a few patients at a time.

        With groups of channels, the same as `gradients`.
        """
        if not self.has_columns:
            return self.gradients(run)
        g = self.gradient_of_output
        out = g.new_empty(run.patients, *self.shape)
        matrices, first = out.reshape(run.patients, self.shape[0], -1), 0
        for part in run.split(max(1, _COLUMN_BLOCK // (run.records * self.terms * self.features))):
            last = first + part.patients
            torch.bmm(self._pixels(part), self._patches(part).mT, out=matrices[first:last])
            first = last
        return out

    def squared_norms(self, run: Run) -> Tensor:
        """Return <U^T U, V^T V> of each patient."""
        size = max(1, GRAM_BLOCK // self.gram_elements(run.records))
        return torch.cat([self._gram(part) for part in run.split(size)])

    def row_sizes(self) -> tuple[Tensor, Tensor]:
        """Return the norms of the rows, times the root of the number of patches that a pixel can be in."""
        way = self.geometry
        patches = math.prod(
            math.ceil(size * math.gcd(stride, dilation) / stride)
            for size, stride, dilation in zip(self.shape[2:], way.stride, way.dilation, strict=True)
        )
        overlap = math.sqrt(patches)
        return squared_row_norms(self.x).sqrt() * overlap, squared_row_norms(self.gradient_of_output).sqrt()

    def scaled(self, factors: Tensor, *, finite: Tensor | None) -> Self:
        """Return the use with g scaled."""
        x = self.x if finite is None else torch.where(broadcast(finite, self.x), self.x, 0.0)
        g = scale_rows(self.gradient_of_output, factors, finite)
        return dataclasses.replace(self, x=x, gradient_of_output=g)

    def _kernel(self, x: Tensor, g: Tensor, weight: Tensor, groups: int) -> Tensor:
        """Return the weight's gradient by torch's own backward."""
        way = self.geometry
        gradient: Tensor = torch.ops.aten.convolution_backward(
            g,
            x,
            weight,
            None,
            way.stride,
            way.padding,
            way.dilation,
            way.transposed,
            way.output_padding,
            groups,
            [False, True, False],
        )[1]
        return gradient

    def _image(self, run: Run) -> Tensor:
        """Return the padded images [G k, C, *S]."""
        padding = [size for each in reversed(self.geometry.padding) for size in (each, each)]
        return functional.pad(self._images[run.rows], padding)

    def _patches(self, run: Run) -> Tensor:
        """Return U [G, C |K|, k T]."""
        way, patches = self.geometry, self._image(run)
        positions, axes = self._positions.shape[2:], len(self.shape) - 2
        for axis, (size, stride, dilation) in enumerate(
            zip(self.shape[2:], way.stride, way.dilation, strict=True)
        ):
            patches = patches.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
            # A transposed convolution with output padding has pixels that no position reaches.
            patches = patches.narrow(2 + axis, 0, positions[axis])
        patches = patches.reshape(run.patients, run.records, *patches.shape[1:])  # [G, k, C, *T, *K]
        order = (0, 2, *range(3 + axes, 3 + 2 * axes), 1, *range(3, 3 + axes))
        return patches.permute(order).reshape(run.patients, -1, run.records * self.terms)

    def _pixels(self, run: Run) -> Tensor:
        """Return V [G, channels, k T]."""
        pixels = by_patient(self._positions, run).flatten(3).transpose(1, 2)
        return pixels.reshape(run.patients, -1, run.records * self.terms)

    def _gram(self, run: Run) -> Tensor:
        """Return the squared norms of a few patients."""
        if not self._gram_by_pixels:
            return gram_sum(self._patches(run).to(torch.float64), self._pixels(run).to(torch.float64))
        pixels = self._pixels(run).to(torch.float64)
        grams = self._patch_gram(run) * (pixels.mT @ pixels)
        return grams.sum((1, 2))

    def _patch_gram(self, run: Run) -> Tensor:
        """Return U^T U [G, k T, k T] float64 without U: <x_t, x_s> summed along the kernel's offsets."""
        image = self._image(run).to(torch.float64)
        sizes, records, way = image.shape[2:], run.records, self.geometry
        image = image.reshape(run.patients, records, image.shape[1], -1).transpose(1, 2).flatten(2)
        products = (image.mT @ image).reshape(run.patients, records, *sizes, records, *sizes)
        total: Tensor | None = None
        for offset in itertools.product(*(range(size) for size in self.shape[2:])):
            seen = [slice(None)] + [
                slice(step * dilation, step * dilation + stride * (count - 1) + 1, stride)
                for step, dilation, stride, count in zip(
                    offset, way.dilation, way.stride, self._positions.shape[2:], strict=True
                )
            ]
            part = products[(slice(None), *seen, *seen)]
            total = part.clone() if total is None else total.add_(part)
        if total is None:
            raise RuntimeError("a kernel has no entries")
        return total.reshape(run.patients, records * self.terms, -1)
