"""What each layer has to remember of one call, so that the gradient of each patient is known afterwards.

A recorded layer computes what it always computes, with stand-ins for its parameters. After one backward pass
that stops at activations, `explain` turns the gradient g of its output into uses of its parameters:

| layer | weight | other |
|---|---|---|
| Linear, [B, I] or [B, ..., I] | `LinearProduct` | bias: g summed over positions, [B, O] |
| Conv1-3d, ConvTranspose1-3d | `ConvolutionProduct` | bias: g summed over space, [B, O] |
| Embedding, [B, ...] | `EmbeddingProduct` | |
| GroupNorm, InstanceNorm1-3d | g times the normalised input, summed over space, [B, C] | bias: g, likewise |
| LayerNorm | g times the normalised input, summed over positions, [B, *shape] | bias: g, likewise |
| PReLU | g x where x <= 0, summed, [B, 1] or [B, C] | |

Weights that are sums of outer products are in `products`; the rest are vectors, small enough to keep for every
row. Padding other than zeros is an operation of its own before the convolution.

What it assumes: row b of what a layer is given, and of what it returns, belongs to record b
(`bookkeeping` checks the number of rows, `compatible.check_model` the rest on dummy data).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from privacy.convolutions import ConvolutionProduct, Geometry
from privacy.products import EmbeddingProduct, LinearProduct, Product

Explain = Callable[[Tensor], Iterator[tuple[str, Product | Tensor]]]
"""From the gradient of a layer's output to the uses of its parameters, by name: a `Product`, or [B, *shape]."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One call of a layer.

    Attributes:
        output: What the layer returns; its graph reaches the input, and no parameter of the module.
        given: The input that `explain` reads, to see whether somebody changed it in place.
        explain: See `Explain`.
    """

    output: Tensor
    given: Tensor
    explain: Explain


def _stand_in(parameter: Tensor) -> Tensor:
    """Return a leaf of the same values: the output is on the tape though the parameter is not."""
    return parameter.detach().requires_grad_()


def _maybe_stand_in(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else _stand_in(parameter)


def _wanted(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.requires_grad


def _record_linear(layer: nn.Linear, input: Tensor) -> Recorded:  # noqa: A002 - callers may name it
    def explain(gradient: Tensor) -> Iterator[tuple[str, Product | Tensor]]:
        kind, rows = layer.weight.dtype, input.shape[0]
        g = gradient.to(kind).reshape(rows, -1, layer.out_features)
        if _wanted(layer.weight):
            x = input.detach().to(kind).reshape(rows, -1, layer.in_features)
            yield "weight", LinearProduct(x=x, gradient_of_output=g)
        if _wanted(layer.bias):
            yield "bias", g.sum(1)

    output = functional.linear(input, _stand_in(layer.weight), _maybe_stand_in(layer.bias))
    return Recorded(output=output, given=input, explain=explain)


_CONVOLVE: Mapping[tuple[int, bool], Callable[..., Tensor]] = {
    (1, False): functional.conv1d,
    (2, False): functional.conv2d,
    (3, False): functional.conv3d,
    (1, True): functional.conv_transpose1d,
    (2, True): functional.conv_transpose2d,
    (3, True): functional.conv_transpose3d,
}

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def _record_convolution(layer: Convolution, input: Tensor) -> Recorded:  # noqa: A002
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        # An operation of its own: its gradient is autograd's business, and what is convolved is recorded.
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        input = functional.pad(input, layer._reversed_padding_repeated_twice, mode=mode)  # noqa: A001
        padding: tuple[int, ...] = (0,) * len(layer.kernel_size)
    else:
        padding = tuple(layer.padding)
    geometry = Geometry(
        stride=tuple(layer.stride),
        padding=padding,
        dilation=tuple(layer.dilation),
        transposed=False,
        output_padding=(0,) * len(padding),
        groups=layer.groups,
    )
    output = _CONVOLVE[len(padding), False](
        input,
        _stand_in(layer.weight),
        _maybe_stand_in(layer.bias),
        geometry.stride,
        padding,
        geometry.dilation,
        layer.groups,
    )
    return Recorded(output=output, given=input, explain=_explain_convolution(layer, input, geometry))


def _record_transposed(
    layer: Transposed,
    input: Tensor,  # noqa: A002
    output_size: list[int] | None = None,
) -> Recorded:
    axes = len(layer.kernel_size)
    padding = [int(size) for size in layer.padding]
    output_padding = layer._output_padding(
        input,
        output_size,
        list(layer.stride),
        padding,
        list(layer.kernel_size),
        axes,
        list(layer.dilation),
    )
    geometry = Geometry(
        stride=tuple(layer.stride),
        padding=tuple(padding),
        dilation=tuple(layer.dilation),
        transposed=True,
        output_padding=tuple(output_padding),
        groups=layer.groups,
    )
    output = _CONVOLVE[axes, True](
        input,
        _stand_in(layer.weight),
        _maybe_stand_in(layer.bias),
        geometry.stride,
        geometry.padding,
        geometry.output_padding,
        layer.groups,
        geometry.dilation,
    )
    return Recorded(output=output, given=input, explain=_explain_convolution(layer, input, geometry))


def _explain_convolution(layer: Convolution | Transposed, given: Tensor, geometry: Geometry) -> Explain:
    """Return how the parameters of either kind are used."""

    def explain(gradient: Tensor) -> Iterator[tuple[str, Product | Tensor]]:
        kind = layer.weight.dtype
        g = gradient.to(kind).contiguous()
        if _wanted(layer.weight):
            yield (
                "weight",
                ConvolutionProduct(
                    x=given.detach().to(kind),
                    gradient_of_output=g,
                    weight=layer.weight.detach(),
                    geometry=geometry,
                ),
            )
        if _wanted(layer.bias):
            yield "bias", g.flatten(2).sum(2)

    return explain


def _record_group_norm(layer: nn.GroupNorm, input: Tensor) -> Recorded:  # noqa: A002
    weight, bias = layer.weight, layer.bias
    # Autocast runs group_norm in the weight's type, and does not know the native operation.
    x = input.to(weight.dtype).contiguous()
    rows, channels, space = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    output, mean, scale = torch.native_group_norm(
        x, _stand_in(weight), _maybe_stand_in(bias), rows, channels, space, layer.num_groups, layer.eps
    )

    def explain(gradient: Tensor) -> Iterator[tuple[str, Product | Tensor]]:
        # The kernel sums over rows; seen as channels of one record, the rows stay apart.
        _, of_weight, of_bias = torch.ops.aten.native_group_norm_backward(
            gradient.to(x.dtype).contiguous().reshape(1, rows * channels, space),
            x.detach().reshape(1, rows * channels, space),
            mean.detach().reshape(1, -1),
            scale.detach().reshape(1, -1),
            weight.new_ones(rows * channels),
            1,
            rows * channels,
            space,
            rows * layer.num_groups,
            [False, True, True],
        )
        if _wanted(weight):
            yield "weight", of_weight.reshape(rows, channels)
        if _wanted(bias):
            yield "bias", of_bias.reshape(rows, channels)

    return Recorded(output=output, given=input, explain=explain)


def _record_layer_norm(layer: nn.LayerNorm, input: Tensor) -> Recorded:  # noqa: A002
    shape = tuple(layer.normalized_shape)
    output = functional.layer_norm(
        input, shape, _maybe_stand_in(layer.weight), _maybe_stand_in(layer.bias), layer.eps
    )

    def explain(gradient: Tensor) -> Iterator[tuple[str, Product | Tensor]]:
        g = gradient.to(layer.weight.dtype)
        if _wanted(layer.weight):
            normalised = functional.layer_norm(input.detach().to(g.dtype), shape, None, None, layer.eps)
            yield "weight", (g * normalised).reshape(g.shape[0], -1, *shape).sum(1)
        if _wanted(layer.bias):
            yield "bias", g.reshape(g.shape[0], -1, *shape).sum(1)

    return Recorded(output=output, given=input, explain=explain)


InstanceNorm = nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d


def _record_instance_norm(layer: InstanceNorm, input: Tensor) -> Recorded:  # noqa: A002
    weight, bias = _maybe_stand_in(layer.weight), _maybe_stand_in(layer.bias)
    output = functional.instance_norm(input, None, None, weight, bias, True, 0.0, layer.eps)

    def explain(gradient: Tensor) -> Iterator[tuple[str, Product | Tensor]]:
        g = gradient.to(layer.weight.dtype).flatten(2)
        if _wanted(layer.weight):
            x = input.detach().to(g.dtype).flatten(2)
            normalised = functional.instance_norm(x, None, None, None, None, True, 0.0, layer.eps)
            yield "weight", (g * normalised).sum(2)
        if _wanted(layer.bias):
            yield "bias", g.sum(2)

    return Recorded(output=output, given=input, explain=explain)


def _record_prelu(layer: nn.PReLU, input: Tensor) -> Recorded:  # noqa: A002
    def explain(gradient: Tensor) -> Iterator[tuple[str, Product | Tensor]]:
        g = gradient.to(layer.weight.dtype)
        x = input.detach().to(g.dtype)
        slopes = torch.where(x > 0, 0.0, x * g)
        if layer.num_parameters == 1:
            yield "weight", slopes.reshape(x.shape[0], 1, -1).sum(2)
        else:
            yield "weight", slopes.reshape(*x.shape[:2], -1).sum(2)

    output = functional.prelu(input, _stand_in(layer.weight))
    return Recorded(output=output, given=input, explain=explain)


def _record_embedding(layer: nn.Embedding, input: Tensor) -> Recorded:  # noqa: A002
    output = functional.embedding(input, _stand_in(layer.weight), layer.padding_idx)

    def explain(gradient: Tensor) -> Iterator[tuple[str, Product | Tensor]]:
        rows, width = input.shape[0], layer.embedding_dim
        indices = input.detach().reshape(rows, -1).to(torch.int64)
        g = gradient.to(layer.weight.dtype).reshape(rows, -1, width)
        if layer.padding_idx is not None:
            g = torch.where((indices == layer.padding_idx)[..., None], 0.0, g)
        yield (
            "weight",
            EmbeddingProduct(indices=indices, gradient_of_output=g, shape=layer.weight.shape),
        )

    return Recorded(output=output, given=input, explain=explain)


RECORDERS: Mapping[type[nn.Module], Callable[..., Recorded]] = {
    nn.Linear: _record_linear,
    nn.Conv1d: _record_convolution,
    nn.Conv2d: _record_convolution,
    nn.Conv3d: _record_convolution,
    nn.ConvTranspose1d: _record_transposed,
    nn.ConvTranspose2d: _record_transposed,
    nn.ConvTranspose3d: _record_transposed,
    nn.GroupNorm: _record_group_norm,
    nn.LayerNorm: _record_layer_norm,
    nn.InstanceNorm1d: _record_instance_norm,
    nn.InstanceNorm2d: _record_instance_norm,
    nn.InstanceNorm3d: _record_instance_norm,
    nn.PReLU: _record_prelu,
    nn.Embedding: _record_embedding,
}
"""Layers whose parameters `explain` knows, by exact type: a subclass may compute something else."""


def least_axes(layer: nn.Module) -> int:
    """Return how many axes the input of a layer of `RECORDERS` needs so that the first one counts records."""
    if isinstance(layer, nn.LayerNorm):
        return len(layer.normalized_shape) + 1
    if isinstance(layer, nn.Embedding):
        return 1
    sized: Any = getattr(layer, "kernel_size", None)
    if sized is not None:
        return len(sized) + 2
    for axes, kind in enumerate((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), start=3):
        if isinstance(layer, kind):
            return axes
    return 2
