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

# Doubles that a block of float64 copies may hold: they stay in a core's cache.
_BLOCK = 2**16
# Doubles that the Gram matrices of a block of patients may hold.
GRAM_BLOCK = 2**19


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
    def features(self) -> int:
        """Return the entries of one x and one g."""
        ...

    @property
    def has_gram(self) -> bool:
        """Return whether `squared_norms` exists."""
        ...

    @property
    def has_columns(self) -> bool:
        """Return whether `columns` is another way than `gradients`."""
        ...

    def gram_elements(self, records: int) -> int:
        """Return the float64 numbers that `squared_norms` holds for a patient of that many records."""
        ...

    def gram_work(self, records: int) -> int:
        """Return the multiplications of `squared_norms` for such a patient."""
        ...

    def gradient(self, rows: slice) -> Tensor:
        """Return the sum of the rows' gradients, in the weight's shape."""
        ...

    def gradients(self, run: Run) -> Tensor:
        """Return [G, *shape]: the gradient of each patient, by one kernel."""
        ...

    def columns(self, run: Run) -> Tensor:
        """Return [G, *shape]: the gradient of each patient, from x and g written out as matrices."""
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


def per_patient(rows: Tensor, runs: tuple[Run, ...]) -> Tensor:
    """Return [P, ...]: sums of [B, ...] over the rows of each patient."""
    sums = [rows[run.rows] if run.records == 1 else by_patient(rows, run).sum(1) for run in runs]
    return sums[0] if len(sums) == 1 else torch.cat(sums)


def per_row(patients: Tensor, runs: tuple[Run, ...]) -> Tensor:
    """Return [B]: each patient's value at each of their rows."""
    spread, first = [], 0
    for run in runs:
        spread.append(patients[first : first + run.patients].repeat_interleave(run.records))
        first += run.patients
    return torch.cat(spread)


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


def broadcast(values: Tensor, like: Tensor) -> Tensor:
    """Return [B] as [B, 1, ...] with as many axes as `like`."""
    return values.reshape(-1, *(1 for _ in like.shape[1:]))


def scale_rows(tensor: Tensor, factors: Tensor, finite: Tensor | None) -> Tensor:
    """Return the rows times their factors; zero where not finite, because 0 x inf is NaN."""
    if finite is not None:
        tensor = torch.where(broadcast(finite, tensor), tensor, 0.0)
    return tensor * broadcast(factors, tensor).to(tensor.dtype)


def gram_sum(first: Tensor, second: Tensor) -> Tensor:
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
    def features(self) -> int:
        """Return I + O."""
        return sum(self.shape)

    @property
    def has_gram(self) -> bool:
        """Return True."""
        return True

    @property
    def has_columns(self) -> bool:
        """Return False: x and g are matrices already."""
        return False

    def gram_elements(self, records: int) -> int:
        """Return copies of x and g, and two Gram matrices."""
        terms = records * self.terms
        return terms * (self.features + 2 * terms)

    def gram_work(self, records: int) -> int:
        """Return those of two Gram matrices."""
        return (records * self.terms) ** 2 * self.features

    def gradient(self, rows: slice) -> Tensor:
        """Return g^T x."""
        return self.gradient_of_output[rows].flatten(0, 1).T @ self.x[rows].flatten(0, 1)

    def gradients(self, run: Run) -> Tensor:
        """Return g^T x of each patient."""
        x, g = self._blocks(run)
        return g.mT @ x

    def columns(self, run: Run) -> Tensor:
        """Return the same."""
        return self.gradients(run)

    def squared_norms(self, run: Run) -> Tensor:
        """Return <X X^T, Y Y^T> of each patient."""
        size = max(1, GRAM_BLOCK // self.gram_elements(run.records))
        blocks = (self._blocks(part) for part in run.split(size))
        return torch.cat([gram_sum(x.to(torch.float64).mT, g.to(torch.float64).mT) for x, g in blocks])

    def row_sizes(self) -> tuple[Tensor, Tensor]:
        """Return the norms of the rows of x and g."""
        return squared_row_norms(self.x).sqrt(), squared_row_norms(self.gradient_of_output).sqrt()

    def scaled(self, factors: Tensor, *, finite: Tensor | None) -> Self:
        """Return the use with g scaled."""
        x = self.x if finite is None else torch.where(broadcast(finite, self.x), self.x, 0.0)
        g = scale_rows(self.gradient_of_output, factors, finite)
        return dataclasses.replace(self, x=x, gradient_of_output=g)

    def _blocks(self, run: Run) -> tuple[Tensor, Tensor]:
        """Return x and g of the run as [G, k T, features]."""
        x, g = self.x[run.rows], self.gradient_of_output[run.rows]
        return (
            x.reshape(run.patients, run.records * self.terms, -1),
            g.reshape(run.patients, run.records * self.terms, -1),
        )


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
    def features(self) -> int:
        """Return 1 + O."""
        return 1 + self.shape[1]

    @property
    def has_gram(self) -> bool:
        """Return True."""
        return True

    @property
    def has_columns(self) -> bool:
        """Return False: unit vectors need not be written out."""
        return False

    def gram_elements(self, records: int) -> int:
        """Return a copy of g, and two Gram matrices."""
        terms = records * self.terms
        return terms * (self.shape[1] + 2 * terms)

    def gram_work(self, records: int) -> int:
        """Return those of two Gram matrices."""
        return (records * self.terms) ** 2 * self.features

    def gradient(self, rows: slice) -> Tensor:
        """Return g added up at the indices."""
        return self._add_up(self.indices[rows].flatten(), rows, self.shape[0])

    def gradients(self, run: Run) -> Tensor:
        """Return g added up at the indices, each patient in a table of their own."""
        indices = self.indices[run.rows].reshape(run.patients, -1)
        tables = self.shape[0] * torch.arange(run.patients, device=indices.device)
        added = self._add_up((indices + tables[:, None]).flatten(), run.rows, run.patients * self.shape[0])
        return added.reshape(run.patients, *self.shape)

    def columns(self, run: Run) -> Tensor:
        """Return the same."""
        return self.gradients(run)

    def squared_norms(self, run: Run) -> Tensor:
        """Return the sum of <g_t, g_s> over pairs of equal indices."""
        size = max(1, GRAM_BLOCK // self.gram_elements(run.records))
        return torch.cat([self._gram(part) for part in run.split(size)])

    def row_sizes(self) -> tuple[Tensor, Tensor]:
        """Return sqrt(T) and the norms of the rows of g."""
        sizes = squared_row_norms(self.gradient_of_output).sqrt()
        return torch.full_like(sizes, math.sqrt(self.terms)), sizes

    def scaled(self, factors: Tensor, *, finite: Tensor | None) -> Self:
        """Return the use with g scaled."""
        return dataclasses.replace(
            self, gradient_of_output=scale_rows(self.gradient_of_output, factors, finite)
        )

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
