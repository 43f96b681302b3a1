"""Which parameters leave a site: partial sharing by the parameters' names."""

from __future__ import annotations

from typing import get_args

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from vae.models.protocol import Sharing

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


def _norm_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names of the affine parameters of all normalisation layers."""
    return frozenset(
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, _NORM_LAYERS)
        for name, _ in module.named_parameters(recurse=False)
    )
