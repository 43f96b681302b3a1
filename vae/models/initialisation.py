"""Initial weights from a generator of their own.

torch's constructors draw from the global generator, which other threads share. Here every parameter is
written from one explicit generator, in the order of the modules.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from vae.models.autoencoder import GaussianVae


def initialise(model: GaussianVae, *, initial_scale: float, generator: torch.Generator) -> None:
    """Write every parameter of `model`.

    Weights are uniform with variance 1 / fan-in (LeCun), biases zero, norms the identity, the learned decoder
    scale `initial_scale`.

    Args:
        model: On the CPU; its parameters may be uninitialised memory.
        initial_scale: Decoder standard deviation at the start, > 0.
        generator: CPU generator; it alone decides the values.

    Raises:
        RuntimeError: a layer has parameters and no rule here; uninitialised memory must never be trained.
    """
    with torch.no_grad():
        for name, module in model.named_modules():
            if model.log_scale is not None and module is model.log_scale:
                module.weight.fill_(math.log(initial_scale))
            else:
                _initialise_layer(name, module, generator)


def centre_output(model: GaussianVae, mean: Tensor) -> None:
    """Set the bias of the decoder's last layer so that an input of zeros decodes to a given mean.

    Args:
        model: On the CPU.
        mean: [C] of an image's channels, or [F] of a table's columns, of public data; with a sigmoid output it is
            brought into (0.001, 0.999) first.

    Raises:
        ValueError: the mean has another length.
    """
    *_, bias = (value for name, value in model.decoder.named_parameters() if name.endswith(".bias"))
    if mean.shape != bias.shape:
        raise ValueError(f"mean must be {list(bias.shape)}, got {list(mean.shape)}")
    with torch.no_grad():
        bias.copy_(torch.logit(mean, eps=1e-3) if model.spec.output == "sigmoid" else mean)


def _initialise_layer(name: str, module: nn.Module, generator: torch.Generator) -> None:
    """Write the parameters that `module` itself owns."""
    if isinstance(module, nn.Linear | _ConvNd):
        bound = math.sqrt(3.0 / _fan_in(module))
        module.weight.uniform_(-bound, bound, generator=generator)
        _fill(module.bias, 0.0)
    elif isinstance(module, nn.GroupNorm):
        _fill(module.weight, 1.0)
        _fill(module.bias, 0.0)
    elif next(module.parameters(recurse=False), None) is not None:
        raise RuntimeError(
            f"no initialisation rule for {name} ({type(module).__name__}); add one in this module"
        )


def _fill(parameter: Tensor | None, value: float) -> None:
    """Fill an optional parameter."""
    if parameter is not None:
        parameter.fill_(value)


def _fan_in(module: nn.Linear | _ConvNd) -> int:
    """Return how many inputs one output sums over."""
    if isinstance(module, _ConvTransposeNd):
        # [in, out, *kernel]; with stride s an output meets every s-th tap of the kernel along each axis.
        taps = math.prod(
            max(1, size // step) for size, step in zip(module.kernel_size, module.stride, strict=True)
        )
        return module.in_channels * taps
    return math.prod(module.weight.shape[1:])
