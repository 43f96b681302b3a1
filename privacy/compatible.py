"""Whether a model can be trained privately: checked on dummy data, before any data of a patient is touched.

Per-patient clipping bounds a patient's influence only if a patient acts through their own gradient alone.
Opacus' validator looks at the types of trainable layers; it accepts frozen BatchNorm in train mode, codebooks
updated from raw data (EMA), and losses that couple the rows of a batch. So the model is also run: a forward
pass must not change any state, and one patient's rows must not change another's loss or gradient.

What it does not do: prove anything about values it did not try. It finds mistakes, not malice.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from privacy.clipping import Batch, build_engine
from privacy.errors import IncompatibleModelError
from privacy.plan import GradEngine

_SAME_KERNEL = 1e-5
_OTHER_KERNEL = 1e-3
_UNBOUNDED = 1e30
_FIRST = 2  # records of patient 0; patient 1 has one, so that grouping is exercised


@dataclass(frozen=True, kw_only=True)
class _Dummy:
    """Made-up records of two patients: rows 0 and 1 are of patient 0, row 2 is of patient 1. Also a
    `Batch`.
    """

    values: Tensor
    covariates: Tensor
    latent_noise: Tensor
    patient: Tensor
    num_patients: int

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what forward takes of the batch."""
        return self.values, self.covariates, self.latent_noise

    def with_other(self, values: Tensor, covariates: Tensor, latent_noise: Tensor) -> _Dummy:
        """Return the batch with patient 1's row replaced."""
        return _Dummy(
            values=torch.cat([self.values[:_FIRST], values]),
            covariates=torch.cat([self.covariates[:_FIRST], covariates]),
            latent_noise=torch.cat([self.latent_noise[:_FIRST], latent_noise]),
            patient=self.patient,
            num_patients=self.num_patients,
        )

    def only(self, rows: slice) -> _Dummy:
        """Return one patient's rows."""
        return _Dummy(
            values=self.values[rows],
            covariates=self.covariates[rows],
            latent_noise=self.latent_noise[rows],
            patient=torch.zeros_like(self.patient[rows]),
            num_patients=1,
        )


def check_model(
    module: nn.Module, example_batch: Batch, latent_size: int, *, engine: GradEngine = "bookkeeping"
) -> None:
    """Refuse a model that cannot be trained with per-patient clipping.

    Args:
        module: `forward(values, covariates, latent_noise, kl_weight)`; not changed, a copy is run.
        example_batch: Only the shapes of one record and of its covariates are read, never a value.
        latent_size: Z.
        engine: The engine that the plan names; it has to agree with a plain loop over patients.

    Raises:
        IncompatibleModelError: with every reason found, and the way out of each.

    Guarantees:
        Refuses BatchNorm (frozen too), running statistics, batch-coupled losses and EMA codebooks, accepts
        GroupNorm VAEs, and takes below 2 s for each shipped model (tests/unit/privacy/test_compatible.py). torch's
        global generator is left as found.
    """
    generator_state = torch.get_rng_state()
    try:
        reasons = tuple(dict.fromkeys(_reasons(module, example_batch, latent_size, engine)))
    finally:
        torch.set_rng_state(generator_state)
    if reasons:
        raise IncompatibleModelError(reasons)


def _reasons(module: nn.Module, example: Batch, latent_size: int, engine: GradEngine) -> Iterator[str]:
    """Yield every reason against the model."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        yield "it has no trainable parameters; unfreeze some"
        return
    probe = copy.deepcopy(module).train()
    yield from _layer_reasons(probe)
    dummy = _dummy_batch(example, latent_size, trainable[0])
    try:
        before, generator_state = _state(probe), torch.get_rng_state()
        losses = _losses(probe, dummy)
        changed = _changed(before, _state(probe))
    except Exception as error:  # noqa: BLE001 - whatever a foreign model raises is the reason
        yield f"a training forward pass fails on dummy data ({_brief(error)}); return one loss a row"
        return
    if changed:
        yield (
            f"a training forward pass changes {', '.join(changed[:3])}: raw data would be stored un-noised; "
            "use GroupNorm instead of BatchNorm, no running statistics, and a codebook learned by gradient"
        )
    if not torch.equal(generator_state, torch.get_rng_state()):
        yield (
            "forward draws from torch's global generator (dropout, rsample): noise would not be the site's "
            "own; take randomness from latent_noise alone"
        )
    if losses.shape != (dummy.values.shape[0],) or not losses.is_floating_point():
        yield f"forward returns shape {tuple(losses.shape)}; return one loss a row, [B], not a mean or sum"
        return
    yield from _coupling_reasons(probe, dummy, losses)
    yield from _engine_reasons(probe, dummy, engine)


def _layer_reasons(probe: nn.Module) -> Iterator[str]:
    """Yield what Opacus' validator has against the layers."""
    from opacus.validators import ModuleValidator

    for error in ModuleValidator.validate(probe, strict=False):
        yield (
            f"opacus: {_brief(error)}; use GroupNorm for BatchNorm, and opacus.layers for attention and "
            "recurrent layers"
        )


def _coupling_reasons(probe: nn.Module, dummy: _Dummy, losses: Tensor) -> Iterator[str]:
    """Yield how patient 1's row reaches patient 0's losses or gradient."""
    way_out = (
        "compute each row's loss from that row alone (no batch mean or statistics, total correlation, MMD)"
    )
    rest = slice(_FIRST, None)
    other = dummy.with_other(
        5.0 - 10.0 * dummy.values[rest], 3.0 - dummy.covariates[rest], -2.0 * dummy.latent_noise[rest]
    )
    poison = dummy.with_other(*(torch.full_like(tensor[rest], torch.nan) for tensor in dummy.rows))
    cases = (
        ("when the values of another patient change", other, _SAME_KERNEL),
        ("when the values of another patient are not finite", poison, _SAME_KERNEL),
        ("when another patient is left out", dummy.only(slice(_FIRST)), _OTHER_KERNEL),
    )
    for case, batch, tolerance in cases:
        try:
            now = _losses(probe, batch)[:_FIRST]
        except Exception as error:  # noqa: BLE001 - as above
            yield f"forward fails {case} ({_brief(error)}): a crash tells about data; do not check values"
            continue
        if not _close(losses[:_FIRST], now, tolerance):
            yield f"a patient's loss changes {case}; {way_out}"
    try:
        gradients = [_gradient(probe, batch, slice(_FIRST)) for batch in (dummy, other)]
    except Exception as error:  # noqa: BLE001 - as above
        yield f"a training backward pass fails on dummy data ({_brief(error)})"
        return
    if not _close(gradients[0], gradients[1], _OTHER_KERNEL):
        yield f"a patient's gradient changes when the values of another patient change; {way_out}"


def _engine_reasons(probe: nn.Module, dummy: _Dummy, engine: GradEngine) -> Iterator[str]:
    """Yield where the engine fails or disagrees with a loop over patients."""
    another = "bookkeeping" if engine == "vmap" else "vmap"
    try:
        clipped = build_engine(engine, repeatable=True).clipped_sum(
            probe, dummy, latent_noise=dummy.latent_noise, kl_weight=1.0, max_grad_norm=_UNBOUNDED
        )
        expected = sum(
            _gradient(probe, dummy.only(rows), slice(None)) for rows in (slice(_FIRST), slice(_FIRST, None))
        )
    except IncompatibleModelError as error:  # its reasons name parameter and way out
        yield from (
            f"the {engine} engine cannot compute its per-patient gradients: {each}" for each in error.reasons
        )
        return
    except Exception as error:  # noqa: BLE001 - as above
        yield (
            f"the {engine} engine cannot compute its per-patient gradients ({_brief(error)}); put parameters "
            f"into layers of one input, or use grad_engine {another}"
        )
        return
    computed = torch.cat([tensor.flatten() for tensor in clipped.sum.values()])
    if not _close(computed, expected, _OTHER_KERNEL):
        yield (
            f"gradients of the {engine} engine differ from autograd's: a parametric layer is unknown or used "
            f"unusually; use plain layers, or grad_engine {another}"
        )


def _dummy_batch(example: Batch, latent_size: int, like: Tensor) -> _Dummy:
    """Return made-up records in [0, 1] of the example's shapes, on the device and in the type of `like`."""
    rng = np.random.Generator(np.random.Philox(key=0))
    rows = _FIRST + 1

    def made_up(*shape: int) -> Tensor:
        return torch.from_numpy(rng.random((rows, *shape))).to(like)

    return _Dummy(
        values=made_up(*example.values.shape[1:]),
        covariates=made_up(*example.covariates.shape[1:]),
        latent_noise=2.0 * made_up(latent_size) - 1.0,
        patient=torch.tensor([0] * _FIRST + [1]),
        num_patients=2,
    )


def _losses(module: nn.Module, batch: _Dummy) -> Tensor:
    """Return the losses, detached."""
    losses: Tensor = module(*batch.rows, 1.0)
    return losses.detach()


def _gradient(module: nn.Module, batch: _Dummy, rows: slice) -> Tensor:
    """Return the gradient of the mean loss of `rows`, as one float64 vector; zero where the loss has none."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    loss: Tensor = module(*batch.rows, 1.0)[rows].mean()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    filled = (
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, gradients, strict=True)
    )
    return torch.cat([tensor.detach().flatten() for tensor in filled]).to(torch.float64)


def _close(expected: Tensor, actual: Tensor | float, tolerance: float) -> bool:
    """Return whether two vectors agree relative to the norm of the first; not finite is never close."""
    distance = float(torch.linalg.vector_norm(expected.to(torch.float64) - actual))
    return distance <= tolerance * (float(torch.linalg.vector_norm(expected.to(torch.float64))) + 1e-12)


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of every tensor that the module holds: parameters, buffers and plain attributes."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for prefix, part in module.named_modules():
        tensors |= {
            f"{prefix}.{key}": value for key, value in vars(part).items() if isinstance(value, Tensor)
        }
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors that appeared or changed."""
    return [
        name for name, tensor in after.items() if name not in before or not torch.equal(before[name], tensor)
    ]


def _brief(error: Exception) -> str:
    """Return the first line of an error, shortened."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 160 else text[:157] + "..."
