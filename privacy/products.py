"""Sums of outer products: the gradient of a weight for each patient, its norm, and weighted sums over patients.

The gradient of a weight is a sum of outer products of what its layer was given, x, and of the gradient of what
it returned, g, over the positions t of a record and over the records b of a patient:

    G_p = sum_{b in p} sum_t g_bt x_bt^T

so x and g are enough for all that a clip needs (`Product`):

    - `gradient`, `gradients`: G_p itself, by the layer's own backward kernel, one patient at a time or several
      in one grouped kernel;
    - `squared_norms`: ||G_p||^2 = sum_{(b,t),(c,s)} <x_bt, x_cs> <g_bt, g_cs>, two Gram matrices, without G_p
      ("ghost norm": Goodfellow for one product, Li et al. for sequences, Bu et al. for convolutions);
    - `scaled`, then `gradient` of all rows: sum_p f_p G_p by one weighted kernel ("book-keeping").

For a convolution x_bt is the patch under output position t. A transposed convolution is the convolution that
runs the other way: its weight's gradient is that of the convolution with x and g in each other's place. An
embedding's x_bt is a unit vector, so that <x_bt, x_cs> says whether two indices are equal.

Shapes: B rows (records), T positions of a row, I and O features in and out, C channels, *S space, *K kernel;
a run is G patients of k records each, whose G k rows follow one another.

What it does not do: choose a method, bound rounding, clip (`bookkeeping`).

References:
    Goodfellow 2015, arXiv:1510.01799; Lee & Kifer 2020, arXiv:2009.03106 (convolutions); Li et al. 2021,
    arXiv:2110.05679, section 4 (ghost clipping); Bu et al. 2022, arXiv:2205.10683 (ghost norms of
    convolutions, mixed with instantiated ones) and 2022, arXiv:2210.00038 (book-keeping).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional

# Doubles that a block of float64 copies may hold: they stay in a core's cache.
_BLOCK = 2**16
# Doubles that the Gram matrices of a block of patients may hold, 32 MiB.
_GRAM_BLOCK = 2**22


@dataclass(frozen=True, kw_only=True)
class Run:
    """Patients with equally many records, whose rows follow one another.

    Attributes:
        start: First row.
        patients: G.
        records: k, of each.
    """

    start: int
    patients: int
    records: int

    @property
    def rows(self) -> slice:
        """Return the rows of all."""
        return slice(self.start, self.start + self.patients * self.records)

    def each(self) -> Iterator[slice]:
        """Yield the rows of each patient."""
        for patient in range(self.patients):
            first = self.start + patient * self.records
            yield slice(first, first + self.records)

    def split(self, size: int) -> Iterator[Run]:
        """Yield runs of at most `size` patients."""
        for first in range(0, self.patients, size):
            yield Run(
                start=self.start + first * self.records,
                patients=min(size, self.patients - first),
                records=self.records,
            )


class Product(Protocol):
    """One use of a weight: what its layer was given (x), and the gradient of what it returned (g)."""

    @property
    def key(self) -> Hashable:
        """Return what decides how fast each method is, apart from the rows: layer and shapes."""
        ...

    @property
    def shape(self) -> torch.Size:
        """Return the weight's shape."""
        ...

    @property
    def gradient_of_output(self) -> Tensor:
        """Return g [B, ...], in the weight's type."""
        ...

    @property
    def terms(self) -> int:
        """Return T, outer products of a row."""
        ...

    @property
    def has_gram(self) -> bool:
        """Return whether `squared_norms` exists."""
        ...

    def gram_elements(self, records: int) -> int:
        """Return the float64 numbers that `squared_norms` holds for a patient of that many records."""
        ...

    def gradient(self, rows: slice) -> Tensor:
        """Return the sum of the rows' gradients, in the weight's shape."""
        ...

    def gradients(self, run: Run) -> Tensor:
        """Return [G, *shape]: the gradient of each patient, by one kernel."""
        ...

    def squared_norms(self, run: Run) -> Tensor:
        """Return [G] float64: ||G_p||^2 by Gram matrices in float64."""
        ...

    def row_sizes(self) -> tuple[Tensor, Tensor]:
        """Return ([B], [B]) float64, a_b and c_b: a_b >= (sum_t ||x_bt||^2)^(1/2), c_b = (sum_t ||g_bt||^2)^(1/2).

        By Cauchy-Schwarz a_b c_b bounds sum_t ||x_bt|| ||g_bt||, which rounding errors are measured against.
        """
        ...

    def scaled(self, factors: Tensor, *, finite: Tensor | None) -> Self:
        """Return the use with row b of g times factors[b]; rows that are not finite become zero, in x too.

        Args:
            factors: [B] float64.
            finite: [B] bool; None if all are.
        """
        ...


def by_patient(rows: Tensor, run: Run) -> Tensor:
    """Return [G, k, ...]: the rows of a run, of [B, ...]."""
    return rows[run.rows].reshape(run.patients, run.records, *rows.shape[1:])


def squared_row_norms(tensor: Tensor) -> Tensor:
    """Return [N] float64: the squared L2 norm of each row of [N, ...]."""
    rows = tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]
    if rows.is_cuda or rows.shape[1] == 0:
        norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        return norms.square()
    # On a CPU vector_norm with a dtype is eight times slower than this (torch 2.13).
    size = max(1, _BLOCK // rows.shape[1])
    blocks = (rows[first : first + size].to(torch.float64) for first in range(0, rows.shape[0], size))
    return torch.cat([torch.linalg.vecdot(block, block) for block in blocks])


def weighted_sum(factors: Tensor, tensor: Tensor) -> Tensor:
    """Return sum_n factors[n] tensor[n] in float64 for factors [N] float64 and [N, ...] of any type."""
    rows = tensor.reshape(tensor.shape[0], -1)
    if rows.is_cuda or rows.dtype == torch.float64:
        return (factors @ rows.to(torch.float64)).reshape(tensor.shape[1:])
    # In blocks of columns: a float64 copy of everything would cost more than the sum (torch 2.13).
    total = torch.empty(rows.shape[1], dtype=torch.float64, device=rows.device)
    size = max(1, 8 * _BLOCK // rows.shape[0])
    for first in range(0, rows.shape[1], size):
        block = rows[:, first : first + size].to(torch.float64)
        torch.mv(block.T, factors, out=total[first : first + size])
    return total.reshape(tensor.shape[1:])


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    """Return [B] as [B, 1, ...] with as many axes as `like`."""
    return values.reshape(-1, *(1 for _ in like.shape[1:]))


def _scale(tensor: Tensor, factors: Tensor, finite: Tensor | None) -> Tensor:
    """Return the rows times their factors; zero where not finite, because 0 x inf is NaN."""
    if finite is not None:
        tensor = torch.where(_per_row(finite, tensor), tensor, 0.0)
    return tensor * _per_row(factors, tensor).to(tensor.dtype)


def _gram_sum(first: Tensor, second: Tensor) -> Tensor:
    """Return [G]: sum_{t,s} <x_t, x_s> <g_t, g_s> of [G, features, N] and [G, features, N] float64."""
    grams = (first.mT @ first) * (second.mT @ second)
    return grams.sum((1, 2))


@dataclass(frozen=True, kw_only=True)
class LinearProduct:
    """Of `Linear`: x [B, T, I], g [B, T, O], weight [O, I]."""

    x: Tensor
    gradient_of_output: Tensor

    @property
    def key(self) -> Hashable:
        """Return layer and shapes."""
        return "linear", tuple(self.x.shape[1:]), tuple(self.gradient_of_output.shape[1:])

    @property
    def shape(self) -> torch.Size:
        """Return [O, I]."""
        return torch.Size((self.gradient_of_output.shape[2], self.x.shape[2]))

    @property
    def terms(self) -> int:
        """Return T."""
        return int(self.x.shape[1])

    @property
    def has_gram(self) -> bool:
        """Return True."""
        return True

    def gram_elements(self, records: int) -> int:
        """Return copies of x and g, and two Gram matrices."""
        terms = records * self.terms
        return terms * (sum(self.shape) + 2 * terms)

    def gradient(self, rows: slice) -> Tensor:
        """Return g^T x."""
        return self.gradient_of_output[rows].flatten(0, 1).T @ self.x[rows].flatten(0, 1)

    def gradients(self, run: Run) -> Tensor:
        """Return g^T x of each patient."""
        x, g = self._blocks(run)
        return g.mT @ x

    def squared_norms(self, run: Run) -> Tensor:
        """Return <X X^T, Y Y^T> of each patient."""
        size = max(1, _GRAM_BLOCK // self.gram_elements(run.records))
        blocks = (self._blocks(part) for part in run.split(size))
        return torch.cat([_gram_sum(x.to(torch.float64).mT, g.to(torch.float64).mT) for x, g in blocks])

    def row_sizes(self) -> tuple[Tensor, Tensor]:
        """Return the norms of the rows of x and g."""
        return squared_row_norms(self.x).sqrt(), squared_row_norms(self.gradient_of_output).sqrt()

    def scaled(self, factors: Tensor, *, finite: Tensor | None) -> Self:
        """Return the use with g scaled."""
        x = self.x if finite is None else torch.where(_per_row(finite, self.x), self.x, 0.0)
        g = _scale(self.gradient_of_output, factors, finite)
        return dataclasses.replace(self, x=x, gradient_of_output=g)

    def _blocks(self, run: Run) -> tuple[Tensor, Tensor]:
        """Return x and g of the run as [G, k T, features]."""
        x, g = self.x[run.rows], self.gradient_of_output[run.rows]
        return (
            x.reshape(run.patients, run.records * self.terms, -1),
            g.reshape(run.patients, run.records * self.terms, -1),
        )


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
    def has_gram(self) -> bool:
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

    def gram_elements(self, records: int) -> int:
        """Return copies of patches and pixels, and two Gram matrices."""
        terms = records * self.terms
        patch = int(self._images.shape[1]) * math.prod(self.shape[2:])
        return terms * (patch + int(self._positions.shape[1]) + 2 * terms)

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

    def squared_norms(self, run: Run) -> Tensor:
        """Return <U^T U, V^T V> of each patient, U the patches and V the pixels."""
        size = max(1, _GRAM_BLOCK // self.gram_elements(run.records))
        return torch.cat([_gram_sum(self._patches(part), self._pixels(part)) for part in run.split(size)])

    def row_sizes(self) -> tuple[Tensor, Tensor]:
        """Return the norms of the rows; a pixel is in at most as many patches as the kernel has entries."""
        overlap = math.sqrt(math.prod(self.shape[2:]))
        return squared_row_norms(self.x).sqrt() * overlap, squared_row_norms(self.gradient_of_output).sqrt()

    def scaled(self, factors: Tensor, *, finite: Tensor | None) -> Self:
        """Return the use with g scaled."""
        x = self.x if finite is None else torch.where(_per_row(finite, self.x), self.x, 0.0)
        g = _scale(self.gradient_of_output, factors, finite)
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

    def _patches(self, run: Run) -> Tensor:
        """Return U [G, C |K|, k T] float64."""
        way, kernel = self.geometry, self.shape[2:]
        patches = functional.pad(
            self._images[run.rows], [size for each in reversed(way.padding) for size in (each, each)]
        )
        positions = self._positions.shape[2:]
        for axis, (size, stride, dilation) in enumerate(zip(kernel, way.stride, way.dilation, strict=True)):
            patches = patches.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
            # A transposed convolution with output padding has pixels that no position reaches.
            patches = patches.narrow(2 + axis, 0, positions[axis])
        axes = len(kernel)
        patches = patches.reshape(run.patients, run.records, *patches.shape[1:])  # [G, k, C, *T, *K]
        order = (0, 2, *range(3 + axes, 3 + 2 * axes), 1, *range(3, 3 + axes))
        columns = patches.permute(order).to(torch.float64, memory_format=torch.contiguous_format)
        return columns.reshape(run.patients, -1, run.records * self.terms)

    def _pixels(self, run: Run) -> Tensor:
        """Return V [G, channels, k T] float64."""
        pixels = by_patient(self._positions, run).flatten(3).to(torch.float64).transpose(1, 2)
        return pixels.reshape(run.patients, -1, run.records * self.terms)


@dataclass(frozen=True, kw_only=True)
class EmbeddingProduct:
    """Of `Embedding`: indices [B, T] int64, g [B, T, O], zero at the padding; weight [V, O]."""

    indices: Tensor
    gradient_of_output: Tensor
    shape: torch.Size

    @property
    def key(self) -> Hashable:
        """Return layer and shapes."""
        return "embedding", tuple(self.indices.shape[1:]), tuple(self.shape)

    @property
    def terms(self) -> int:
        """Return T."""
        return int(self.indices.shape[1])

    @property
    def has_gram(self) -> bool:
        """Return True."""
        return True

    def gram_elements(self, records: int) -> int:
        """Return a copy of g, and two Gram matrices."""
        terms = records * self.terms
        return terms * (self.shape[1] + 2 * terms)

    def gradient(self, rows: slice) -> Tensor:
        """Return g added up at the indices."""
        return self._add_up(self.indices[rows].flatten(), rows, self.shape[0])

    def gradients(self, run: Run) -> Tensor:
        """Return g added up at the indices, each patient in a table of their own."""
        indices = self.indices[run.rows].reshape(run.patients, -1)
        tables = self.shape[0] * torch.arange(run.patients, device=indices.device)
        added = self._add_up((indices + tables[:, None]).flatten(), run.rows, run.patients * self.shape[0])
        return added.reshape(run.patients, *self.shape)

    def squared_norms(self, run: Run) -> Tensor:
        """Return the sum of <g_t, g_s> over pairs of equal indices."""
        size = max(1, _GRAM_BLOCK // self.gram_elements(run.records))
        return torch.cat([self._gram(part) for part in run.split(size)])

    def row_sizes(self) -> tuple[Tensor, Tensor]:
        """Return sqrt(T) and the norms of the rows of g."""
        sizes = squared_row_norms(self.gradient_of_output).sqrt()
        return torch.full_like(sizes, math.sqrt(self.terms)), sizes

    def scaled(self, factors: Tensor, *, finite: Tensor | None) -> Self:
        """Return the use with g scaled."""
        return dataclasses.replace(self, gradient_of_output=_scale(self.gradient_of_output, factors, finite))

    def _add_up(self, indices: Tensor, rows: slice, entries: int) -> Tensor:
        """Return [entries, O]."""
        g = self.gradient_of_output[rows].flatten(0, 1)
        return g.new_zeros(entries, self.shape[1]).index_add_(0, indices, g)

    def _gram(self, run: Run) -> Tensor:
        """Return the squared norms of a few patients."""
        indices = self.indices[run.rows].reshape(run.patients, -1)
        g = self.gradient_of_output[run.rows].to(torch.float64).reshape(run.patients, -1, self.shape[1])
        same = indices[:, :, None] == indices[:, None, :]
        grams = (g @ g.mT) * same
        return grams.sum((1, 2))
