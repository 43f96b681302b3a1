"""Which parameters leave a site, and which are trained: both by the parameters' names.

The two are independent: what is trained and not shared stays at its site, what is shared and not trained travels
unchanged.
"""

from __future__ import annotations

from typing import get_args

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from vae.models.protocol import Sharing, Trainable

# _NormBase covers batch and instance normalisation in every dimension.
_NORM_LAYERS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, _NormBase)
_DECODER_PREFIXES = ("decoder.", "log_scale.")


def shared_names(model: nn.Module, sharing: Sharing) -> frozenset[str]:
    """Return the parameter names of `model` that are shared.

    `encoder` and `decoder` split the model in two; the decoder's part holds its first linear layer and the
    learned scale. `norm-local` shares all but the affine parameters of normalisation layers, and equals `all`
    where there are none.

    Args:
        model: Has its networks under `encoder` and `decoder`.
        sharing: What leaves the site.

    Raises:
        ValueError: `sharing` is not one of the four.

    References:
        Norms stay local: Li et al. 2021, arXiv:2102.07623.
    """
    names = frozenset(name for name, _ in model.named_parameters())
    decoder = frozenset(name for name in names if name.startswith(_DECODER_PREFIXES))
    if sharing == "all":
        return names
    if sharing == "decoder":
        return decoder
    if sharing == "encoder":
        return names - decoder
    if sharing == "norm-local":
        return names - _norm_parameters(model)
    raise ValueError(f"sharing must be one of {', '.join(get_args(Sharing))}; got {sharing!r}")


def trainable_names(model: nn.Module, which: Trainable) -> frozenset[str]:
    """Return the parameter names of `model` that training moves; all others keep their values.

    Noise is drawn for these alone, so its norm grows with the square root of how many coordinates they have.
    `encoder` and `decoder` are the halves of `shared_names`. `biases` holds every bias, and scale and shift of
    every normalisation layer (BitFit). `last` is the decoder's last level, which gives the image or the row.

    Args:
        model: Has its networks under `encoder` and `decoder`; the decoder's levels are its last list of modules.
        which: What is trained.

    Raises:
        ValueError: `which` is not one of the five.

    References:
        Ben Zaken et al. 2022, arXiv:2106.10199 (BitFit); Bu et al. 2022, arXiv:2210.00036 (with privacy).
    """
    names = shared_names(model, "all")
    if which == "all":
        return names
    if which in ("decoder", "encoder"):
        return shared_names(model, which)
    if which == "biases":
        return frozenset(name for name in names if name.endswith(".bias")) | _norm_parameters(model)
    if which == "last":
        prefix = _last_level(model)
        return frozenset(name for name in names if name.startswith(prefix))
    raise ValueError(f"trainable must be one of {', '.join(get_args(Trainable))}; got {which!r}")


def _last_level(model: nn.Module) -> str:
    """Return what the names of the decoder's last level begin with."""
    *_, (name, levels) = (
        (name, part)
        for name, part in model.get_submodule("decoder").named_children()
        if isinstance(part, nn.ModuleList)
    )
    return f"decoder.{name}.{len(levels) - 1}."


def _norm_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names of the affine parameters of all normalisation layers."""
    return frozenset(
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, _NORM_LAYERS)
        for name, _ in module.named_parameters(recurse=False)
    )
