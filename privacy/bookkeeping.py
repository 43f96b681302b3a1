"""Clipped sums from one forward and one backward pass: norms layer by layer, then one weighted sum a weight.

`tape` runs the module once and keeps, for each use of a weight, what its layer was given and the gradient of
what it returned; `norms` turns those into gradients of patients, or into their norms alone. Here each weight
gets the method that is fastest for its shapes (`choose_method`), the norms are added up, patients are clipped,
and the sum is taken.

Parameters that are used more than once, and small ones, are always kept: a patient's gradients of all uses are
added before the norm is taken.

Where a weight's gradients are not kept, the clip works with an upper bound of its norm, so that weights which a
server made to cancel cannot lengthen a contribution (`norms`, "Rounding"). Where the bounds would add more than
5e-4 to a norm, or to C if that is larger, or values are so extreme that a factor could underflow, the weights
responsible are computed again and kept, in that batch: no signal is lost. That takes patients x parameters of
memory, as it does in the other engines.

Guarantees, beside those of `clipping`:
    - float64 and float32: a patient's own terms move the sum by at most C (1 + 1e-12), for any weights of the
      module (tests/unit/privacy/test_bookkeeping.py, tests/property/test_clip_bound.py). As for every engine,
      the others' rounding may depend on who else is there: in a weighted kernel by at most 5e-4 C each, for
      weights made to that end, and about 1e-7 C otherwise.
    - The method changes results by rounding alone, and the factor of patients who are clipped by at most 5e-4
      downwards, because of the bounds (about 1e-5 in float32 and 1e-10 in float64).
    - Equal bits in one process, where choices are kept. In another process timing may choose otherwise; without it
      (`is_timed`) the choice is a function of shapes alone, and bits are equal. Seeded training does without. Weights
      of small work are never timed.

What it does not do: work around modules that couple records (`compatible.check_model`).

From the mathematics to the code. P patients, B records (rows), T positions of a row, I and O features in and out, per
layer one weight W; x [B, T, I] is what the layer was given and g [B, T, O] the gradient of what it returned.

    1. One pass forwards and one backwards gives x and g of each layer; no gradient of a weight (`tape`, `layers`).
    2. The gradient of W for patient p is G_p = sum_{b in p, t} g_bt x_bt^T, [O, I] (`products`). Its norm is taken from
       G, [P, O, I], which is kept (`loop`, `vmap`, `columns`), or thrown away (`...-recompute`); or, without G, from
       <X X^T, Y Y^T> with X [k T, I] and Y [k T, O] the rows of a patient's k records (`gram`, `squared_norms`).
       In a convolution x_bt is a patch and I is channels x kernel (`convolutions`). Biases and scales of
       normalisation have sums over t instead, small enough to keep (`layers`).
    3. n_p = sqrt(sum_W ||G_p||^2), [P], or an upper bound of it (`norms.measure`, `_add`).
    4. f_p = min(1, C / n_p), and 0 where that is not finite, [P] (`clipping.Accumulator`).
    5. sum_p f_p G_p, [O, I]: of what was kept, f [P] times G [P, O I]; else one kernel over all rows with g_bt times
       its patient's factor (`norms.contribution`).

Gram matrices cost (k T)^2 (I + O) multiplications and instantiating costs k T I O, so the former win in deep layers
(few positions, large weights) and the latter in shallow ones: hence a choice for each weight (Bu et al. 2022).

References:
    Goodfellow 2015, arXiv:1510.01799 (norms from x and g); Lee & Kifer 2020, arXiv:2009.03106 (factors of the clip as
    weights); Li et al. 2021, arXiv:2110.05679 (ghost clipping, step 2 by Gram matrices); Bu et al. 2022,
    arXiv:2205.10683 (convolutions, choice by layer) and 2022, arXiv:2210.00038 (book-keeping: step 5 without a second
    backward pass). For the products see `products`, for rounding `norms`, for what was measured decision 13.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from privacy.clipping import Accumulator, Batch, ClippedSum, Rows, patient_chunks, split_parameters
from privacy.convolutions import ConvolutionProduct
from privacy.norms import Method, Part, contribution, gradients_of, keep, measure, unit_roundoff
from privacy.products import Product, Run, per_patient
from privacy.tape import Uses, record_uses

# Terms times u above which bounds would be too wide to be worth a trial: 128 terms in float32.
_WIDTH = 128 * 2.0**-24
# What all bounds together may add to a norm, in units of the norm or of C.
_SHARE = 5e-4
# Below so many multiplications and bytes nothing is timed: keep, in one kernel.
_SMALL_WORK = 2**22
_SMALL_BYTES = 2**20

# Of the rule: positions of a patient for which Gram matrices are small, and bytes that stay near a processor.
_FEW_TERMS = 32
_CACHE_BYTES = 2**24
# Positions from which a kernel of one patient is no slower than its share of a common one.
_MANY_TERMS = 4096
# Channels x sizes of the first two axes up to which torch takes its slow kernel for one row.
_FEW_PIXELS = 20480

_choices: dict[Hashable, Method] = {}


@dataclass(frozen=True, kw_only=True)
class BookkeepingEngine:
    """One forward and one backward pass, whatever the number of patients.

    Attributes:
        max_rows: Cap on records computed at once.
        method: The method of every weight, for tests; chosen if None.
        max_bytes: Cap on the gradients of patients of one weight that are kept, or tried [bytes]; exceeded only where
            nothing else is exact (see Rounding). None: 256 MiB, on an accelerator a sixteenth of its memory.
        is_timed: Whether methods are chosen by timing them.
    """

    max_rows: int = 256
    method: Method | None = None
    max_bytes: int | None = None
    is_timed: bool = True

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
                _add(parts, per_patient(uses.losses, runs), runs, total, max_grad_norm)
        return total.result()

    def _part(self, name: str, uses: Uses, runs: tuple[Run, ...]) -> Part:
        """Return the gradients of the patients with respect to one parameter, or their norms."""
        products, rows = uses.products.get(name, []), uses.rows.get(name, [])
        if len(products) == 1 and not rows:
            method = self.method or choose_method(
                products[0], runs, max_bytes=self.max_bytes, is_timed=self.is_timed
            )
            return measure(name, products[0], runs, method)
        summed = [gradients_of(product, runs, "vmap") for product in products]
        summed += [per_patient(tensor, runs) for tensor in rows]
        return keep(name, sum(summed[1:], start=summed[0]))


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


def _add(
    parts: list[Part], losses: Tensor, runs: tuple[Run, ...], total: Accumulator, max_grad_norm: float
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
        total.add_weighted(part.name, contribution(part, runs, factors, mask))


def _with_signal(parts: list[Part], runs: tuple[Run, ...], max_grad_norm: float) -> list[Part]:
    """Return the parts, those kept whose bounds would take the place of signal."""
    bounded = [part for part in parts if part.bound is not None]
    if not bounded:
        return parts
    norms = _sum(part.squared for part in parts).sqrt()
    finite, scale = torch.isfinite(norms), norms.clamp(min=max_grad_norm)
    extreme = norms > 2.0**100 * max_grad_norm
    failing = []
    for part in bounded:
        if part.bound is not None:
            wide = part.bound.widening > _SHARE / len(bounded) * scale
            lost = part.bound.underflow > 1e-12 * max_grad_norm
            failing.append((finite & (wide | extreme | lost)).any())
    failed = {part.name for part, fails in zip(bounded, torch.stack(failing).tolist(), strict=True) if fails}
    return [
        measure(part.name, part.bound.product, runs, "loop")
        if part.bound is not None and part.name in failed
        else part
        for part in parts
    ]


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0)


def choose_method(
    product: Product, runs: tuple[Run, ...], *, max_bytes: int | None = None, is_timed: bool = True
) -> Method:
    """Return the fastest method of one weight: timed at the first sight of such shapes, and kept.

    Counts of patients and rows are told apart by powers of two. Methods that do not keep gradients are tried where
    their bounds are small (see Rounding).

    Args:
        product: A use of the weight.
        runs: Its patients.
        max_bytes: See `BookkeepingEngine`; methods that would take more for this weight are not tried.
        is_timed: Whether to time, or to go by a rule (`_by_rule`).
    """
    cap = _affordable_bytes(product.gradient_of_output.device) if max_bytes is None else max_bytes
    candidates = _candidates(product, runs, cap)
    g, weights = product.gradient_of_output, product.shape.numel()
    patients = sum(run.patients for run in runs)
    small_work = g.shape[0] * product.terms * weights <= _SMALL_WORK
    if small_work and patients * weights * g.element_size() <= _SMALL_BYTES:
        return "vmap"
    if len(candidates) == 1:
        return candidates[0]
    if not is_timed:
        return _by_rule(candidates, product, runs)
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


def _by_rule(candidates: tuple[Method, ...], product: Product, runs: tuple[Run, ...]) -> Method:
    """Return the method that shapes alone recommend (decision 13 tells how near it comes to the fastest).

    Gram matrices where a patient has few positions; on a CPU, patches where kept gradients would not stay in a cache,
    and a kernel for each patient where one is busy long enough; else one kernel for all patients.
    """
    most, g = max(run.records for run in runs), product.gradient_of_output
    kept = sum(run.patients for run in runs) * product.shape.numel() * g.element_size()
    preferred: list[Method] = ["gram"] if most * product.terms <= _FEW_TERMS else []
    if kept > _CACHE_BYTES and not g.is_cuda:
        preferred += ["columns-recompute", "columns", "loop"]
    if most * product.terms >= _MANY_TERMS and not g.is_cuda and not _is_slow_alone(product, runs):
        preferred += ["loop"]
    preferred += ["vmap", "loop", "loop-recompute"]
    return next((method for method in preferred if method in candidates), candidates[0])


def _is_slow_alone(product: Product, runs: tuple[Run, ...]) -> bool:
    """Return whether torch 2.13 leaves its fast library for a kernel of one row, and takes 4 to 7 times as long.

    It does for kernels up to 3 wide on few pixels (`use_mkldnn` in its Convolution.cpp).
    """
    if not isinstance(product, ConvolutionProduct) or min(run.records for run in runs) > 1:
        return False
    pixels = math.prod(product.x.shape[1:4])
    return product.geometry.groups == 1 and min(product.shape[-2:]) <= 3 and pixels <= _FEW_PIXELS


def _affordable_bytes(device: torch.device) -> int:
    """Return how much memory the gradients of one weight may take."""
    if device.type != "cuda":
        return 2**28
    return max(2**28, torch.cuda.get_device_properties(device).total_memory // 16)


def _candidates(product: Product, runs: tuple[Run, ...], max_bytes: int) -> tuple[Method, ...]:
    """Return the methods that fit and whose bounds are small; at least one."""
    most = max(run.records for run in runs)
    u, terms, weights = unit_roundoff(product), product.terms, product.shape.numel()
    size = product.gradient_of_output.element_size()
    fits = sum(run.patients for run in runs) * weights * size <= max_bytes
    is_short = most * terms * u <= _WIDTH
    possible: dict[Method, bool] = {
        "vmap": fits,
        "loop": fits,
        "columns": fits and product.has_columns,
        "gram": terms * u <= _WIDTH
        and product.has_gram
        and product.gram_work(most) <= 4 * most * terms * weights
        and 8 * product.gram_elements(most) <= max_bytes,
        "loop-recompute": is_short,
        "columns-recompute": is_short,
    }
    return tuple(method for method, is_possible in possible.items() if is_possible) or ("loop",)


def _trial(product: Product, runs: tuple[Run, ...], method: Method) -> None:
    """Do all that a method costs."""
    part = measure("", product, runs, method)
    contribution(part, runs, torch.full_like(part.squared, 0.5), None)


def _seconds(work: Callable[[], None], like: Tensor) -> float:
    """Return the shortest of three times: of the processor, or of the clock where an accelerator works."""

    def now() -> float:
        if not like.is_cuda:
            return time.process_time()
        torch.cuda.synchronize(like.device)
        return time.perf_counter()

    times = []
    for _ in range(3):
        started = now()
        work()
        times.append(now() - started)
    return min(times)
