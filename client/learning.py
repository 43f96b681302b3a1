"""How a site turns gradients into an update: the part of the contract that is about learning.

Everything here is a public constant, the same at every site. What it decides happens to gradients after they were
noised, or before they are clipped, one patient at a time: no field has an effect on what a release costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from privacy.fields import choice_problem
from vae.spec import Trainable


class ContractError(Exception):
    """A message does not follow the contract; the text names the field and the rule, never a value."""


@dataclass(frozen=True, kw_only=True)
class LearningPlan:
    """How a site turns gradients into an update; public, the same at every site.

    Attributes:
        optimiser: `sgd` or `adam`, reset at each round.
        learning_rate: > 0 [parameter units a step].
        momentum: of `sgd`, in [0, 1).
        kl_weight: beta times the warm-up of this global round, >= 0.
        proximal_mu: FedProx pull towards the base weights, >= 0 (Li et al. 2020, arXiv:1812.06127).
        trainable: Parameters that move (`vae.models.naming`); the others are frozen and get no noise.
    """

    optimiser: Literal["sgd", "adam"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    kl_weight: float = 1.0
    proximal_mu: float = 0.0
    trainable: Trainable = "all"

    def __post_init__(self) -> None:
        rules = (
            (self.optimiser not in ("sgd", "adam"), "optimiser must be sgd or adam"),
            (not (0 < self.learning_rate < math.inf), "learning_rate must be positive"),
            (not (0 <= self.momentum < 1), "momentum must be in [0, 1)"),
            (not (0 <= self.kl_weight < math.inf), "kl_weight must be >= 0"),
            (not (0 <= self.proximal_mu < math.inf), "proximal_mu must be >= 0"),
        )
        broken = [
            *(rule for failed, rule in rules if failed),
            *choice_problem("trainable", self.trainable, choices=get_args(Trainable)),
        ]
        if broken:
            raise ContractError("learning: " + "; ".join(broken))
