"""Sums of clipped patient gradients.

A patient's gradient is that of the mean of the losses of their records, clipped once, over the concatenation
of all trainable parameters, to the L2 norm `max_grad_norm`. Whoever computes it (`GradientEngine`), the sum
is the same up to rounding; `tests/property/test_clip_bound.py` holds every engine to it.

Guarantees of every engine:
    - A patient moves the sum by at most C (1 + 1e-12) in L2 norm, whatever the model's type: norms, factors
      and sums are float64. With another composition of the batch, float32 kernels round the other patients'
      gradients in another way: about 1e-7 of their clipped norms, far below the noise, and not covered by the
      bound.
    - A patient with a non-finite gradient or norm contributes zero, and changes nobody else's contribution.
    - An empty batch never reaches the module: the sum is zero.
    - Module, gradients, buffers, hooks and torch's global generator are left as found.

What they do not do: add noise, sample, or know a plan.
"""

from __future__ import annotations

import bisect
import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from privacy.discrete import Lattice
from privacy.plan import GradEngine

Gradients = dict[str, Tensor]


class Batch(Protocol):
    """Records of some patients: what this package needs of a cohort's batch.

    Shapes: B records, P patients. `values` [B, ...], `covariates` [B, K], `patient` [B] int64 ascending in
    0..P-1; every patient has at least one record.
    """

    @property
    def values(self) -> Tensor:
        """Return the records [B, ...]."""
        ...

    @property
    def covariates(self) -> Tensor:
        """Return the covariates [B, K]."""
        ...

    @property
    def patient(self) -> Tensor:
        """Return the patient of each record [B]."""
        ...

    @property
    def num_patients(self) -> int:
        """Return P."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClippedSum:
    """The sum over patients, and facts that never leave the site.

    Attributes:
        sum: Float64 tensor of each trainable parameter, in the module's order and shapes; on a lattice int64.
        num_nonfinite: Patients that contributed zero; private.
        num_clipped: Patients whose norm exceeded C; private.
        loss_sum: Sum over patients with a finite gradient of their mean loss; private.
    """

    sum: Gradients = field(repr=False)
    num_nonfinite: int = field(repr=False)
    num_clipped: int = field(repr=False)
    loss_sum: float = field(repr=False)


class GradientEngine(Protocol):
    """Computes clipped sums of a module whose `forward(values, covariates, latent_noise, kl_weight)` returns
    [B].
    """

    def clipped_sum(
        self, module: nn.Module, batch: Batch, *, latent_noise: Tensor, kl_weight: float, max_grad_norm: float
    ) -> ClippedSum:
        """Return the sum of clipped patient gradients.

        Args:
            module: Its loss of row b depends on row b only (`compatible.check_model`).
            batch: B records of P patients; both may be 0.
            latent_noise: [B, Z] standard normal deviates.
            kl_weight: >= 0.
            max_grad_norm: C > 0.

        Guarantees:
            See the module docstring.
        """
        ...


def build_engine(
    name: GradEngine, *, max_rows: int = 256, repeatable: bool = False, lattice: Lattice | None = None
) -> GradientEngine:
    """Return the engine of that name.

    Args:
        name: `vmap`, `opacus` or `bookkeeping`.
        max_rows: Cap on records computed at once, >= 1: bounds memory, does not change the sum beyond
            rounding. A patient with more records is still computed at once.
        repeatable: Whether sums have to be equal to the bit in every process, which forbids timing.
        lattice: For sums of integers, which are exact: then each patient is computed alone, whatever `max_rows`.

    Raises:
        ValueError: `max_rows` is below 1, or the engine has no gradient of each patient to put on a lattice.
    """
    if max_rows < 1:
        raise ValueError(f"max_rows must be >= 1, got {max_rows}")
    if lattice is not None:
        if name == "bookkeeping":
            raise ValueError(
                "bookkeeping sums before there is a patient's gradient to round; take vmap or opacus"
            )
        max_rows = 1
    from privacy.bookkeeping import BookkeepingEngine  # it builds upon this module

    engines: dict[GradEngine, Callable[[], GradientEngine]] = {
        "vmap": lambda: VmapEngine(max_rows=max_rows, lattice=lattice),
        "opacus": lambda: OpacusEngine(max_rows=max_rows, lattice=lattice),
        "bookkeeping": lambda: BookkeepingEngine(max_rows=max_rows, is_timed=not repeatable),
    }
    return engines[name]()


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Records of whole patients, on the module's device: what one pass computes.

    Attributes:
        values: [B, ...].
        covariates: [B, K].
        noise: [B, Z].
        patient: [B] int64 in 0..num_patients-1.
        weight: [B]: 1 / K_p, K_p the records of the row's patient, so that a weighted sum is a mean of each
            patient.
        counts: K_p of each patient, P >= 1 of them.
    """

    values: Tensor
    covariates: Tensor
    noise: Tensor
    patient: Tensor
    weight: Tensor
    counts: tuple[int, ...]

    @property
    def num_patients(self) -> int:
        """Return P."""
        return len(self.counts)

    @property
    def is_uniform(self) -> bool:
        """Return whether all patients have equally many records."""
        return min(self.counts) == max(self.counts)

    @property
    def num_records(self) -> int:
        """Return B."""
        return int(self.values.shape[0])

    def blocks(self, groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return values, covariates, noise and weight as [groups, B / groups, ...]."""
        size = self.num_records // groups
        values, covariates, noise, weight = (
            tensor.reshape(groups, size, *tensor.shape[1:])
            for tensor in (self.values, self.covariates, self.noise, self.weight)
        )
        return values, covariates, noise, weight

    def per_patient(self, rows: Tensor) -> Tensor:
        """Return [P, ...]: sums of [B, ...] over the rows of each patient."""
        if self.num_patients == self.num_records:
            return rows
        out = torch.zeros(self.num_patients, *rows.shape[1:], dtype=rows.dtype, device=rows.device)
        return out.index_add_(0, self.patient, rows)


def patient_chunks(batch: Batch, latent_noise: Tensor, max_rows: int, *, like: Tensor) -> Iterator[Rows]:
    """Yield the batch as runs of whole patients of at most `max_rows` rows, on the device and in the type of
    `like`.
    """
    counts = torch.bincount(batch.patient, minlength=batch.num_patients)
    ends = counts.cumsum(0).tolist()
    _check_rows(batch, latent_noise, counts)
    first, start = 0, 0
    while first < batch.num_patients:
        # As many patients as fit; at least one.
        last = max(first + 1, bisect.bisect_right(ends, start + max_rows))
        rows, own = slice(start, ends[last - 1]), counts[first:last]
        yield Rows(
            values=batch.values[rows].to(like),
            covariates=batch.covariates[rows].to(like),
            noise=latent_noise[rows].to(like),
            patient=(batch.patient[rows] - first).to(like.device),
            weight=(1.0 / own.to(torch.float64)).repeat_interleave(own).to(like),
            counts=tuple(own.tolist()),
        )
        first, start = last, ends[last - 1]


def _check_rows(batch: Batch, latent_noise: Tensor, counts: Tensor) -> None:
    """Refuse a batch that breaks its own contract: grouping errors would be privacy errors."""
    rows = batch.values.shape[0]
    if not rows == batch.covariates.shape[0] == batch.patient.shape[0] == latent_noise.shape[0]:
        raise ValueError("values, covariates, patient and latent_noise must have equally many rows")
    if (
        counts.numel() != batch.num_patients
        or bool((counts == 0).any())
        or bool((batch.patient.diff() < 0).any())
    ):
        raise ValueError("patient must ascend through 0..num_patients-1, with at least one row for each")


@dataclass(frozen=True, kw_only=True)
class VmapEngine:
    """`torch.func`: one vectorised gradient over patients with equal numbers of records.

    Needs no knowledge of layers. On one core never slower than `OpacusEngine` where measured: 1.5 to 2 times a plain
    step for convolutions against 2.6 times, about 7 times for a small table, where both cost overhead alone.

    Attributes:
        max_rows: Cap on records computed at once.
        lattice: For sums of integers; None: float64.
    """

    max_rows: int = 256
    lattice: Lattice | None = None

    def clipped_sum(
        self, module: nn.Module, batch: Batch, *, latent_noise: Tensor, kl_weight: float, max_grad_norm: float
    ) -> ClippedSum:
        """Return the sum of clipped patient gradients; see `GradientEngine`."""
        trainable, constants = split_parameters(module)

        def weighted_loss(
            parameters: Gradients, values: Tensor, covariates: Tensor, noise: Tensor, weight: Tensor
        ) -> Tensor:
            arguments = (values, covariates, noise, kl_weight)
            losses: Tensor = torch.func.functional_call(module, {**parameters, **constants}, arguments)
            return (losses * weight).sum()

        gradients_of = torch.func.vmap(torch.func.grad_and_value(weighted_loss), in_dims=(None, 0, 0, 0, 0))
        total = Accumulator(trainable, max_grad_norm, self.lattice)
        for rows in patient_chunks(batch, latent_noise, self.max_rows, like=next(iter(trainable.values()))):
            # Where patients have equally many records, one gradient a patient; else one a record, regrouped.
            groups = rows.num_patients if rows.is_uniform else rows.num_records
            gradients, losses = gradients_of(trainable, *rows.blocks(groups))
            if not rows.is_uniform:
                gradients = {name: rows.per_patient(gradient) for name, gradient in gradients.items()}
                losses = rows.per_patient(losses)
            total.add(gradients, losses)
        return total.result()


@dataclass(frozen=True, kw_only=True)
class OpacusEngine:
    """Opacus' hooks: gradients of each record, regrouped by patient before they are clipped.

    Layers need a grad sampler or to be plain leaves; the module has to be in train mode. Memory: records x
    parameters.

    Attributes:
        max_rows: Cap on records computed at once.
        lattice: For sums of integers; None: float64.
    """

    max_rows: int = 256
    lattice: Lattice | None = None

    def clipped_sum(
        self, module: nn.Module, batch: Batch, *, latent_noise: Tensor, kl_weight: float, max_grad_norm: float
    ) -> ClippedSum:
        """Return the sum of clipped patient gradients; see `GradientEngine`."""
        trainable, _ = split_parameters(module)
        total = Accumulator(trainable, max_grad_norm, self.lattice)
        if batch.num_patients == 0:
            return total.result()
        if not all(part.training for part in module.modules()):
            raise RuntimeError("the opacus engine needs all layers in train mode; call module.train() first")
        with _opacus_hooks(module):
            for rows in patient_chunks(
                batch, latent_noise, self.max_rows, like=next(iter(trainable.values()))
            ):
                losses = rows.weight * module(rows.values, rows.covariates, rows.noise, kl_weight)
                losses.sum().backward()
                total.add(_take_opacus_gradients(module, rows), rows.per_patient(losses.detach()))
        return total.result()


class Accumulator:
    """Clips gradients of patients as they come and sums them in float64; counts what a `ClippedSum` tells.

    On a lattice what is summed are integers, and the clip leaves room for rounding (`Lattice`).
    """

    def __init__(self, trainable: Gradients, max_grad_norm: float, lattice: Lattice | None = None) -> None:
        self._lattice = lattice
        self._max_grad_norm = max_grad_norm if lattice is None else lattice.clip_norm
        dtype = torch.float64 if lattice is None else torch.int64
        self._sum = {name: torch.zeros_like(tensor, dtype=dtype) for name, tensor in trainable.items()}
        self._num_nonfinite = 0
        self._num_clipped = 0
        self._loss_sum = 0.0

    def add(self, gradients: Gradients, losses: Tensor) -> None:
        """Add P patients. gradients: [P, *shape] of each parameter; losses: [P]."""
        flat = {
            name: gradient.flatten(1) if gradient.ndim > 1 else gradient[:, None]
            for name, gradient in gradients.items()
        }
        # float64 norms: 1e30 squared overflows float32. vector_norm converts as it reads, without a copy.
        parts = [torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in flat.values()]
        factors = self.factors(torch.linalg.vector_norm(torch.stack(parts), dim=0), losses)
        all_counted = bool((factors > 0).all())
        for name, part in flat.items():
            if not all_counted:
                part = torch.where(factors[:, None] > 0, part, 0.0)  # noqa: PLW2901 - 0 x inf would be NaN
            if self._lattice is None:
                self.add_weighted(name, factors @ part.to(torch.float64))
            else:
                self.add_weighted(name, self._lattice.round_clipped(part, factors))

    def factors(self, norms: Tensor, losses: Tensor) -> Tensor:
        """Return [P] float64: what to multiply gradients of these norms with; counts the patients.

        norms: [P] float64, or upper bounds of them; losses: [P]. Zero where the norm is not finite.
        """
        finite = torch.isfinite(norms)
        self._num_nonfinite += int((~finite).sum())
        self._num_clipped += int((finite & (norms > self._max_grad_norm)).sum())
        self._loss_sum += float(
            torch.where(finite & torch.isfinite(losses), losses, 0.0).sum(dtype=torch.float64)
        )
        return torch.where(finite, (self._max_grad_norm / norms).clamp(max=1.0), 0.0)

    def add_weighted(self, name: str, total: Tensor) -> None:
        """Add what patients contribute to a parameter, clipped and summed."""
        self._sum[name] += total.reshape(self._sum[name].shape)

    def result(self) -> ClippedSum:
        """Return what was added."""
        return ClippedSum(
            sum=self._sum,
            num_nonfinite=self._num_nonfinite,
            num_clipped=self._num_clipped,
            loss_sum=self._loss_sum,
        )


def split_parameters(module: nn.Module) -> tuple[Gradients, Gradients]:
    """Return detached (trainable parameters, frozen parameters and buffers) by name."""
    parameters = dict(module.named_parameters())
    trainable = {name: tensor.detach() for name, tensor in parameters.items() if tensor.requires_grad}
    frozen = {name: tensor.detach() for name, tensor in parameters.items() if not tensor.requires_grad}
    if not trainable:
        raise ValueError("the module has no trainable parameters")
    return trainable, {**frozen, **dict(module.named_buffers())}


@contextlib.contextmanager
def _opacus_hooks(module: nn.Module) -> Iterator[None]:
    """Install Opacus' hooks for the time of the block, and leave the module as found."""
    from opacus.grad_sample.grad_sample_module import GradSampleHooks

    saved = {name: parameter.grad for name, parameter in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = None  # backward would add to it in place
    hooks = GradSampleHooks(module, loss_reduction="sum")
    try:
        with warnings.catch_warnings():
            # torch warns because the data need no gradient; Opacus uses the output's side only.
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            yield
    finally:
        hooks.cleanup()
        for part in module.modules():  # Opacus 1.6 keeps these
            for attribute in ("activations", "max_batch_len"):
                if hasattr(part, attribute):
                    delattr(part, attribute)
        for name, parameter in module.named_parameters():
            parameter.grad = saved[name]


def _take_opacus_gradients(module: nn.Module, rows: Rows) -> Gradients:
    """Return [P, *shape] of each trainable parameter, and clear what Opacus left on them."""
    gradients: Gradients = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        per_record: Tensor | None = getattr(parameter, "grad_sample", None)
        if per_record is None and parameter.grad is not None:
            raise RuntimeError(f"opacus computed no gradient of each record for {name}; use the vmap engine")
        if per_record is None:  # unused by the loss
            per_record = torch.zeros(
                rows.num_records, *parameter.shape, dtype=parameter.dtype, device=parameter.device
            )
        gradients[name] = rows.per_patient(per_record)
        parameter.grad_sample = None  # type: ignore[attr-defined] # Opacus' own attribute
        parameter.grad = None
    return gradients
