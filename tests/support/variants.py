"""Small specifications of every shipped model variant, and inputs for them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from vae.spec import ModelSpec

_SHAPES = {"2d": (1, 9, 10), "3d": (2, 8, 9, 8)}  # 4 divides not all of them: pads, crops
_ENDS = (("fixed", "linear"), ("learned", "sigmoid"))


def _image(kind: str, upsampling: str, family: str, end: tuple[str, str]) -> ModelSpec:
    return ModelSpec(
        family=family,
        input_shape=_SHAPES[kind],
        latent_size=3,
        channels=(4, 8),
        num_covariates=2 if family == "cvae" else 0,
        beta=4.0 if family == "beta-vae" else 1.0,
        decoder_scale=end[0],
        upsampling=upsampling,
        output=end[1],
    )


def _table(family: str, end: tuple[str, str]) -> ModelSpec:
    return ModelSpec(
        family=family,
        input_shape=(5,),
        latent_size=3,
        channels=(6, 4),
        num_covariates=2 if family == "cvae" else 0,
        beta=4.0 if family == "beta-vae" else 1.0,
        decoder_scale=end[0],
        output=end[1],
    )


def _all() -> dict[str, ModelSpec]:
    images = itertools.product(("2d", "3d"), ("interpolate", "transpose"), ("vae", "cvae"), _ENDS)
    specs = {f"{k}-{up}-{family}-{end[0]}": _image(k, up, family, end) for k, up, family, end in images}
    tables = itertools.product(("vae", "beta-vae", "cvae"), _ENDS)
    return specs | {f"table-{family}-{end[0]}": _table(family, end) for family, end in tables}


VARIANTS = _all()


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Arguments of a loss: values [B, C, *S], covariates [B, K], latent noise [B, Z]."""

    values: Tensor
    covariates: Tensor
    noise: Tensor

    def swapped(self, row: int, other: Inputs) -> Inputs:
        """Return these inputs with one record (values, covariates and noise) taken from `other`."""

        def swap(mine: Tensor, theirs: Tensor) -> Tensor:
            result = mine.clone()
            result[row] = theirs[row]
            return result

        return Inputs(
            values=swap(self.values, other.values),
            covariates=swap(self.covariates, other.covariates),
            noise=swap(self.noise, other.noise),
        )


def make_inputs(spec: ModelSpec, *, rows: int, seed: int) -> Inputs:
    """Return random inputs in [0, 1) with their own generator."""
    generator = torch.Generator().manual_seed(seed)
    return Inputs(
        values=torch.rand((rows, *spec.input_shape), generator=generator),
        covariates=torch.rand((rows, spec.num_covariates), generator=generator),
        noise=torch.randn((rows, spec.latent_size), generator=generator),
    )
