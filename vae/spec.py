"""What a model is, as data: enough to build it anywhere, and a hash that both ends can compare."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from vae.errors import ModelSpecError

Family = Literal["vae", "beta-vae", "cvae"]
DecoderScale = Literal["fixed", "learned"]
Upsampling = Literal["interpolate", "transpose"]
Output = Literal["linear", "sigmoid"]
Sharing = Literal["all", "decoder", "encoder", "norm-local"]
Trainable = Literal["all", "decoder", "encoder", "biases", "last"]

NOTHING_TRAVELS: frozenset[tuple[Sharing, Trainable]] = frozenset(
    {("encoder", "decoder"), ("encoder", "last"), ("decoder", "encoder")}
)
"""Sharings under which nothing of what is trained leaves a site, whatever the model (tests/unit/vae/test_naming.py)."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A variational autoencoder.

    Attributes:
        family: `vae` (beta = 1), `beta-vae`, or `cvae` (covariates enter encoder and decoder).
        input_shape: (C, H, W), (C, D, H, W), or (F,) for a table of F columns.
        latent_size: Number of latent dimensions Z, >= 1.
        channels: Widths, outermost first: one stride-2 level an entry for images, one hidden layer for tables.
        num_covariates: K; > 0 exactly for `cvae`.
        beta: Weight of the KL term [dimensionless], >= 0; 1 for `vae` and `cvae`.
        decoder_scale: `fixed`, or `learned` (one scalar).
        initial_scale: Standard deviation of the decoder's Gaussian [units of the input], > 0; start value if learned.
        upsampling: How the decoder of an image doubles its grid.
        output: `sigmoid` for intensities in [0, 1], `linear` otherwise.
    """

    family: Family
    input_shape: tuple[int, ...]
    latent_size: int
    channels: tuple[int, ...]
    num_covariates: int = 0
    beta: float = 1.0
    decoder_scale: DecoderScale = "fixed"
    initial_scale: float = 0.1
    upsampling: Upsampling = "interpolate"
    output: Output = "linear"

    def __post_init__(self) -> None:
        problems = [
            text
            for broken, text in (
                (
                    len(self.input_shape) not in (1, 3, 4),
                    "input_shape must be (F,), (C, H, W) or (C, D, H, W)",
                ),
                (any(size < 1 for size in self.input_shape), "input_shape must be positive"),
                (self.latent_size < 1, "latent_size must be >= 1"),
                (
                    not self.channels or any(width < 1 for width in self.channels),
                    "channels must be positive widths",
                ),
                (
                    (self.family == "cvae") != (self.num_covariates > 0),
                    "covariates and the family cvae go together",
                ),
                (
                    self.family != "beta-vae" and self.beta != 1.0,
                    "beta other than 1 goes with the family beta-vae",
                ),
                (self.beta < 0, "beta must be >= 0"),
                (not self.initial_scale > 0, "initial_scale must be > 0"),
            )
            if broken
        ]
        if problems:
            raise ModelSpecError("model: " + "; ".join(problems))

    @property
    def is_image(self) -> bool:
        """Return whether the input has spatial axes."""
        return len(self.input_shape) > 1

    def to_json(self) -> str:
        """Return canonical JSON (sorted keys, no spaces)."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

    def hash(self) -> str:
        """Return the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
