"""Encoder and decoder of tables: linear layers with SiLU between them.

No normalisation layers: columns arrive standardised, and the few layers train without.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from vae.models.autoencoder import Networks
from vae.spec import ModelSpec


def networks(spec: ModelSpec) -> Networks:
    """Return encoder and decoder of a table; their hidden layers mirror each other."""
    columns, covariates = spec.input_shape[0], spec.num_covariates
    encoder = (columns + covariates, *spec.channels, 2 * spec.latent_size)
    decoder = (spec.latent_size + covariates, *reversed(spec.channels), columns)
    return Networks(encoder=Perceptron(encoder), decoder=Perceptron(decoder))


class Perceptron(nn.Module):
    """Linear layers of the given widths on the concatenation of its two inputs."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(into, out) for into, out in pairwise(widths))

    def forward(self, values: Tensor, covariates: Tensor) -> Tensor:
        """Return [B, last width] of values [B, F] and covariates [B, K]."""
        hidden = torch.cat((values, covariates), dim=1)
        for layer in self.layers[:-1]:
            hidden = nn.functional.silu(layer(hidden))
        result: Tensor = self.layers[-1](hidden)
        return result
