"""Both engines against autograd, Opacus' own optimiser, and what they must leave untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from privacy.clipping import OpacusEngine, VmapEngine, build_engine, patient_chunks
from privacy.plan import GradEngine
from tests.support.private_toys import (
    SHAPES,
    ImageVae,
    RawGradient,
    TableVae,
    flatten,
    latent_of,
    make_cohort,
    make_module,
    raw_batch,
    reference_gradients,
    reference_sum,
)
from vae.data.cohort import Batch

ENGINES: tuple[GradEngine, ...] = ("vmap", "opacus", "bookkeeping")
RAGGED = (1, 3, 2, 1, 5)
UNIFORM = (2, 2, 2, 2)

engines = pytest.mark.parametrize("engine", ENGINES)


def batch_of(name: str, records: tuple[int, ...], seed: int = 0) -> Batch:
    cohort = make_cohort(SHAPES[name], records, seed=seed)
    batch = cohort.everything()
    return Batch(
        values=batch.values.double(),
        covariates=batch.covariates.double(),
        patient=batch.patient,
        num_patients=batch.num_patients,
    )


@engines
@pytest.mark.parametrize(
    "records", [RAGGED, UNIFORM, (1,), (1, 1, 1)], ids=["ragged", "uniform", "one", "singles"]
)
@pytest.mark.parametrize("name", list(SHAPES))
def test_equals_a_loop_over_patients(engine: GradEngine, name: str, records: tuple[int, ...]):
    module, batch = make_module(name).double().train(), batch_of(name, records)
    noise = latent_of(batch)
    reference = reference_gradients(module, batch, noise, 0.7)
    # Just below the median norm: some patients are clipped and some are not.
    bound = 0.9 * float(torch.linalg.vector_norm(reference, dim=1).median())
    clipped = build_engine(engine).clipped_sum(
        module, batch, latent_noise=noise, kl_weight=0.7, max_grad_norm=bound
    )
    expected = reference_sum(reference, bound)
    error = torch.linalg.vector_norm(flatten(clipped.sum) - expected) / torch.linalg.vector_norm(expected)
    assert float(error) <= 1e-12
    assert clipped.num_clipped == int((torch.linalg.vector_norm(reference, dim=1) > bound).sum())
    assert clipped.num_nonfinite == 0
    losses = module(batch.values, batch.covariates, noise, 0.7).detach()
    means = [float(losses[batch.patient == patient].mean()) for patient in range(batch.num_patients)]
    assert clipped.loss_sum == pytest.approx(sum(means), rel=1e-12)


@engines
def test_sum_has_the_names_shapes_and_order_of_the_trainable_parameters(engine: GradEngine):
    module, batch = make_module("image").train(), batch_of("image", RAGGED)
    module.posterior.requires_grad_(False)
    clipped = build_engine(engine).clipped_sum(
        module, batch, latent_noise=latent_of(batch), kl_weight=1.0, max_grad_norm=1.0
    )
    expected = [(name, p.shape) for name, p in module.named_parameters() if p.requires_grad]
    assert [(name, tensor.shape) for name, tensor in clipped.sum.items()] == expected
    assert all(tensor.dtype == torch.float64 and not tensor.requires_grad for tensor in clipped.sum.values())
    assert not any(name.startswith("posterior") for name in clipped.sum)


@engines
def test_frozen_parameters_do_not_count_into_the_norm(engine: GradEngine):
    module, batch = make_module("table").double().train(), batch_of("table", RAGGED)
    module.encoder.requires_grad_(False)
    noise = latent_of(batch)
    expected = reference_sum(reference_gradients(module, batch, noise, 1.0), 0.1)
    clipped = build_engine(engine).clipped_sum(
        module, batch, latent_noise=noise, kl_weight=1.0, max_grad_norm=0.1
    )
    torch.testing.assert_close(flatten(clipped.sum), expected, rtol=1e-12, atol=1e-14)


@engines
def test_worked_example_patient_of_five_scans_counts_once(engine: GradEngine):
    # Patient 0 has five records with gradient (30, 40): mean (30, 40), norm 50, clipped to 1 -> (0.6, 0.8), once.
    # Patient 1 has one record (0.3, 0.4): norm 0.5, kept. Sum (0.9, 1.2).
    batch = raw_batch([[30.0, 40.0]] * 5 + [[0.3, 0.4]], [0] * 5 + [1])
    clipped = build_engine(engine).clipped_sum(
        RawGradient(2).double().train(),
        batch,
        latent_noise=latent_of(batch),
        kl_weight=0.0,
        max_grad_norm=1.0,
    )
    torch.testing.assert_close(flatten(clipped.sum), torch.tensor([0.9, 1.2], dtype=torch.float64))
    assert clipped.num_clipped == 1


@engines
def test_patient_gradient_is_the_mean_over_records_not_the_sum(engine: GradEngine):
    # Records (1, 0) and (0, 1): mean (0.5, 0.5), below C = 10, so nothing is clipped; a sum would be (1, 1).
    batch = raw_batch([[1.0, 0.0], [0.0, 1.0]], [0, 0])
    clipped = build_engine(engine).clipped_sum(
        RawGradient(2).double().train(),
        batch,
        latent_noise=latent_of(batch),
        kl_weight=0.0,
        max_grad_norm=10.0,
    )
    torch.testing.assert_close(flatten(clipped.sum), torch.tensor([0.5, 0.5], dtype=torch.float64))


@engines
def test_duplicating_all_records_of_a_patient_changes_nothing(engine: GradEngine):
    once = raw_batch([[3.0, 1.0], [0.1, 0.2]], [0, 1])
    twice = raw_batch([[3.0, 1.0]] * 4 + [[0.1, 0.2]] * 2, [0, 0, 0, 0, 1, 1])
    module = RawGradient(2).double().train()
    sums = [
        flatten(
            build_engine(engine)
            .clipped_sum(module, batch, latent_noise=latent_of(batch), kl_weight=0.0, max_grad_norm=1.0)
            .sum
        )
        for batch in (once, twice)
    ]
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-12, atol=0.0)


@engines
@pytest.mark.parametrize("name", list(SHAPES))
def test_swapping_one_patient_changes_exactly_their_contribution(engine: GradEngine, name: str):
    module, noise_seed = make_module(name).double().train(), 3
    one, other = batch_of(name, UNIFORM, seed=1), batch_of(name, UNIFORM, seed=2)
    swapped_rows = one.patient == 2
    swapped = Batch(
        values=torch.where(swapped_rows.view(-1, *[1] * (one.values.ndim - 1)), other.values, one.values),
        covariates=torch.where(swapped_rows[:, None], other.covariates, one.covariates),
        patient=one.patient,
        num_patients=one.num_patients,
    )
    noise = latent_of(one, noise_seed)

    def contributions(batch: Batch) -> torch.Tensor:
        """Return [P, parameters]: what each patient adds, computed inside the full batch."""
        rows = []
        for patient in range(batch.num_patients):
            # Every other patient's values become NaN, hence contribute zero: what is left is this patient's share.
            own = (batch.patient == patient).view(-1, *[1] * (batch.values.ndim - 1))
            alone = Batch(
                values=torch.where(own, batch.values, torch.nan),
                covariates=batch.covariates,
                patient=batch.patient,
                num_patients=batch.num_patients,
            )
            clipped = build_engine(engine).clipped_sum(
                module, alone, latent_noise=noise, kl_weight=1.0, max_grad_norm=1.0
            )
            assert clipped.num_nonfinite == batch.num_patients - 1
            rows.append(flatten(clipped.sum))
        return torch.stack(rows)

    before, after = contributions(one), contributions(swapped)
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [False, False, True, False]
    total = flatten(
        build_engine(engine)
        .clipped_sum(module, one, latent_noise=noise, kl_weight=1.0, max_grad_norm=1.0)
        .sum
    )
    torch.testing.assert_close(total, before.sum(0), rtol=1e-10, atol=1e-12)


@engines
@pytest.mark.parametrize("max_rows", [1, 2, 3, 5, 7, 12, 100])
def test_physical_batches_do_not_change_the_sum(engine: GradEngine, max_rows: int):
    module, batch = make_module("image").double().train(), batch_of("image", RAGGED)
    noise = latent_of(batch)
    sums = [
        build_engine(engine, max_rows=rows).clipped_sum(
            module, batch, latent_noise=noise, kl_weight=1.0, max_grad_norm=2.0
        )
        for rows in (256, max_rows)
    ]
    torch.testing.assert_close(flatten(sums[0].sum), flatten(sums[1].sum), rtol=1e-12, atol=1e-13)
    assert sums[0].num_clipped == sums[1].num_clipped
    assert sums[0].loss_sum == pytest.approx(sums[1].loss_sum, rel=1e-12)


@pytest.mark.parametrize("max_rows", [1, 2, 4, 6, 12])
def test_chunks_hold_whole_patients_and_respect_the_cap(max_rows: int):
    batch = batch_of("table", RAGGED)
    chunks = list(patient_chunks(batch, latent_of(batch), max_rows, like=torch.zeros(1)))
    assert sum(chunk.num_patients for chunk in chunks) == len(RAGGED)
    assert torch.equal(torch.cat([chunk.values for chunk in chunks]), batch.values.float())
    for chunk in chunks:
        assert chunk.num_records <= max_rows or chunk.num_patients == 1
        assert chunk.patient[0] == 0
        assert chunk.patient[-1] == chunk.num_patients - 1
        torch.testing.assert_close(chunk.per_patient(chunk.weight), torch.ones(chunk.num_patients))


@engines
def test_an_empty_batch_never_reaches_the_module(engine: GradEngine):
    class Touchy(RawGradient):
        def forward(self, *arguments: object) -> torch.Tensor:
            raise RuntimeError("was called")

    empty = make_cohort((2,), (1, 1)).batch([])
    clipped = build_engine(engine).clipped_sum(
        Touchy(2).train(), empty, latent_noise=torch.zeros(0, 3), kl_weight=1.0, max_grad_norm=1.0
    )
    assert torch.equal(flatten(clipped.sum), torch.zeros(2, dtype=torch.float64))
    assert (clipped.num_clipped, clipped.num_nonfinite, clipped.loss_sum) == (0, 0, 0.0)


@engines
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_nonfinite_patient_contributes_zero_and_changes_nobody(engine: GradEngine, bad: float):
    good = [[0.3, 0.4], [3.0, 4.0]]
    batch = raw_batch([good[0], [bad, 1.0], [2.0, 2.0], good[1]], [0, 1, 1, 2])
    without = raw_batch(good, [0, 1])
    module = RawGradient(2).double().train()
    sums = [
        build_engine(engine).clipped_sum(
            module, b, latent_noise=latent_of(b), kl_weight=0.0, max_grad_norm=1.0
        )
        for b in (batch, without)
    ]
    assert torch.equal(flatten(sums[0].sum), flatten(sums[1].sum))
    assert (sums[0].num_nonfinite, sums[1].num_nonfinite) == (1, 0)
    assert sums[0].loss_sum == pytest.approx(sums[1].loss_sum)


@engines
def test_the_batch_is_computed_in_the_type_of_the_module(engine: GradEngine):
    module, batch = (
        make_module("table").train(),
        batch_of("table", RAGGED),
    )  # float32 weights, float64 records
    noise = latent_of(batch)
    expected = reference_sum(reference_gradients(module, batch, noise, 1.0), 1.0)
    clipped = build_engine(engine).clipped_sum(
        module, batch, latent_noise=noise, kl_weight=1.0, max_grad_norm=1.0
    )
    torch.testing.assert_close(flatten(clipped.sum), expected, rtol=1e-5, atol=1e-6)


@engines
def test_module_gradients_buffers_hooks_and_generator_are_left_as_found(engine: GradEngine):
    module, batch = make_module("image").train(), batch_of("image", RAGGED)
    module.register_buffer("constant", torch.ones(2))
    module.posterior.weight.grad = torch.full_like(module.posterior.weight, 7.0)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    attributes = {name: set(vars(part)) for name, part in module.named_modules()}
    on_parameters = {name: set(vars(parameter)) for name, parameter in module.named_parameters()}
    state = torch.get_rng_state()
    build_engine(engine).clipped_sum(
        module, batch, latent_noise=latent_of(batch), kl_weight=1.0, max_grad_norm=1.0
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(not part._forward_hooks and not part._backward_hooks for part in module.modules())
    assert {name: set(vars(part)) for name, part in module.named_modules()} == attributes
    assert {name: set(vars(parameter)) for name, parameter in module.named_parameters()} == on_parameters
    assert torch.equal(module.posterior.weight.grad, torch.full_like(module.posterior.weight, 7.0))
    assert module.encoder[0].weight.grad is None


@engines
def test_unused_parameters_get_zero(engine: GradEngine):
    class Spare(TableVae):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(2, 2)

    batch = batch_of("table", RAGGED)
    clipped = build_engine(engine).clipped_sum(
        Spare().train(), batch, latent_noise=latent_of(batch), kl_weight=1.0, max_grad_norm=1.0
    )
    assert not clipped.sum["spare.weight"].any()
    assert clipped.sum["encoder.0.weight"].any()


@engines
def test_repeated_calls_give_equal_bits(engine: GradEngine):
    module, batch = make_module("image").train(), batch_of("image", RAGGED)
    noise = latent_of(batch)
    sums = [
        flatten(
            build_engine(engine)
            .clipped_sum(copy.deepcopy(module), batch, latent_noise=noise, kl_weight=1.0, max_grad_norm=1.0)
            .sum
        )
        for _ in range(2)
    ]
    assert torch.equal(sums[0], sums[1])


def test_vmap_computes_a_parameter_of_the_module_itself():
    class Scaled(TableVae):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros(()))

        def forward(self, *arguments: object) -> torch.Tensor:
            return super().forward(*arguments) * torch.exp(-self.log_scale) + self.log_scale

    module, batch = Scaled().double(), batch_of("table", RAGGED)
    noise = latent_of(batch)
    expected = reference_sum(reference_gradients(module, batch, noise, 1.0), 1.0)
    clipped = VmapEngine().clipped_sum(module, batch, latent_noise=noise, kl_weight=1.0, max_grad_norm=1.0)
    torch.testing.assert_close(flatten(clipped.sum), expected, rtol=1e-12, atol=1e-14)
    assert clipped.sum["log_scale"].shape == ()


def test_sums_equal_those_of_opacus_optimiser():
    """Opacus' own DPOptimizer, noise off, one record a patient: the same sum up to its 1e-6 in the clip factor."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    module, batch = make_module("image").double().train(), batch_of("image", (1,) * 6)
    noise, bound = latent_of(batch), 5.0
    sums = {
        engine: flatten(
            build_engine(engine)
            .clipped_sum(module, batch, latent_noise=noise, kl_weight=1.0, max_grad_norm=bound)
            .sum
        )
        for engine in ENGINES
    }
    wrapped = GradSampleModule(copy.deepcopy(module), loss_reduction="sum")
    optimiser = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=bound,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    values = batch.values.clone().requires_grad_()  # or torch warns about the first layer's hook
    wrapped(values, batch.covariates, noise, 1.0).sum().backward()
    optimiser.pre_step()
    theirs = torch.cat([parameter.grad.flatten() for parameter in wrapped.parameters()])
    for ours in sums.values():
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)
    wrapped.remove_hooks()


@engines
def test_a_module_without_trainable_parameters_is_refused(engine: GradEngine):
    module = RawGradient(2).requires_grad_(False).train()
    batch = raw_batch([[1.0, 2.0]], [0])
    with pytest.raises(ValueError, match="no trainable parameters"):
        build_engine(engine).clipped_sum(
            module, batch, latent_noise=latent_of(batch), kl_weight=1.0, max_grad_norm=1.0
        )


def test_opacus_refuses_eval_mode_because_its_hooks_would_see_nothing():
    batch = raw_batch([[1.0, 2.0]], [0])
    with pytest.raises(RuntimeError, match="train mode"):
        OpacusEngine().clipped_sum(
            RawGradient(2).eval(), batch, latent_noise=latent_of(batch), kl_weight=1.0, max_grad_norm=1.0
        )


def test_opacus_refuses_a_partly_frozen_mode_rather_than_return_zero():
    module, batch = make_module("table").train(), batch_of("table", RAGGED)
    module.decoder.eval()
    with pytest.raises(RuntimeError, match="train mode"):
        OpacusEngine().clipped_sum(
            module, batch, latent_noise=latent_of(batch), kl_weight=1.0, max_grad_norm=1.0
        )


def test_opacus_refuses_a_weight_that_its_hooks_do_not_see_rather_than_return_zero():
    class Functional(RawGradient):
        def forward(self, values: torch.Tensor, *arguments: object) -> torch.Tensor:
            return nn.functional.linear(values, self.layer.weight)[:, 0]

    batch, module = raw_batch([[1.0, 2.0]], [0]), Functional(2).train()
    with pytest.raises(RuntimeError, match=r"layer\.weight; use the vmap engine"):
        OpacusEngine().clipped_sum(
            module, batch, latent_noise=latent_of(batch), kl_weight=1.0, max_grad_norm=1.0
        )
    assert module.layer.weight.grad is None
    assert not hasattr(module.layer.weight, "grad_sample")


@engines
@pytest.mark.parametrize(
    ("patient", "num_patients", "message"),
    [
        ([1, 0, 0], 2, "must ascend"),
        ([0, 0, 2], 3, "at least one row"),
        ([0, 0, 1], 3, "at least one row"),
        ([0, 1, 2], 2, "must ascend"),
        ([0, 1], 2, "equally many rows"),
    ],
)
def test_a_batch_that_breaks_its_grouping_is_refused(
    engine: GradEngine, patient: list[int], num_patients: int, message: str
):
    batch = Batch(
        values=torch.ones(3, 2),
        covariates=torch.zeros(3, 0),
        patient=torch.tensor(patient),
        num_patients=num_patients,
    )
    with pytest.raises(ValueError, match=message):
        build_engine(engine).clipped_sum(
            RawGradient(2).train(), batch, latent_noise=torch.zeros(3, 3), kl_weight=1.0, max_grad_norm=1.0
        )


def test_a_cap_below_one_row_is_refused():
    with pytest.raises(ValueError, match="max_rows must be >= 1, got 0"):
        build_engine("vmap", max_rows=0)


def test_private_facts_do_not_show_in_the_representation():
    batch = raw_batch([[1.0, 2.0]], [0])
    clipped = VmapEngine().clipped_sum(
        RawGradient(2), batch, latent_noise=latent_of(batch), kl_weight=1.0, max_grad_norm=1.0
    )
    assert repr(clipped) == "ClippedSum()"


def test_dropout_is_refused_by_vmap_because_it_draws_from_the_global_generator():
    module = ImageVae(norm=nn.Dropout(0.5)).train()
    batch = batch_of("image", UNIFORM)
    with pytest.raises(RuntimeError, match="random"):
        VmapEngine().clipped_sum(
            module, batch, latent_noise=latent_of(batch), kl_weight=1.0, max_grad_norm=1.0
        )
