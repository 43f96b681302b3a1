"""One forward and one backward pass of a module, and how each trainable parameter was used in them.

For the time of the pass each layer that owns trainable parameters computes with stand-ins (`layers`), so that
autograd's tape reaches every layer's output and no parameter. One call of `torch.autograd.grad` then walks
back through activations alone, and hands over the gradient of each recorded output; no gradient of a weight is
computed, and nothing is run twice.

Modules that own parameters and are no layer of `layers.RECORDERS` are vectorised over records, each record
with a copy of the parameters that takes no memory (expanded), whose gradient is the gradient of each record.
That needs records x parameters of such a module, with all modules in it.

A parameter that is used in neither way still has its place on the tape. Autograd reports the gradient that
reaches it, and the model is refused by that parameter's name: it would be trained without a clip.

Guarantees:
    - The module is left as found, after an exception too.
    - A gradient that reaches a trainable parameter is in `Uses`, or the pass raises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from privacy.clipping import Rows
from privacy.errors import IncompatibleModelError
from privacy.layers import RECORDERS, Explain, least_axes
from privacy.products import Product

Forward = Callable[..., Any]

_ELSE = "use grad_engine vmap"


@dataclass(frozen=True, kw_only=True)
class Uses:
    """What a pass tells of B records.

    Attributes:
        losses: [B], each times its weight.
        products: Parameter -> its uses as a sum of outer products.
        rows: Parameter -> [B, *shape]: gradients of each record, one tensor a use.
    """

    losses: Tensor
    products: dict[str, list[Product]] = field(default_factory=dict)
    rows: dict[str, list[Tensor]] = field(default_factory=dict)


def record_uses(module: nn.Module, rows: Rows, kl_weight: float) -> Uses:
    """Return the uses of the trainable parameters in one pass over `rows`.

    Args:
        module: `forward(values, covariates, latent_noise, kl_weight)` returns [B].
        rows: B records; their weights multiply the losses.
        kl_weight: >= 0.

    Raises:
        IncompatibleModelError: a parameter is used in a way that no record explains; names it.
    """
    tape = _Tape(module, rows.num_records)
    with torch.enable_grad(), tape.recording():
        losses: Tensor = module(rows.values, rows.covariates, rows.noise, kl_weight)
    uses = Uses(losses=losses.detach() * rows.weight)
    if losses.requires_grad:
        tape.explain(losses, rows.weight.to(losses.dtype), uses)
    return uses


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One call of a known layer: where its output is on the tape, and what was recorded.

    The version tells whether somebody changed the input in place.
    """

    name: str
    layer: nn.Module
    edge: torch.autograd.graph.GradientEdge
    given: Tensor
    version: int
    explain: Explain


class _Tape:
    """Records the calls of one pass."""

    def __init__(self, module: nn.Module, num_records: int) -> None:
        self._module = module
        self._num_records = num_records
        self._names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
        self._calls: list[_Call] = []
        self._copies: list[tuple[str, Tensor]] = []  # parameter, [B, *shape] leaf
        self._forwards: list[tuple[nn.Module, Forward]] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Let layers record for the time of the block; leave the module as found."""
        for name, part in _owners(self._module):
            make = self._recorded if _is_known(part) else self._by_record
            self._forwards.append((part, make(name, part)))
        with _forwards(self._forwards):
            yield

    def explain(self, losses: Tensor, weight: Tensor, uses: Uses) -> None:
        """Run backwards and add what the recorded calls tell to `uses`."""
        parameters = [p for p in self._module.parameters() if p.requires_grad]
        wanted: list[Any] = [
            *(call.edge for call in self._calls),
            *(leaf for _, leaf in self._copies),
            *parameters,
        ]
        gradients = list(torch.autograd.grad(losses, wanted, grad_outputs=weight, allow_unused=True))
        bare = [
            name
            for name, gradient in zip(self._names.values(), gradients[-len(parameters) :], strict=True)
            if gradient is not None
        ]
        if bare:
            raise IncompatibleModelError(
                [
                    f"{name} is used outside of the module that owns it, where its gradient of each patient is not "
                    f"known; use it through its module alone, or {_ELSE}"
                    for name in bare
                ]
            )
        for call, gradient in zip(self._calls, gradients, strict=False):
            if gradient is not None:
                self._explain_call(call, gradient, uses)
        for (name, _), gradient in zip(self._copies, gradients[len(self._calls) :], strict=False):
            if gradient is not None:
                uses.rows.setdefault(name, []).append(gradient)

    def _explain_call(self, call: _Call, gradient: Tensor, uses: Uses) -> None:
        """Add the uses of one call."""
        if call.given._version != call.version:
            raise IncompatibleModelError(
                [
                    f"{call.name}: its input is changed in place after the call; compute out of place, or {_ELSE}"
                ]
            )
        with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
            for own, use in call.explain(gradient):
                name = self._names[id(getattr(call.layer, own))]
                if isinstance(use, Tensor):
                    uses.rows.setdefault(name, []).append(use)
                else:
                    uses.products.setdefault(name, []).append(use)

    def _recorded(self, name: str, layer: nn.Module) -> Forward:
        """Return the forward of a known layer that records its calls."""
        record, axes = RECORDERS[type(layer)], least_axes(layer)
        if isinstance(layer, nn.Embedding) and (
            layer.max_norm is not None or layer.sparse or layer.scale_grad_by_freq
        ):
            raise IncompatibleModelError(
                [
                    f"{name} (Embedding) sets max_norm, sparse or scale_grad_by_freq, which act on the whole batch; "
                    "leave them at their defaults"
                ]
            )

        def forward(*arguments: Any, **named: Any) -> Tensor:  # noqa: ANN401 - those of the layer
            given: Tensor = arguments[0] if arguments else named["input"]
            if given.ndim < axes or given.shape[0] != self._num_records:
                raise self._not_by_record(name, layer)
            made = record(layer, *arguments, **named)
            if made.output.requires_grad:  # not under no_grad
                self._calls.append(
                    _Call(
                        name=name,
                        layer=layer,
                        edge=torch.autograd.graph.get_gradient_edge(made.output),
                        given=made.given,
                        version=made.given._version,
                        explain=made.explain,
                    )
                )
            return made.output

        return forward

    def _by_record(self, name: str, part: nn.Module) -> Forward:
        """Return the forward of any other module: vectorised over records, with parameters of their own."""
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            raise IncompatibleModelError(
                [
                    f"{_label(name, part)} has hooks, whose use of its parameters is not seen; remove them, or {_ELSE}"
                ]
            )
        own = {key: tensor for key, tensor in part.named_parameters() if tensor.requires_grad}

        def forward(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - those of the module
            given: dict[Any, Any] = {**dict(enumerate(arguments)), **named}
            batched = {key: value for key, value in given.items() if self._is_batched(value)}
            loose = (value for key, value in given.items() if key not in batched)
            if not batched or any(isinstance(value, Tensor) and value.requires_grad for value in loose):
                raise self._not_by_record(name, part)

            shape: list[Any] = []  # of what the module returns, tensors left out

            def one(parameters: dict[str, Tensor], record: dict[Any, Tensor]) -> list[Tensor]:
                every = {**given, **{key: value.unsqueeze(0) for key, value in record.items()}}
                positional = tuple(every.pop(key) for key in range(len(arguments)))
                returned = torch.func.functional_call(part, parameters, positional, every)
                leaves, tree = tree_flatten(returned)
                shape[:] = [[_ABSENT if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree]
                return [leaf.squeeze(0) for leaf in leaves if isinstance(leaf, Tensor)]

            copies = {
                key: tensor.detach().expand(self._num_records, *tensor.shape).requires_grad_()
                for key, tensor in own.items()
            }
            try:
                with _forwards(self._forwards, undo=True):
                    tensors = iter(torch.func.vmap(one)(copies, batched))
            except (RuntimeError, ValueError) as error:
                raise IncompatibleModelError(
                    [f"{_label(name, part)} cannot be computed record by record ({error}); {_ELSE}"]
                ) from error
            if torch.is_grad_enabled():
                self._copies += [(self._names[id(own[key])], leaf) for key, leaf in copies.items()]
            others, tree = shape
            return tree_unflatten([next(tensors) if leaf is _ABSENT else leaf for leaf in others], tree)

        return forward

    def _is_batched(self, value: object) -> bool:
        """Return whether a row of it belongs to each record."""
        return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == self._num_records

    def _not_by_record(self, name: str, part: nn.Module) -> IncompatibleModelError:
        return IncompatibleModelError(
            [
                f"{_label(name, part)} is given a tensor whose first axis does not count records, so that its "
                f"gradient of each patient is not known; keep records on the first axis, or {_ELSE}"
            ]
        )


def _label(name: str, part: nn.Module) -> str:
    return f"{name or 'the model'} ({type(part).__name__})"


def _owners(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost modules that own trainable parameters, each once; nothing inside an unknown one."""
    seen: set[int] = set()

    def walk(name: str, part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if id(part) in seen or not any(p.requires_grad for p in part.parameters()):
            return
        seen.add(id(part))
        if _is_known(part) or _owns_parameters(part):
            yield name, part
            return
        for key, child in part.named_children():
            yield from walk(f"{name}.{key}" if name else key, child)

    return walk("", module)


def _owns_parameters(part: nn.Module) -> bool:
    """Return whether trainable parameters belong to the module itself; lists of them are no modules."""
    lists = [child for child in part.children() if isinstance(child, nn.ParameterList | nn.ParameterDict)]
    return torch.nn.utils.parametrize.is_parametrized(part) or any(
        parameter.requires_grad for owner in (part, *lists) for parameter in owner.parameters(recurse=False)
    )


def _is_known(part: nn.Module) -> bool:
    """Return whether `layers` explains the module: its own forward, with plain weight and bias."""
    return (
        type(part) in RECORDERS
        and "forward" not in vars(part)
        and {name for name, _ in part.named_parameters(recurse=False)} <= {"weight", "bias"}
        and isinstance(getattr(part, "weight", None), nn.Parameter)
        and not getattr(part, "track_running_stats", False)
    )


_ABSENT = object()


@contextlib.contextmanager
def _forwards(forwards: list[tuple[nn.Module, Forward]], *, undo: bool = False) -> Iterator[None]:
    """Give modules these forwards for the time of the block; with `undo`, take them away again inside of one."""
    before = [vars(part).get("forward", _ABSENT) for part, _ in forwards]
    try:
        for part, forward in forwards:
            if undo:
                vars(part).pop("forward", None)
            else:
                vars(part)["forward"] = forward
        yield
    finally:
        for (part, _), own in zip(forwards, before, strict=True):
            if own is _ABSENT:
                vars(part).pop("forward", None)
            else:
                vars(part)["forward"] = own
