"""The norm of each patient's gradient with respect to one weight, or an upper bound of it, and the weighted sum.

    loop, vmap, columns             the gradient of each patient, by one kernel each, by one for all, or from
                                    matrices; it is kept
    loop-recompute,                 the same for the norm alone, a few patients at a time; the sum is another
    columns-recompute               kernel, weighted
    gram                            the norm from Gram matrices; the sum is a weighted kernel

Rounding. A server may choose weights for which huge terms cancel in every patient's gradient. A gradient that
is kept has the norm, in float64, of the very tensor that is multiplied and added in float64: its clip is exact
whatever the kernel made of it. A weighted kernel rounds anew, and with it a patient's contribution may be
longer than the clipped norm. So where nothing is kept the clip works with an upper bound,

    N_p = sqrt(n_p^2 + c_1 B_p^2) + c_2 B_p,    B_p = sum_{b in p} sqrt(o) ||x_b|| ||g_b||

n_p the norm as computed, and o how many patches of a convolution a pixel can be in (1 for others; at most the
size of the kernel). By Cauchy-Schwarz B_p bounds the sum of the norms of all outer products, that is of all
that is rounded. Hence, for any order of summation, with u = half the machine epsilon:

    - c_1 = (features + (k T)^2) 2^-53 for Gram matrices, features the entries of one x and one g: they are
      computed in float64, from values that are exact there; zero if the gradient was instantiated;
    - c_2 = (m + 4) u, m the number of products that one kernel adds: rows are summed in blocks of m <= 256 for
      float32, and the blocks in float64. The 4 covers the multiplication with the factor. Of a norm that was
      itself instantiated in that precision, (k T + 4) u more.

A kernel that computes sum_i t_i in any order returns sum_i t_i (1 + e_i), |e_i| <= m u to first order: what it makes
of a patient's terms is within c_2 B_p of what they are, whoever else is summed. On CUDA, u is 2^-11 where TF32
is allowed; convolutions, which may be computed in Winograd's way, count 16 times otherwise.

What it does not do: choose a method, or clip (`bookkeeping`).

References:
    Higham 2002, Accuracy and Stability of Numerical Algorithms, 2nd edition, sections 3.1 and 4.2. For the
    methods see `products`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from privacy.convolutions import ConvolutionProduct
from privacy.products import (
    Product,
    Run,
    per_patient,
    per_row,
    squared_row_norms,
    weighted_sum,
)

Keeping = Literal["loop", "vmap", "columns"]
Method = Literal[Keeping, "loop-recompute", "columns-recompute", "gram"]
METHODS: tuple[Method, ...] = get_args(Method)

# Products that a float32 kernel may add up before float64 takes over: c_2 stays below 2e-5.
_TERMS = 256
# Numbers that gradients which are thrown away may hold at once: they stay in a core's cache.
_BLOCK = 2**19


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What is known where nothing is kept.

    Attributes:
        product: What a weighted kernel will sum.
        widening: [P] float64: how much of the norm is for rounding.
        underflow: [P] float64: how far a contribution can be off where factors turn entries into subnormals.
    """

    product: Product
    widening: Tensor
    underflow: Tensor


@dataclass(frozen=True, kw_only=True)
class Part:
    """One parameter of P patients: gradients that are kept, or bounds.

    Attributes:
        name: Of the parameter.
        squared: [P] float64: squared norms; upper bounds of them where nothing is kept.
        kept: [P, *shape], or None.
        bound: None if they are kept.
    """

    name: str
    squared: Tensor
    kept: Tensor | None = None
    bound: Bound | None = None


def keep(name: str, gradients: Tensor) -> Part:
    """Return the part of one parameter whose gradients are [P, *shape]."""
    return Part(name=name, squared=squared_row_norms(gradients), kept=gradients)


def measure(name: str, product: Product, runs: tuple[Run, ...], method: Method) -> Part:
    """Return the gradients of the patients with respect to one weight, or bounds, by one method.

    A method that a product does not have is replaced by `vmap`.
    """
    if method == "gram" and not product.has_gram:
        method = "vmap"
    if method in ("loop", "vmap", "columns"):
        return keep(name, gradients_of(product, runs, method))
    x, g = product.row_sizes()
    size, u = per_patient(x * g, runs), unit_roundoff(product)
    if method == "gram":
        computed = torch.cat([product.squared_norms(run) for run in runs]).clamp(min=0.0)
        norms = (computed + _gram_error(product, runs, size) * size.square()).sqrt()
    else:
        computed = torch.cat([_norms_alone(product, run, method) for run in runs])
        norms = computed.sqrt() + (_terms(product, runs, size) + 4) * u * size
    norms = norms + (_rows_at_once(product) * product.terms + 4) * u * size
    entries = product.gradient_of_output.numel() ** 0.5
    bound = Bound(
        product=product,
        widening=norms - computed.sqrt(),
        underflow=per_patient(x, runs) * entries * torch.finfo(product.gradient_of_output.dtype).tiny,
    )
    return Part(name=name, squared=norms.square(), bound=bound)


def contribution(part: Part, runs: tuple[Run, ...], factors: Tensor, counted: Tensor | None) -> Tensor:
    """Return sum_p factors[p] G_p in float64.

    Args:
        part: Of P patients.
        runs: They.
        factors: [P] float64.
        counted: [P] bool: whose gradient is read at all; None for all. 0 x inf would be NaN.
    """
    if part.bound is not None:
        finite = None if counted is None else per_row(counted, runs)
        return _blocked_gradient(part.bound.product.scaled(per_row(factors, runs), finite=finite))
    if part.kept is None:
        raise ValueError(f"nothing is known of {part.name}")
    kept = part.kept
    if counted is not None:
        kept = torch.where(counted.reshape(-1, *(1 for _ in kept.shape[1:])), kept, 0.0)
    return weighted_sum(factors, kept)


def gradients_of(product: Product, runs: tuple[Run, ...], method: Keeping) -> Tensor:
    """Return [P, *shape]: the gradient of each patient."""
    if method == "loop":
        g = product.gradient_of_output
        out = g.new_empty(sum(run.patients for run in runs), *product.shape)
        for patient, rows in enumerate(rows for run in runs for rows in run.each()):
            out[patient] = product.gradient(rows)
        return out
    many = product.columns if method == "columns" else product.gradients
    parts = [many(run) for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _norms_alone(product: Product, run: Run, method: Method) -> Tensor:
    """Return [G] float64: squared norms of gradients that are thrown away."""
    if method == "columns-recompute":
        size = max(1, _BLOCK // product.shape.numel())
        return torch.cat([squared_row_norms(product.columns(part)) for part in run.split(size)])
    return torch.cat([squared_row_norms(product.gradient(rows)[None]) for rows in run.each()])


def _blocked_gradient(product: Product) -> Tensor:
    """Return the sum of all rows' gradients: kernels of few terms, added up in float64."""
    rows, size = product.gradient_of_output.shape[0], _rows_at_once(product)
    total = product.gradient(slice(0, size)).to(torch.float64)
    for first in range(size, rows, size):
        total += product.gradient(slice(first, first + size))
    return total


def _rows_at_once(product: Product) -> int:
    """Return how many rows a weighted kernel sums."""
    g = product.gradient_of_output
    rows = int(g.shape[0])
    return rows if g.dtype == torch.float64 else min(rows, max(1, _TERMS // product.terms))


def unit_roundoff(product: Product) -> float:
    """Return u of the kernels that compute a product's gradient: see Rounding."""
    g, is_convolution = product.gradient_of_output, isinstance(product, ConvolutionProduct)
    u = torch.finfo(g.dtype).eps / 2
    if not g.is_cuda:
        return u
    if g.dtype == torch.float32 and _allows_tf32(is_convolution=is_convolution):
        return 2.0**-11
    return 16 * u if is_convolution else u


def _allows_tf32(*, is_convolution: bool) -> bool:
    """Return whether any setting lets CUDA shorten float32 (torch 2.11: reading the older flags can raise)."""
    backends: Any = torch.backends
    own = (backends.cudnn, backends.cudnn.conv) if is_convolution else (backends.cuda.matmul,)
    return any(setting.fp32_precision == "tf32" for setting in (backends, *own))


def _terms(product: Product, runs: tuple[Run, ...], like: Tensor) -> Tensor:
    """Return [P] float64: outer products of each patient."""
    return _spread([run.records * product.terms for run in runs], runs, like)


def _gram_error(product: Product, runs: tuple[Run, ...], like: Tensor) -> Tensor:
    """Return [P] float64: c_1."""
    counts = (run.records * product.terms for run in runs)
    return _spread([2.0**-53 * (product.features + terms**2) for terms in counts], runs, like)


def _spread(values: Iterable[float], runs: tuple[Run, ...], like: Tensor) -> Tensor:
    """Return [P]: a value of each run, for each of its patients."""
    return torch.cat([like.new_full((run.patients,), value) for run, value in zip(runs, values, strict=True)])
