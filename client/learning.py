"""How a site turns gradients into an update: the part of the contract that is about learning.

Everything here is a public constant, the same at every site. What it decides happens to gradients after they were
noised, or before they are clipped, one patient at a time: no field has an effect on what a release costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from privacy.errors import PlanError
from privacy.fields import choice_problem, integer_problem, number_problem
from privacy.optimiser import (
    MAX_STEPS,
    MAX_SUBSPACE,
    Augmentation,
    NoisedOptimiser,
    OptimiserName,
    Precision,
    Schedule,
    ScheduleName,
)
from vae.spec import Trainable


class ContractError(Exception):
    """A message does not follow the contract; the text names the field and the rule, never a value."""


@dataclass(frozen=True, kw_only=True)
class LearningPlan:
    """How a site turns gradients into an update; public, the same at every site.

    Attributes:
        optimiser: `sgd`, `adam`, or `adam-corrected` (private updates alone), reset at each round.
        learning_rate: > 0 at the schedule's peak [parameter units a step].
        momentum: of `sgd`, in [0, 1).
        kl_weight: beta times the warm-up of this global round, >= 0.
        proximal_mu: FedProx pull towards the base weights, >= 0 (Li et al. 2020, arXiv:1812.06127).
        trainable: Parameters that move (`vae.models.naming`); the others are frozen and get no noise.
        schedule: Of the learning rate by global step (`privacy.descent.Schedule`).
        warmup_steps: Global steps over which it grows to its peak, >= 0.
        final_share: Of the peak, at the last step of `cosine` and `linear`, in (0, 1].
        first_step: Global step of the first local step of this round, >= 0; the server fills it in.
        total_steps: Steps of the whole run at this site; 0 as long as the server has not filled it in.
        moment_floor: Of `adam-corrected`, in (0, 1] [variances of the noise].
        augmentations: Versions of each image beside itself (`privacy.optimiser.Augmentation`); 0 for none.
        max_shift: Of a version, >= 0 [voxels].
        flip: Whether a version may be flipped, left to right.
        max_gain: Of a version's intensities, in [0, 1).
        precision: Of the forward and backward pass of a private step: `bf16` is for sites with a GPU.
        subspace: Public directions that weights move in (`privacy.subspace`), sent with the request; 0 for none.
    """

    optimiser: OptimiserName = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    kl_weight: float = 1.0
    proximal_mu: float = 0.0
    trainable: Trainable = "all"
    schedule: ScheduleName = "constant"
    warmup_steps: int = 0
    final_share: float = 0.1
    first_step: int = 0
    total_steps: int = 0
    moment_floor: float = 0.1
    augmentations: int = 0
    max_shift: int = 0
    flip: bool = False
    max_gain: float = 0.0
    precision: Precision = "float32"
    subspace: int = 0

    def __post_init__(self) -> None:
        rules = (
            (not (0 < self.learning_rate < math.inf), "learning_rate must be positive"),
            (not (0 <= self.momentum < 1), "momentum must be in [0, 1)"),
            (not (0 <= self.kl_weight < math.inf), "kl_weight must be >= 0"),
            (not (0 <= self.proximal_mu < math.inf), "proximal_mu must be >= 0"),
        )
        broken = [
            *choice_problem("optimiser", self.optimiser, choices=get_args(OptimiserName)),
            *(rule for failed, rule in rules if failed),
            *choice_problem("trainable", self.trainable, choices=get_args(Trainable)),
            *choice_problem("precision", self.precision, choices=get_args(Precision)),
            *choice_problem("schedule", self.schedule, choices=get_args(ScheduleName)),
            *integer_problem("warmup_steps", self.warmup_steps, low=0, high=MAX_STEPS),
            *number_problem("final_share", self.final_share, low=0, high=1, rule="a number in (0, 1]"),
            *integer_problem("first_step", self.first_step, low=0, high=MAX_STEPS),
            *integer_problem("total_steps", self.total_steps, low=0, high=MAX_STEPS),
            *integer_problem("subspace", self.subspace, low=0, high=MAX_SUBSPACE),
            *number_problem("moment_floor", self.moment_floor, low=0, high=1, rule="a number in (0, 1]"),
        ]
        try:
            self.to_augmentation()
        except PlanError as error:
            broken += error.problems
        if broken:
            raise ContractError("learning: " + "; ".join(broken))

    def to_augmentation(self) -> Augmentation:
        """Return which versions of records gradients are averaged over."""
        return Augmentation(
            versions=self.augmentations, max_shift=self.max_shift, flip=self.flip, max_gain=self.max_gain
        )

    def to_optimiser(self) -> NoisedOptimiser:
        """Return the optimiser of a round.

        Raises:
            ContractError: the schedule lacks the steps of the run.
        """
        if self.total_steps < 1 and (self.schedule != "constant" or self.warmup_steps):
            raise ContractError("learning: total_steps must be filled in for a schedule, got 0")
        return NoisedOptimiser(
            kind=self.optimiser,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            moment_floor=self.moment_floor,
            schedule=Schedule(
                kind=self.schedule,
                warmup_steps=self.warmup_steps,
                final_share=self.final_share,
                first_step=self.first_step,
                total_steps=max(1, self.total_steps),
            ),
        )
