"""Frozen parameters: every engine gives the reference's sum over the others, and works for those alone."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from client.site import dummy_batch
from client.train import training_only
from privacy.clipping import build_engine, patient_chunks
from privacy.compatible import check_model
from privacy.plan import GradEngine
from privacy.tape import record_uses
from tests.support.private_toys import (
    flatten,
    latent_of,
    make_cohort,
    make_module,
    reference_gradients,
    reference_sum,
)
from vae.data.cohort import Batch
from vae.models import build
from vae.spec import ModelSpec, Trainable

RAGGED = (1, 3, 2)
SPECS = {
    "table": ModelSpec(family="vae", input_shape=(6,), latent_size=3, channels=(5,), decoder_scale="learned"),
    "image": ModelSpec(family="vae", input_shape=(1, 8, 8), latent_size=3, channels=(4, 4)),
    "transpose": ModelSpec(
        family="vae", input_shape=(1, 8, 8), latent_size=3, channels=(4, 4), upsampling="transpose"
    ),
}
engines = pytest.mark.parametrize("engine", get_args(GradEngine))
choices = pytest.mark.parametrize("which", [which for which in get_args(Trainable) if which != "all"])


def batch_of(shape: tuple[int, ...]) -> Batch:
    batch = make_cohort(shape, RAGGED).everything()
    return Batch(
        values=batch.values.double(),
        covariates=batch.covariates.double(),
        patient=batch.patient,
        num_patients=batch.num_patients,
    )


@engines
@choices
@pytest.mark.parametrize("name", list(SPECS))
def test_equals_a_loop_over_patients(engine: GradEngine, which: Trainable, name: str):
    module, batch = build(SPECS[name], seed=1).double().train(), batch_of(SPECS[name].input_shape)
    noise = latent_of(batch)
    with training_only(module, which):
        reference = reference_gradients(module, batch, noise, 0.7)
        bound = 0.9 * float(torch.linalg.vector_norm(reference, dim=1).median())
        clipped = build_engine(engine).clipped_sum(
            module, batch, latent_noise=noise, kl_weight=0.7, max_grad_norm=bound
        )
    assert set(clipped.sum) == module.trainable_names(which)
    torch.testing.assert_close(flatten(clipped.sum), reference_sum(reference, bound), rtol=1e-9, atol=1e-12)
    assert clipped.num_clipped == int((torch.linalg.vector_norm(reference, dim=1) > bound).sum()) > 0


@engines
@choices
def test_the_guard_accepts_the_product_s_models(engine: GradEngine, which: Trainable):
    for spec in SPECS.values():
        model = build(spec, seed=0)
        with training_only(model, which):
            check_model(model, dummy_batch(spec), spec.latent_size, engine=engine)


class _Counted(torch.autograd.Function):
    """The identity, which counts how often a gradient passes."""

    passed = 0

    @staticmethod
    def forward(context, values):  # type: ignore[no-untyped-def]
        return values.clone()

    @staticmethod
    def backward(context, gradient):  # type: ignore[no-untyped-def]
        _Counted.passed += 1
        return gradient


def test_bookkeeping_computes_nothing_for_what_is_frozen():
    module, batch = make_module("image").train(), make_cohort((1, 8, 8), RAGGED).everything()
    (rows,) = patient_chunks(batch, latent_of(batch), 64, like=next(module.parameters()))
    module.encoder.append(_Marker())
    trained = {name for name, _ in module.named_parameters() if name.startswith("decoder.6")}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)
    _Counted.passed = 0
    uses = record_uses(module, rows, 1.0)
    assert set(uses.products) | set(uses.rows) == trained
    assert _Counted.passed == 0, "the pass went back further than the last layer that is trained"
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith("encoder.0"))
    record_uses(module, rows, 1.0)
    assert _Counted.passed == 1


class _Marker(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        marked: torch.Tensor = _Counted.apply(values)
        return marked
