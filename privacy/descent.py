"""How noised gradients move the weights: one step after another, with what `optimiser` says.

All of it is post-processing: a step is a function of noised gradients, of weights that came from such, and of public
constants. Nothing here has an effect on what a release costs, and nothing here may see anything else of the data.

Guarantees:
    State starts afresh with every `Descent`, that is in every round (tests/unit/privacy/test_descent.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from privacy.errors import PlanError
from privacy.optimiser import NoisedOptimiser

_Step = Callable[[float], None]
"""Moves the parameters by their gradients, with a learning rate."""


class Descent:
    """Moves the weights by given gradients, plus the proximal term: a function of the weights alone.

    Args:
        module: Its trainable parameters move; the base of the proximal term is what they are now.
        optimiser: How.
        proximal_mu: FedProx weight, >= 0 and finite.
        noise_std: Standard deviation of the noise in each coordinate; 0 without privacy.

    Raises:
        ValueError: `proximal_mu` is out of range.
        PlanError: the optimiser needs noise, and there is none.
    """

    def __init__(
        self, module: nn.Module, optimiser: NoisedOptimiser, proximal_mu: float, *, noise_std: float = 0.0
    ) -> None:
        if not 0.0 <= proximal_mu < math.inf:
            raise ValueError(f"proximal_mu must be finite and >= 0, got {proximal_mu}")
        self._parameters = {
            name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad
        }
        self._move = _stepper(optimiser, list(self._parameters.values()), noise_std)
        self._rate, self._schedule, self._steps = optimiser.learning_rate, optimiser.schedule, 0
        self._base = (
            [tensor.detach().clone() for tensor in self._parameters.values()] if proximal_mu > 0 else None
        )
        self._mu = proximal_mu

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """Let the optimiser step once."""
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name].to(parameter)
        if self._base is not None:
            for parameter, base in zip(self._parameters.values(), self._base, strict=True):
                pull = self._mu * (parameter.detach() - base)
                parameter.grad = pull if parameter.grad is None else parameter.grad + pull
        self._move(self._rate * self._schedule.share(self._steps))
        self._steps += 1
        for parameter in self._parameters.values():
            parameter.grad = None

    def skip(self) -> None:
        """Pass over a step whose gradient cannot be used; the schedule goes on."""
        self._steps += 1


def _stepper(settings: NoisedOptimiser, parameters: Sequence[nn.Parameter], noise_std: float) -> _Step:
    """Return what moves the parameters by their gradients; the noise in a coordinate has this deviation, 0 is none."""
    if settings.kind == "adam-corrected":
        if not 0 < noise_std < math.inf:
            raise PlanError("optimiser", ["adam-corrected needs noise to correct for; use adam"])
        return _CorrectedAdam(parameters, settings, noise_std**2).step
    optimiser: torch.optim.Optimizer
    if settings.kind == "sgd":
        optimiser = torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=settings.momentum)
    else:
        optimiser = torch.optim.Adam(
            parameters, lr=settings.learning_rate, betas=settings.betas, eps=settings.epsilon
        )

    def step(learning_rate: float) -> None:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate
        optimiser.step()

    return step


class _CorrectedAdam:
    """Adam whose second moment estimates that of the gradient, not that of gradient and noise together.

        m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2
        w = w - rate * m / (1 - b1^t) / sqrt(max(v / (1 - b2^t) - s^2, floor s^2))

    with s the standard deviation of the noise in a coordinate of g. In expectation g^2 holds s^2, which plain Adam
    cannot tell from the gradient: where noise dominates, it is SGD with momentum. The floor is the paper's gamma', in
    variances of the noise; it is public, since s is.

    References:
        Tang, Shpilevskiy, Lecuyer 2023 (DP-AdamBC), arXiv:2312.14334, algorithm 1.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], settings: NoisedOptimiser, noise_variance: float
    ) -> None:
        self._parameters, self._settings, self._variance = parameters, settings, noise_variance
        self._first = [torch.zeros_like(parameter) for parameter in parameters]
        self._second = [torch.zeros_like(parameter) for parameter in parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move the parameters once."""
        self._steps += 1
        beta_1, beta_2 = self._settings.betas
        floor = self._settings.moment_floor * self._variance
        for parameter, first, second in zip(self._parameters, self._first, self._second, strict=True):
            if parameter.grad is None:
                continue
            first.mul_(beta_1).add_(parameter.grad, alpha=1 - beta_1)
            second.mul_(beta_2).addcmul_(parameter.grad, parameter.grad, value=1 - beta_2)
            corrected = (second / (1 - beta_2**self._steps) - self._variance).clamp_(min=floor)
            parameter.sub_(first / corrected.sqrt_(), alpha=learning_rate / (1 - beta_1**self._steps))
