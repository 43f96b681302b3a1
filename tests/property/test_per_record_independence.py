"""One record moves one row: of the losses and of the gradients, for every variant and three ways to get
gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tests.support.variants import VARIANTS, Inputs, make_inputs
from vae.models import build
from vae.models.autoencoder import GaussianVae
from vae.models.separability import dp_support

ROWS = 4
KL_WEIGHT = 0.7
Rows = dict[str, Tensor]  # parameter name -> [B, *shape]

# Opacus 1.6 hooks the first layer, whose input needs no gradient; torch remarks on that. The result is
# right: see the test that the three ways agree.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


def losses(model: GaussianVae, inputs: Inputs) -> Tensor:
    return model(inputs.values, inputs.covariates, inputs.noise, KL_WEIGHT)


def one_by_one(model: GaussianVae, inputs: Inputs) -> Tensor:
    """Return the losses of batches of one."""
    rows = zip(*(each.split(1) for each in (inputs.values, inputs.covariates, inputs.noise)), strict=True)
    return torch.cat([model(*row, KL_WEIGHT) for row in rows])


def rows_by_vmap(model: GaussianVae, inputs: Inputs) -> Rows:
    """Each record alone, through torch.func."""

    def one(parameters: Rows, values: Tensor, covariates: Tensor, noise: Tensor) -> Tensor:
        return functional_call(model, parameters, (values[None], covariates[None], noise[None], KL_WEIGHT))[0]

    parameters = {name: value.detach() for name, value in model.named_parameters()}
    return vmap(grad(one), (None, 0, 0, 0))(parameters, inputs.values, inputs.covariates, inputs.noise)


def rows_by_hooks(model: GaussianVae, inputs: Inputs) -> Rows:
    """One batched backward pass with Opacus' hooks."""
    wrapped = GradSampleModule(model, loss_reduction="sum")
    try:
        losses(wrapped, inputs).sum().backward()
        rows = {name: value.grad_sample.detach().clone() for name, value in model.named_parameters()}
    finally:
        wrapped.to_standard_module()
        model.zero_grad()
    return rows


def rows_by_autograd(model: GaussianVae, inputs: Inputs) -> Rows:
    """The definition: the gradient of each element of the batch's losses."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    batch = losses(model, inputs)
    each = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in batch]
    return {name: torch.stack(rows) for name, rows in zip(names, zip(*each, strict=True), strict=True)}


COUPLED = ["table-vae-learned", "2d-transpose-cvae-fixed", "3d-interpolate-vae-learned"]
ENGINES: dict[str, Callable[[GaussianVae, Inputs], Rows]] = {
    "vmap": rows_by_vmap,
    "hooks": rows_by_hooks,
    "autograd": rows_by_autograd,
}


def changed_rows(before: Rows, after: Rows) -> list[int]:
    """Return the rows of which any number differs, bit for bit."""
    return [
        row
        for row in range(ROWS)
        if any(not torch.equal(before[name][row], after[name][row]) for name in before)
    ]


def with_batch_norm(model: GaussianVae) -> GaussianVae:
    """Return the model with a batch normalisation without parameters, which Opacus' validator ignores."""
    if model.spec.is_image:
        convolution = model.encoder.levels[0].convolution
        norm = nn.BatchNorm2d if len(model.spec.input_shape) == 3 else nn.BatchNorm3d
        convolution.adn = norm(model.spec.channels[0], affine=False, track_running_stats=False)
    else:
        layers = model.encoder.layers
        norm = nn.BatchNorm1d(model.spec.channels[0], affine=False, track_running_stats=False)
        layers[0] = nn.Sequential(layers[0], norm)
    return model


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", VARIANTS)
def test_swapping_one_record_changes_exactly_its_gradient_row(name, engine):
    model, spec = build(VARIANTS[name], seed=1), VARIANTS[name]
    first, other = make_inputs(spec, rows=ROWS, seed=2), make_inputs(spec, rows=ROWS, seed=3)
    before = ENGINES[engine](model, first)
    for row in (0, ROWS - 1):
        assert changed_rows(before, ENGINES[engine](model, first.swapped(row, other))) == [row]


@pytest.mark.parametrize("name", VARIANTS)
@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(row=st.integers(0, ROWS - 1), seed=st.integers(0, 2**31), scale=st.sampled_from([1.0, 1e3, -1e6]))
def test_swapping_one_record_changes_exactly_its_loss(name, row, seed, scale):
    model, spec = build(VARIANTS[name], seed=1), VARIANTS[name]
    first, other = make_inputs(spec, rows=ROWS, seed=seed), make_inputs(spec, rows=ROWS, seed=seed + 1)
    hostile = Inputs(values=other.values * scale, covariates=other.covariates, noise=other.noise)
    with torch.no_grad():
        before, after = losses(model, first), losses(model, first.swapped(row, hostile))
    assert torch.nonzero(before != after).flatten().tolist() == [row]


@pytest.mark.parametrize("name", VARIANTS)
def test_three_ways_to_get_gradient_rows_agree_for_every_parameter(name):
    model, spec = build(VARIANTS[name], seed=1), VARIANTS[name]
    inputs = make_inputs(spec, rows=ROWS, seed=2)
    truth = rows_by_autograd(model, inputs)
    for engine in (rows_by_vmap, rows_by_hooks):
        rows = engine(model, inputs)
        assert rows.keys() == truth.keys() == dict(model.named_parameters()).keys()
        for parameter, expected in truth.items():
            tolerance = 1e-5 * float(expected.abs().max())
            torch.testing.assert_close(rows[parameter], expected, rtol=1e-4, atol=tolerance)
            assert all(bool(row.abs().sum() > 0) for row in expected), f"{parameter} gets no gradient"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_batch_and_its_records_alone_have_equal_losses(name):
    model, spec = build(VARIANTS[name], seed=1), VARIANTS[name]
    inputs = make_inputs(spec, rows=ROWS, seed=2)
    with torch.no_grad():
        batch = losses(model, inputs)
        alone = one_by_one(model, inputs)
    torch.testing.assert_close(batch, alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", COUPLED[1:])  # a table's batch of one has no variance to divide by
def test_control_batch_norm_gives_a_batch_and_its_records_alone_other_losses(name):
    model = with_batch_norm(build(VARIANTS[name], seed=1)).eval()
    inputs = make_inputs(model.spec, rows=ROWS, seed=2)
    with torch.no_grad():
        assert not torch.allclose(losses(model, inputs), one_by_one(model, inputs), rtol=1e-3)


@pytest.mark.parametrize("engine", ["hooks", "autograd"])
@pytest.mark.parametrize("name", COUPLED)
def test_control_a_model_with_batch_norm_changes_more_rows(name, engine):
    spec = VARIANTS[name]
    model = with_batch_norm(build(spec, seed=1))
    first, other = make_inputs(spec, rows=ROWS, seed=2), make_inputs(spec, rows=ROWS, seed=3)
    before = ENGINES[engine](model, first)
    assert changed_rows(before, ENGINES[engine](model, first.swapped(1, other))) == list(range(ROWS))


@pytest.mark.parametrize("name", COUPLED)
def test_control_batch_norm_is_reported_although_opacus_accepts_it(name):
    model = with_batch_norm(build(VARIANTS[name], seed=1))
    assert ModuleValidator.validate(model, strict=False) == []
    support = dp_support(model)
    assert not support.supported
    assert "BatchNorm" in support.reason
    assert "GroupNorm" in support.reason


@pytest.mark.parametrize("name", VARIANTS)
def test_a_loss_changes_nothing_in_the_model_or_the_global_generators(name):
    spec = VARIANTS[name]
    model = build(spec, seed=1)
    inputs = make_inputs(spec, rows=ROWS, seed=2)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    first, second = losses(model, inputs), losses(model, inputs)
    assert torch.equal(first, second)
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert list(model.buffers()) == []


@pytest.mark.parametrize("name", VARIANTS)
def test_an_empty_batch_has_an_empty_loss_and_zero_gradients(name):
    spec = VARIANTS[name]
    model = build(spec, seed=1)
    result = losses(model, make_inputs(spec, rows=0, seed=2))
    result.sum().backward()
    assert result.shape == (0,)
    assert all(float(value.grad.abs().sum()) == 0.0 for value in model.parameters())
