"""Clipped sums from one forward and one backward pass: norms layer by layer, then one weighted sum a weight.

`tape` runs the module once and keeps, for each use of a weight, what its layer was given and the gradient of
what it returned; `products` turns those into gradients of patients, or into their norms alone. Here each
weight gets the method that is fastest for its shapes (`choose_method`), the norms are added up, patients are
clipped, and the sum is taken.

    loop, vmap                      the gradient of each patient, one kernel each or one for all; it is kept
    loop-recompute, vmap-recompute  the same for the norm alone; the sum is another kernel, weighted
    gram                            the norm from Gram matrices; the sum is a weighted kernel

Parameters that are used more than once, and small ones, are always kept: a patient's gradients of all uses are
added before the norm is taken.

Rounding. A server may choose weights for which huge terms cancel in every patient's gradient. A gradient that
is kept has the norm, in float64, of the very tensor that is multiplied and added in float64: its clip is exact
whatever the kernel made of it. A weighted kernel rounds anew, and with it a patient's contribution may be
longer than the clipped norm. So where nothing is kept the clip works with an upper bound,

    N_p = sqrt(n_p^2 + c_1 B_p^2) + c_2 B_p,    B_p = sum_{b in p} sqrt(|K|) ||x_b|| ||g_b||

n_p the norm as computed, |K| the size of a convolution's kernel (1 for others). B_p bounds the sum of the
norms of all outer products, that is of everything that was rounded (Cauchy-Schwarz), so for any order of
summation, with u = half the machine epsilon (Higham 2002, section 3.1 and 4.2):

    - c_1 = (features of x and g + (k T)^2) 2^-53: Gram matrices are computed in float64 from values that are
      exact there; zero if the gradient was instantiated;
    - c_2 = (m + 4) u, m the number of products that one kernel adds: rows are summed in blocks with m <= 128
      for float32, and the blocks in float64. The 4 covers the factor's multiplication. Twice for a norm that
      was itself instantiated in that precision, with m = k T.

Where TF32 is allowed for convolutions, u is 2^-11; other CUDA convolutions, which may be of Winograd's kind,
count 16 times. Where the bounds add more than 1e-3 to the squared norm of a patient who is clipped, or values
are so large or small that a factor could underflow, the weights responsible are computed again and kept, in
that batch: the signal is not lost. That takes patients x parameters of memory.

Guarantees, beside those of `clipping`:
    - float64 and float32: a patient's own terms move the sum by at most C (1 + 1e-12), for any weights of the
      module (tests/unit/privacy/test_bookkeeping.py, tests/property/test_clip_bound.py). As for every engine,
      the others' rounding may depend on who else is there: in a weighted kernel by up to 5e-4 C a patient for
      weights made to that end, about 1e-7 C otherwise; nothing if all is kept.
    - The method changes results by rounding alone; the clip factor of patients who are clipped by up to 5e-4
      downwards, because of the bound (typically 1e-5 in float32, 1e-12 in float64).
    - Equal bits in one process, where choices are kept. In another process timing may choose otherwise: set
      `method` where bits must be equal.

What it does not do: work around modules that couple records (`compatible.check_model`).

References:
    See `products`. Higham 2002, Accuracy and Stability of Numerical Algorithms, 2nd edition.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from privacy.clipping import Accumulator, Batch, ClippedSum, Rows, patient_chunks, split_parameters
from privacy.products import (
    ConvolutionProduct,
    Product,
    Run,
    by_patient,
    squared_row_norms,
    weighted_sum,
)
from privacy.tape import Uses, record_uses

Method = Literal["loop", "vmap", "loop-recompute", "vmap-recompute", "gram"]
METHODS: tuple[Method, ...] = ("vmap", "loop", "gram", "loop-recompute", "vmap-recompute")
KEEPING: tuple[Method, ...] = ("vmap", "loop")

# Products that a float32 kernel may add up before float64 takes over: c_2 stays below 1e-5.
_TERMS = 128
# What bounds may add to a squared norm.
_SHARE = 1e-3
# Below so many multiplications and bytes nothing is timed: keep, in one kernel.
_SMALL_WORK = 2**22
_SMALL_BYTES = 2**20

_choices: dict[Hashable, Method] = {}


@dataclass(frozen=True, kw_only=True)
class BookkeepingEngine:
    """One forward and one backward pass, whatever the number of patients.

    Attributes:
        max_rows: Cap on records computed at once.
        method: The method of every weight, for tests; timed if None.
        max_bytes: Cap on the gradients of patients of one weight that are kept, or tried [bytes]; exceeded only where
            nothing else is exact (see Rounding).
    """

    max_rows: int = 256
    method: Method | None = None
    max_bytes: int = 2**28

    def clipped_sum(
        self, module: nn.Module, batch: Batch, *, latent_noise: Tensor, kl_weight: float, max_grad_norm: float
    ) -> ClippedSum:
        """Return the sum of clipped patient gradients; see `GradientEngine`.

        Raises:
            IncompatibleModelError: a parameter is used in a way that cannot be clipped; names it.
        """
        trainable, _ = split_parameters(module)
        total = Accumulator(trainable, max_grad_norm)
        for rows in patient_chunks(batch, latent_noise, self.max_rows, like=next(iter(trainable.values()))):
            grouped, runs = group_by_count(rows)
            uses = record_uses(module, grouped, kl_weight)
            with torch.no_grad(), torch.autocast(grouped.values.device.type, enabled=False):
                parts = [self._part(name, uses, runs) for name in {**uses.products, **uses.rows}]
                _add(parts, _per_patient(uses.losses, runs), runs, total, max_grad_norm)
        return total.result()

    def _part(self, name: str, uses: Uses, runs: tuple[Run, ...]) -> _Part:
        """Return the gradients of the patients with respect to one parameter, or their norms."""
        products, rows = uses.products.get(name, []), uses.rows.get(name, [])
        if len(products) == 1 and not rows:
            method = self.method or choose_method(products[0], runs, max_bytes=self.max_bytes)
            return _measure(name, products[0], runs, method)
        summed = [_gradients(product, runs, "vmap") for product in products]
        summed += [_per_patient(tensor, runs) for tensor in rows]
        return _kept(name, sum(summed[1:], start=summed[0]))


def group_by_count(rows: Rows) -> tuple[Rows, tuple[Run, ...]]:
    """Return the rows so that patients with equally many records follow one another, and those runs."""
    if not rows.is_uniform:
        counts = torch.tensor(rows.counts)
        order = counts[rows.patient.cpu()].argsort(stable=True).to(rows.values.device)
        rows = replace(
            rows,
            values=rows.values[order],
            covariates=rows.covariates[order],
            noise=rows.noise[order],
            patient=rows.patient[order],
            weight=rows.weight[order],
        )
    runs, start = [], 0
    for records, patients in sorted(collections.Counter(rows.counts).items()):
        runs.append(Run(start=start, patients=patients, records=records))
        start += patients * records
    return rows, tuple(runs)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One parameter of P patients: gradients that are kept, or a product and bounds.

    Attributes:
        name: Of the parameter.
        squared: [P] float64: squared norms; upper bounds of them where nothing is kept.
        kept: [P, *shape], or None.
        product: The use that will be summed by a weighted kernel, or None.
        added: [P] float64: how much of `squared` is for rounding, or None.
        reach: [P] float64: bound of the error per unit of underflow in a weighted kernel, or None.
    """

    name: str
    squared: Tensor
    kept: Tensor | None = None
    product: Product | None = None
    added: Tensor | None = None
    reach: Tensor | None = None


def _add(
    parts: list[_Part], losses: Tensor, runs: tuple[Run, ...], total: Accumulator, max_grad_norm: float
) -> None:
    """Clip the patients and add them to the total."""
    if not parts:  # the loss depends on no trainable parameter
        total.factors(torch.zeros_like(losses, dtype=torch.float64), losses)
        return
    parts = _with_signal(parts, runs, max_grad_norm)
    norms = _sum(part.squared for part in parts).sqrt()
    factors = total.factors(norms, losses)
    counted = factors > 0
    mask = None if bool(counted.all()) else counted
    for part in parts:
        total.add_weighted(part.name, _contribution(part, runs, factors, mask))


def _with_signal(parts: list[_Part], runs: tuple[Run, ...], max_grad_norm: float) -> list[_Part]:
    """Return the parts with those kept whose bounds would take the place of signal."""
    bounded = [part for part in parts if part.added is not None]
    if not bounded:
        return parts
    squared = _sum(part.squared for part in parts)
    norms = squared.sqrt()
    clipped = torch.isfinite(norms) & (norms > max_grad_norm)
    extreme = clipped & (norms > 2.0**100 * max_grad_norm)
    flags = []
    for part in bounded:
        if part.product is None or part.added is None or part.reach is None:
            continue
        tiny = torch.finfo(part.product.gradient_of_output.dtype).tiny
        lost = torch.isfinite(part.reach) & (part.reach * tiny > 1e-12 * max_grad_norm)
        flags.append(((clipped & (part.added > _SHARE / len(bounded) * squared)) | extreme | lost).any())
    failed = {part.name for part, flag in zip(bounded, torch.stack(flags).tolist(), strict=True) if flag}
    return [
        _measure(part.name, part.product, runs, "loop")
        if part.product is not None and part.name in failed
        else part
        for part in parts
    ]


def _contribution(part: _Part, runs: tuple[Run, ...], factors: Tensor, mask: Tensor | None) -> Tensor:
    """Return the sum over patients of factor times gradient, float64."""
    if part.kept is not None:
        kept = part.kept
        if mask is not None:
            kept = torch.where(mask.reshape(-1, *(1 for _ in kept.shape[1:])), kept, 0.0)  # 0 x inf is NaN
        return weighted_sum(factors, kept)
    if part.product is None:
        raise RuntimeError(f"nothing is known of {part.name}")
    finite = None if mask is None else _per_row(mask, runs)
    product = part.product.scaled(_per_row(factors, runs), finite=finite)
    return _blocked_gradient(product)


def _blocked_gradient(product: Product) -> Tensor:
    """Return the sum of all rows' gradients: kernels of few terms, added up in float64."""
    rows, size = product.gradient_of_output.shape[0], _rows_at_once(product)
    total = product.gradient(slice(0, size)).to(torch.float64)
    for first in range(size, rows, size):
        total += product.gradient(slice(first, first + size))
    return total


def _rows_at_once(product: Product) -> int:
    """Return how many rows a weighted kernel sums."""
    if product.gradient_of_output.dtype == torch.float64:
        return int(product.gradient_of_output.shape[0])
    return max(1, _TERMS // product.terms)


def _measure(name: str, product: Product, runs: tuple[Run, ...], method: Method) -> _Part:
    """Return the gradients of the patients, or their norms, by one method."""
    if method in KEEPING or (method == "gram" and not product.has_gram):
        return _kept(name, _gradients(product, runs, "loop" if method == "loop" else "vmap"))
    x, g = product.row_sizes()
    size = _per_patient(x * g, runs)
    u, terms = _unit_roundoff(product), _terms(product, runs, size)
    once = (_rows_at_once(product) * product.terms + 4) * u
    if method == "gram":
        exact = torch.cat([product.squared_norms(run) for run in runs]).clamp(min=0.0)
        measured = exact + _gram_error(product, runs, size) * size.square()
    else:
        exact = torch.cat([_norms_alone(product, run, method) for run in runs])
        measured = (exact.sqrt() + (terms + 4) * u * size).square()
    squared = (measured.sqrt() + once * size).square()
    reach = _per_patient(x, runs) * product.gradient_of_output.numel() ** 0.5
    return _Part(name=name, squared=squared, product=product, added=squared - exact, reach=reach)


def _kept(name: str, gradients: Tensor) -> _Part:
    """Return a part whose gradients [P, *shape] are kept."""
    return _Part(name=name, squared=squared_row_norms(gradients), kept=gradients)


def _gradients(product: Product, runs: tuple[Run, ...], method: Literal["loop", "vmap"]) -> Tensor:
    """Return [P, *shape]."""
    if method == "vmap":
        parts = [product.gradients(run) for run in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    g = product.gradient_of_output
    out = g.new_empty(sum(run.patients for run in runs), *product.shape)
    for patient, rows in enumerate(rows for run in runs for rows in run.each()):
        out[patient] = product.gradient(rows)
    return out


def _norms_alone(product: Product, run: Run, method: Method) -> Tensor:
    """Return [G] float64: squared norms of gradients that are thrown away."""
    if method == "vmap-recompute":
        return squared_row_norms(product.gradients(run))
    return torch.cat([squared_row_norms(product.gradient(rows)[None]) for rows in run.each()])


def _unit_roundoff(product: Product) -> float:
    """Return u of the kernels that compute a product's gradient."""
    g = product.gradient_of_output
    u = torch.finfo(g.dtype).eps / 2
    if not (g.is_cuda and isinstance(product, ConvolutionProduct)):
        loose = g.is_cuda and g.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
        return 2.0**-11 if loose else u
    if g.dtype == torch.float32 and torch.backends.cudnn.allow_tf32:
        return 2.0**-11
    return 16 * u


def _terms(product: Product, runs: tuple[Run, ...], like: Tensor) -> Tensor:
    """Return [P] float64: outer products of each patient."""
    return _spread([run.records * product.terms for run in runs], runs, like)


def _gram_error(product: Product, runs: tuple[Run, ...], like: Tensor) -> Tensor:
    """Return [P] float64: c_1."""
    counts = [run.records * product.terms for run in runs]
    features = [product.gram_elements(run.records) for run in runs]
    return _spread(
        [2.0**-53 * (held / terms + terms**2) for held, terms in zip(features, counts, strict=True)],
        runs,
        like,
    )


def _spread(values: Iterable[float], runs: tuple[Run, ...], like: Tensor) -> Tensor:
    """Return [P]: a value of each run, for each of its patients."""
    return torch.cat([like.new_full((run.patients,), value) for run, value in zip(runs, values, strict=True)])


def _per_patient(rows: Tensor, runs: tuple[Run, ...]) -> Tensor:
    """Return [P, ...]: sums of [B, ...] over the rows of each patient."""
    sums = [rows[run.rows] if run.records == 1 else by_patient(rows, run).sum(1) for run in runs]
    return sums[0] if len(sums) == 1 else torch.cat(sums)


def _per_row(patients: Tensor, runs: tuple[Run, ...]) -> Tensor:
    """Return [B]: each patient's value at each of their rows."""
    spread, first = [], 0
    for run in runs:
        spread.append(patients[first : first + run.patients].repeat_interleave(run.records))
        first += run.patients
    return torch.cat(spread)


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0)


def choose_method(product: Product, runs: tuple[Run, ...], *, max_bytes: int) -> Method:
    """Return the fastest method of one weight: timed at the first sight of such shapes, and kept.

    Counts of patients and rows are told apart by powers of two. Methods that do not keep gradients are tried where
    their bounds are small (see Rounding).

    Args:
        product: A use of the weight.
        runs: Its patients.
        max_bytes: Methods that would take more for this weight are not tried.
    """
    candidates = _candidates(product, runs, max_bytes)
    g, weights = product.gradient_of_output, product.shape.numel()
    patients = sum(run.patients for run in runs)
    small_work = g.shape[0] * product.terms * weights <= _SMALL_WORK
    if small_work and patients * weights * g.element_size() <= _SMALL_BYTES:
        return "vmap"
    if len(candidates) == 1:
        return candidates[0]
    key = (
        product.key,
        g.dtype,
        str(g.device),
        torch.get_num_threads(),
        candidates,
        patients.bit_length(),
        int(g.shape[0]).bit_length(),
        runs[-1].records.bit_length(),
        min(len(runs), 2),
    )
    if key not in _choices:
        _choices[key] = min(candidates, key=lambda method: _seconds(lambda: _trial(product, runs, method), g))
    return _choices[key]


def _candidates(product: Product, runs: tuple[Run, ...], max_bytes: int) -> tuple[Method, ...]:
    """Return the methods that fit and whose bounds are small; at least one."""
    g = product.gradient_of_output
    most = max(run.records for run in runs)
    terms, bounded = product.terms, g.dtype == torch.float64
    fits = sum(run.patients for run in runs) * product.shape.numel() * g.element_size() <= max_bytes
    possible: dict[Method, bool] = {
        "vmap": fits,
        "loop": fits,
        "gram": product.has_gram
        and 8 * product.gram_elements(most) <= max_bytes
        and (bounded or terms <= _TERMS),
        "loop-recompute": bounded or most * terms <= _TERMS,
        "vmap-recompute": fits and (bounded or most * terms <= _TERMS),
    }
    return tuple(method for method, is_possible in possible.items() if is_possible) or ("loop",)


def _trial(product: Product, runs: tuple[Run, ...], method: Method) -> None:
    """Do all that a method costs."""
    part = _measure("", product, runs, method)
    _contribution(part, runs, torch.full_like(part.squared, 0.5), None)


def _seconds(work: Callable[[], None], like: Tensor) -> float:
    """Return the shorter of two times: of the processor, or of the clock where an accelerator works."""

    def now() -> float:
        if not like.is_cuda:
            return time.process_time()
        torch.cuda.synchronize(like.device)
        return time.perf_counter()

    times = []
    for _ in range(2):
        started = now()
        work()
        times.append(now() - started)
    return min(times)
