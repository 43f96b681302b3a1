"""Which layers rule out per-record gradients, found by looking at the layers.

A per-patient clip is worth something only if one record's loss depends on no other record, and if nothing but
the clipped, noised gradient writes into the model. This looks for what is known to break that; it proves
nothing about a layer it does not know, so a check that runs the model on dummy records (swap one, compare the
others) comes on top.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from vae.models.protocol import DpSupport


def dp_support(model: nn.Module) -> DpSupport:
    """Return whether `model` may be trained with per-patient clipping, with every reason against it.

    Guarantees:
        Batch normalisation is reported in every state: frozen, in training mode, it still mixes the records
        and stores their statistics (Opacus 1.6 accepts that).
    """
    obstacles = [
        f"{name or 'model'} ({type(module).__name__}) {problem}"
        for name, module in model.named_modules()
        if (problem := _obstacle(module)) is not None
    ]
    return DpSupport(supported=not obstacles, reason="; ".join(obstacles))


def _obstacle(module: nn.Module) -> str | None:
    """Return what is wrong with one layer and what to use instead, or None."""
    if isinstance(module, _BatchNorm):
        return "normalises with statistics of the whole batch; use GroupNorm"
    if isinstance(module, _DropoutNd) and module.p > 0:
        return "draws from the global generator, so a loss cannot be replayed; remove it"
    if next(module.buffers(recurse=False), None) is not None:
        return "holds buffers, which training may write from data without clipping or noise; remove them"
    return None
