"""Activations in bfloat16: norms, clip and sums stay as exact as ever. On a CPU, where only tests do this."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from privacy.clipping import Batch, ClippedSum, build_engine
from privacy.noise import SeededRandomness
from privacy.optimiser import NoisedOptimiser, Precision
from privacy.plan import GradEngine, PrivacyPlan
from privacy.training import train_private
from tests.support.private_toys import LATENT, SHAPES, flatten, make_cohort, make_module

BOUND = 0.01


class _Watch:
    """An engine that remembers the sums, and the type of the activations that made them."""

    def __init__(self, engine: GradEngine) -> None:
        self.engine = build_engine(engine)
        self.sums: list[torch.Tensor] = []
        self.counts: list[int] = []
        self.types: set[torch.dtype] = set()

    def clipped_sum(self, module: torch.nn.Module, batch: Batch, **options: object) -> ClippedSum:
        layer = module.posterior
        self.types.add(layer(torch.zeros(1, layer.in_features)).dtype)  # type: ignore[operator]
        made = self.engine.clipped_sum(module, batch, **options)  # type: ignore[arg-type]
        assert all(tensor.dtype == torch.float64 for tensor in made.sum.values())
        self.sums.append(flatten(made.sum))
        self.counts.append(batch.num_patients)
        return made


def trained(engine: GradEngine, precision: Precision, records: tuple[int, ...] = (1, 3, 2, 4)) -> _Watch:
    plan = PrivacyPlan(
        sampling_probability=0.7,
        steps=3,
        noise_multiplier=1e-4,
        max_grad_norm=BOUND,
        divisor=2.0,
        delta=1e-3,
        randomness="seeded",
    )
    watch = _Watch(engine)
    train_private(
        make_module("image"),
        make_cohort(SHAPES["image"], records),
        plan=plan,
        optimiser=NoisedOptimiser(learning_rate=0.1),
        randomness=SeededRandomness(5),
        kl_weight=1.0,
        latent_size=LATENT,
        engine=watch,
        precision=precision,
    )
    return watch


@pytest.mark.parametrize("engine", get_args(GradEngine))
def test_the_bound_holds_for_what_was_computed_in_bfloat16(engine: GradEngine):
    exact, coarse = trained(engine, "float32"), trained(engine, "bf16")
    assert exact.types == {torch.float32}
    assert coarse.types == {torch.bfloat16}
    assert coarse.counts == exact.counts
    for total, count in zip(coarse.sums, coarse.counts, strict=True):
        assert float(torch.linalg.vector_norm(total)) <= BOUND * count * (1 + 1e-9)
    distance = float(torch.linalg.vector_norm(coarse.sums[0] - exact.sums[0]))
    assert 0 < distance <= 0.05 * BOUND * max(1, exact.counts[0])


@pytest.mark.parametrize("engine", get_args(GradEngine))
def test_one_patient_alone_is_clipped_to_the_bound(engine: GradEngine):
    watch = trained(engine, "bf16", records=(3,))
    norms = [
        float(torch.linalg.vector_norm(total)) for total, n in zip(watch.sums, watch.counts, strict=True) if n
    ]
    assert norms
    assert norms == pytest.approx([BOUND] * len(norms), rel=1e-9)
