"""Settings of how gradients are made and move the weights: public constants, without torch.

`descent` and `augmentation` do what they say. Nothing here has an effect on what a release costs: a step comes after
the noise, and versions of records come before the clip, inside one patient.

Guarantees:
    The learning rate of a step is a function of the schedule and of the global step alone, so that a run which was
    stopped goes on with the same rates (tests/unit/privacy/test_optimiser.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from privacy.errors import PlanError
from privacy.fields import choice_problem, integer_problem, number_problem

OptimiserName = Literal["sgd", "adam", "adam-corrected"]
ScheduleName = Literal["constant", "cosine", "linear"]
Precision = Literal["float32", "bf16"]

MAX_STEPS = 10**9
MAX_VERSIONS = 64
MAX_SHIFT = 64
MAX_SUBSPACE = 1024


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of every step of a run, as a share of its peak.

        (s + 1) / W                                  while s < W: warm-up
        1                                            constant
        1 - (1 - f) p                                linear
        f + (1 - f) (1 + cos(pi p)) / 2              cosine

    with s the global step from 0, W the warm-up, f the final share and p = (s - W) / (T - 1 - W): 0 at the first step
    after the warm-up, 1 at the last step T - 1 and beyond.

    Attributes:
        kind: `constant`, `cosine` or `linear`.
        warmup_steps: W >= 0 [steps].
        final_share: f in (0, 1]; of `cosine` and `linear`.
        first_step: Global step of the first local step, >= 0.
        total_steps: T >= 1, of the whole run at one site [steps].

    References:
        Loshchilov & Hutter 2017, arXiv:1608.03983, eq. (5), without restarts.
    """

    kind: ScheduleName = "constant"
    warmup_steps: int = 0
    final_share: float = 0.1
    first_step: int = 0
    total_steps: int = 1

    def __post_init__(self) -> None:
        problems = [
            *choice_problem("schedule", self.kind, choices=get_args(ScheduleName)),
            *integer_problem("warmup_steps", self.warmup_steps, low=0, high=MAX_STEPS),
            *number_problem("final_share", self.final_share, low=0, high=1, rule="a number in (0, 1]"),
            *integer_problem("first_step", self.first_step, low=0, high=MAX_STEPS),
            *integer_problem("total_steps", self.total_steps, low=1, high=MAX_STEPS),
        ]
        if problems:
            raise PlanError("schedule", problems)

    def share(self, step: int) -> float:
        """Return the learning rate of a local step (from 0), as a share of the peak, in (0, 1]."""
        position = self.first_step + step
        if position < self.warmup_steps:
            return (position + 1) / self.warmup_steps
        after, last = position - self.warmup_steps, self.total_steps - 1 - self.warmup_steps
        passed = min(1.0, after / last) if last > 0 else float(after > 0)
        if self.kind == "linear":
            return 1 - (1 - self.final_share) * passed
        if self.kind == "cosine":
            return self.final_share + (1 - self.final_share) * (1 + math.cos(math.pi * passed)) / 2
        return 1.0


@dataclass(frozen=True, kw_only=True)
class NoisedOptimiser:
    """How noised gradients move the weights; its state starts afresh each round.

    Attributes:
        kind: `sgd`, `adam`, or `adam-corrected`, whose second moment is freed of the noise's part.
        learning_rate: > 0, at the schedule's peak.
        momentum: Of `sgd`, in [0, 1).
        betas: Of `adam` and `adam-corrected`, each in [0, 1).
        epsilon: Of `adam`, > 0.
        moment_floor: Of `adam-corrected`, in (0, 1]: least second moment, in variances of the noise.
        schedule: Of the learning rate.
    """

    kind: OptimiserName = "sgd"
    learning_rate: float
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    moment_floor: float = 0.1
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        below_one = {"momentum": self.momentum, "betas[0]": self.betas[0], "betas[1]": self.betas[1]}
        problems = [
            *choice_problem("kind", self.kind, choices=get_args(OptimiserName)),
            *number_problem(
                "learning_rate", self.learning_rate, low=0, high=1e6, rule="a number in (0, 1e6]"
            ),
            *number_problem("epsilon", self.epsilon, low=0, high=1, rule="a number in (0, 1]"),
            *number_problem("moment_floor", self.moment_floor, low=0, high=1, rule="a number in (0, 1]"),
            *(
                f"{name} must be in [0, 1), got {value!r}"
                for name, value in below_one.items()
                if not 0 <= value < 1
            ),
        ]
        if problems:
            raise PlanError("optimiser", problems)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random versions of each image over which a patient's gradient is averaged (`augmentation.with_versions`).

    Attributes:
        versions: K of each record, beside the record itself; 0 for none, at most `MAX_VERSIONS`. Memory and time of a
            step grow K + 1 times. Each version has latent noise of its own.
        max_shift: Along every axis by a whole number of voxels, uniform in -max_shift to max_shift; edges repeat.
        flip: Along the first axis of space by a coin: left and right of prepared scans (RAS). Brains are not
            symmetric, least of all sick ones.
        max_gain: Intensities times a factor, uniform in 1 - max_gain to 1 + max_gain, in [0, 1).
    """

    versions: int = 0
    max_shift: int = 0
    flip: bool = False
    max_gain: float = 0.0

    def __post_init__(self) -> None:
        problems = [
            *integer_problem("augmentations", self.versions, low=0, high=MAX_VERSIONS),
            *integer_problem("max_shift", self.max_shift, low=0, high=MAX_SHIFT),
            *([] if isinstance(self.flip, bool) else [f"flip must be true or false, got {self.flip!r:.60}"]),
            *number_problem("max_gain", self.max_gain, low=-1, high=1, rule="a number in [0, 1)"),
        ]
        if not problems and not 0 <= self.max_gain < 1:
            problems = [f"max_gain must be a number in [0, 1), got {self.max_gain!r}"]
        if problems:
            raise PlanError("augmentation", problems)
