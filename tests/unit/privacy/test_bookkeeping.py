"""The bookkeeping engine: shipped models, repeated and unknown modules, what it refuses, and weights made to cancel.

What every engine has to do is in `test_clipping.py`; single layers are in `tests/property/test_bookkeeping_layers.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from privacy import bookkeeping, norms
from privacy.bookkeeping import BookkeepingEngine, choose_method, group_by_count
from privacy.clipping import build_engine, patient_chunks
from privacy.convolutions import ConvolutionProduct, Geometry
from privacy.errors import IncompatibleModelError
from privacy.norms import METHODS, Method, contribution, measure
from privacy.products import LinearProduct, Run
from tests.support.layer_toys import LayerLoss, batch_of, clip, distance, gradients_of, median_norm, seeded
from tests.support.private_toys import (
    LATENT,
    SHAPES,
    RawGradient,
    TableVae,
    flatten,
    latent_of,
    make_module,
    raw_batch,
)
from vae.data.cohort import Batch
from vae.models import build
from vae.spec import Family, ModelSpec, Upsampling

RAGGED = (1, 3, 1, 2, 1, 5)
KEEPING = ("loop", "vmap", "columns")

methods = pytest.mark.parametrize("method", METHODS)


def records_of(spec: ModelSpec) -> tuple[int, ...]:
    """Return fewer records of volumes, whose forced Gram matrices are large."""
    return RAGGED if len(spec.input_shape) < 4 else (1, 2, 1)


def spec_of(family: Family, shape: tuple[int, ...], upsampling: Upsampling = "interpolate") -> ModelSpec:
    return ModelSpec(
        family=family,
        input_shape=shape,
        latent_size=LATENT,
        channels=(8, 12),
        num_covariates=2 if family == "cvae" else 0,
        beta=2.0 if family == "beta-vae" else 1.0,
        decoder_scale="learned",
        upsampling=upsampling,
    )


SHIPPED = [
    spec_of(family, shape, upsampling)
    for family in ("vae", "beta-vae", "cvae")
    for shape, upsamplings in (((7,), ("interpolate",)), ((1, 16, 12), ("interpolate", "transpose")))
    for upsampling in upsamplings
] + [spec_of("cvae", (2, 8, 12, 9), "interpolate"), spec_of("vae", (2, 8, 12, 9), "transpose")]

shipped = pytest.mark.parametrize(
    "spec", SHIPPED, ids=[f"{s.family}-{'x'.join(map(str, s.input_shape))}-{s.upsampling}" for s in SHIPPED]
)


@shipped
@pytest.mark.parametrize("method", [None, *METHODS])
def test_shipped_models_equal_a_loop_over_patients(spec: ModelSpec, method: Method | None):
    module, batch = build(spec, seed=1).double().train(), batch_of(spec.input_shape, records_of(spec))
    gradients, engine = gradients_of(module, batch), BookkeepingEngine(method=method)
    bound = median_norm(gradients)
    assert distance(clip(engine, module, batch, 1e9), gradients, 1e9) <= 1e-12
    kept = method is None or method in KEEPING
    assert distance(clip(engine, module, batch, bound), gradients, bound) <= (1e-12 if kept else 1e-8)


@shipped
def test_shipped_models_in_float32_equal_the_loop_and_opacus(spec: ModelSpec):
    module, batch = build(spec, seed=1).train(), batch_of(spec.input_shape, records_of(spec))
    gradients = gradients_of(build(spec, seed=1).double(), batch)
    bound = median_norm(gradients)
    ours = clip(BookkeepingEngine(), module, batch, bound)
    assert distance(ours, gradients, bound) <= 1e-5
    theirs = build_engine("opacus").clipped_sum(
        module, batch, latent_noise=latent_of(batch), kl_weight=0.7, max_grad_norm=bound
    )
    error = torch.linalg.vector_norm(flatten(ours.sum) - flatten(theirs.sum))
    assert float(error / torch.linalg.vector_norm(flatten(theirs.sum))) <= 1e-5
    assert ours.num_clipped == theirs.num_clipped
    assert ours.loss_sum == pytest.approx(theirs.loss_sum, rel=1e-5)


@methods
@pytest.mark.parametrize("name", list(SHAPES))
def test_every_method_counts_and_sums_the_losses_alike(method: Method, name: str):
    module, batch = make_module(name).double().train(), batch_of(SHAPES[name], RAGGED)
    bound = median_norm(gradients_of(module, batch))
    facts = [
        (clipped.num_clipped, clipped.num_nonfinite, pytest.approx(clipped.loss_sum))
        for clipped in (
            clip(BookkeepingEngine(method=each), module, batch, bound) for each in ("loop", method)
        )
    ]
    assert facts[0] == facts[1]


@methods
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nonfinite_patient_contributes_zero_and_changes_nobody(
    method: Method, dtype: torch.dtype, bad: float
):
    module, engine = make_module("image").to(dtype).train(), BookkeepingEngine(method=method)
    batch = batch_of(SHAPES["image"], (2, 2, 2))
    own = (batch.patient == 1)[:, None, None, None]

    def with_second(values: Tensor) -> Batch:
        return Batch(
            values=torch.where(own, values, batch.values),
            covariates=batch.covariates,
            patient=batch.patient,
            num_patients=3,
        )

    one_pixel = torch.zeros_like(batch.values)
    one_pixel[:, :, 3, 3] = bad
    sums = [
        clip(engine, module, with_second(values), 1.0)
        for values in (one_pixel, torch.full_like(one_pixel, bad))
    ]
    assert [each.num_nonfinite for each in sums] == [1, 1]
    assert torch.equal(flatten(sums[0].sum), flatten(sums[1].sum))
    gradients = gradients_of(module, batch)
    gradients[1] = torch.nan
    assert distance(sums[0], gradients, 1.0) <= 1e-3


class Twice(nn.Module):
    """One layer used three times, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.folded = nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, values: Tensor, covariates: Tensor, latent_noise: Tensor, kl_weight: float) -> Tensor:
        hidden = self.again(torch.tanh(self.again(self.again(values))))
        hidden = self.second(torch.tanh(self.first(hidden)))
        folded = hidden.reshape(-1, 2, 3)
        return self.folded(torch.tanh(self.folded(folded))).square().flatten(1).sum(1)


@methods
def test_all_uses_of_a_parameter_are_added_before_the_norm(method: Method):
    module, batch = seeded(Twice), batch_of((6,), RAGGED)
    gradients = gradients_of(module, batch)
    assert "second.weight" not in dict(module.named_parameters())
    for bound in (1e9, median_norm(gradients)):
        assert (
            distance(clip(BookkeepingEngine(method=method), module, batch, bound), gradients, bound) <= 1e-12
        )


def test_this_suite_would_notice_norms_added_use_by_use(monkeypatch: pytest.MonkeyPatch):
    # The norm of a sum is not the norm of its parts: clip by the latter, and the sums differ.
    def by_use(name: str, gradients: Tensor) -> norms.Part:
        return norms.Part(name=name, squared=0.5 * norms.squared_row_norms(gradients), kept=gradients)

    module, batch = seeded(Twice), batch_of((6,), RAGGED)
    gradients = gradients_of(module, batch)
    bound = median_norm(gradients)
    monkeypatch.setattr(bookkeeping, "keep", by_use)
    assert distance(clip(BookkeepingEngine(), module, batch, bound), gradients, bound) > 1e-3


class Gate(nn.Module):
    """Parameters of its own, in a list too, and a layer inside."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))
        self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(6)) for _ in range(2)])
        self.inner = nn.Linear(6, 6)

    def forward(self, values: Tensor, other: Tensor, *, power: int) -> tuple[Tensor, Tensor]:
        return self.inner(values * self.scale + self.shifts[0]) ** power, other + self.shifts[1]


class Unknown(nn.Module):
    """A module that the engine does not know between layers that it knows; one layer inside is used outside too."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.gate, self.after = nn.Linear(6, 6), Gate(), nn.Linear(6, 2)

    def forward(self, values: Tensor, covariates: Tensor, latent_noise: Tensor, kl_weight: float) -> Tensor:
        hidden, other = self.gate(torch.tanh(self.before(values)), other=values, power=2)
        hidden, other = self.gate(hidden, other=other, power=1)
        return self.after(torch.tanh(hidden) + other).square().sum(1)


class Scaled(TableVae):
    """A parameter of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, *arguments: object) -> Tensor:
        return super().forward(*arguments) * torch.exp(-self.log_scale) + self.log_scale


def normalised() -> nn.Module:
    return LayerLoss(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)))


def attention() -> nn.Module:
    return LayerLoss(
        Attention(),
        lambda values: values.reshape(-1, 3, 2),
    )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(2, 1, batch_first=True)

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = self.attend(values, values, values, need_weights=False)[0]
        return out


class Mirrored(nn.Linear):
    """A subclass computes something else, and is not taken for its base."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values.flip(-1)) - super().forward(values)


# torch says so of operations for which vmap is a loop.
slow_vmap = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@slow_vmap
@pytest.mark.parametrize(
    "make",
    [Unknown, Scaled, normalised, lambda: LayerLoss(Mirrored(6, 3))],
    ids=["own parameters", "of the model", "parametrised", "subclass"],
)
def test_unknown_modules_equal_a_loop_over_patients(make: Callable[[], nn.Module]):
    module, batch = seeded(make), batch_of((6,), RAGGED)
    gradients = gradients_of(module, batch)
    for bound in (1e9, median_norm(gradients)):
        assert distance(clip(BookkeepingEngine(), module, batch, bound), gradients, bound) <= 1e-12


@slow_vmap
def test_attention_equals_a_loop_over_patients():
    module, batch = seeded(attention), batch_of((6,), RAGGED)
    gradients = gradients_of(module, batch)
    for bound in (1e9, median_norm(gradients)):
        assert distance(clip(BookkeepingEngine(), module, batch, bound), gradients, bound) <= 1e-12


def test_a_module_inside_an_unknown_one_and_outside_of_it():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.gate = nn.Linear(6, 6), Gate()
            self.gate.inner = self.inner

        def forward(self, values: Tensor, *rest: object) -> Tensor:
            hidden, other = self.gate(torch.tanh(self.inner(values)), values, power=1)
            return (hidden + other).square().sum(1)

    module, batch = seeded(Both), batch_of((6,), RAGGED)
    gradients = gradients_of(module, batch)
    for bound in (1e9, median_norm(gradients)):
        assert distance(clip(BookkeepingEngine(), module, batch, bound), gradients, bound) <= 1e-12


def test_parts_that_are_frozen_or_not_on_the_tape():
    class Partly(TableVae):
        def forward(self, *arguments: object) -> Tensor:
            with torch.no_grad():
                constant = self.decoder(torch.ones(arguments[0].shape[0], 5, dtype=torch.float64)).sum(1)
            return super().forward(*arguments) * (1 + constant)

    module, batch = seeded(Partly), batch_of((6,), RAGGED)
    module.encoder[0].weight.requires_grad_(False)
    module.decoder[2].requires_grad_(False)
    gradients = gradients_of(module, batch)
    assert distance(clip(BookkeepingEngine(), module, batch, 1.0), gradients, 1.0) <= 1e-12


def test_in_place_operations_on_what_a_layer_returns_are_fine():
    class InPlace(TableVae):
        def forward(self, values: Tensor, *rest: object) -> Tensor:
            hidden = self.encoder[0](torch.cat([values, rest[0]], 1))
            hidden.add_(1.0).relu_()
            return self.encoder[2](hidden).square().sum(1)

    module, batch = seeded(InPlace), batch_of((6,), RAGGED)
    gradients = gradients_of(module, batch)
    assert distance(clip(BookkeepingEngine(), module, batch, 1.0), gradients, 1.0) <= 1e-12


def test_works_where_gradients_are_switched_off_and_for_a_loss_of_no_parameter():
    module, batch = seeded(TableVae), batch_of((6,), RAGGED)
    with torch.no_grad():
        quiet = clip(BookkeepingEngine(), module, batch, 1.0)
    assert torch.equal(flatten(quiet.sum), flatten(clip(BookkeepingEngine(), module, batch, 1.0).sum))

    class Constant(TableVae):
        def forward(self, values: Tensor, *rest: object) -> Tensor:
            return values.square().sum(1)

    nothing = clip(BookkeepingEngine(), seeded(Constant), batch, 1.0)
    assert not flatten(nothing.sum).any()
    assert (nothing.num_clipped, nothing.num_nonfinite) == (0, 0)
    assert nothing.loss_sum > 0


class Bare(TableVae):
    def forward(self, *arguments: object) -> Tensor:
        return super().forward(*arguments) + arguments[0] @ self.encoder[0].weight[0, :6]


class Transposed(TableVae):
    def forward(self, values: Tensor, *rest: object) -> Tensor:
        return self.decoder[2](values.T.reshape(-1, 8)).sum() + values.sum(1)


class Overwritten(TableVae):
    def forward(self, values: Tensor, *rest: object) -> Tensor:
        hidden = torch.cat([values, rest[0]], 1)
        losses = self.encoder[0](hidden).square().sum(1)
        hidden.mul_(2.0)
        return losses


class Hooked(LayerLoss):
    def __init__(self) -> None:
        super().__init__(Gate())
        self.layer.register_forward_pre_hook(lambda *_: None)


class Swapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def forward(self, values: Tensor, *rest: object) -> Tensor:
        return self.gate(values.T.reshape(6, -1)[:, :6], values.T[:, :6], power=1)[0].sum() + values.sum(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(2, 2, batch_first=True)

    def forward(self, values: Tensor, *rest: object) -> Tensor:
        return self.cell(values.reshape(-1, 3, 2))[0].flatten(1).sum(1)


def limited(**settings: object) -> nn.Module:
    return LayerLoss(nn.Embedding(5, 3, **settings), lambda values: values.abs().long() % 5)


@pytest.mark.parametrize(
    ("make", "fragments"),
    [
        (Bare, ["encoder.0.weight is used outside of the module that owns it", "use grad_engine vmap"]),
        (Transposed, ["decoder.2 (Linear) is given a tensor whose first axis does not count records"]),
        (Overwritten, ["encoder.0: its input is changed in place"]),
        (Hooked, ["layer (Gate) has hooks"]),
        (Swapped, ["gate (Gate) is given a tensor whose first axis does not count records"]),
        (Recurrent, ["cell (GRU) cannot be computed record by record"]),
        (lambda: limited(max_norm=1.0), ["layer (Embedding) sets max_norm"]),
        (lambda: limited(sparse=True), ["layer (Embedding) sets max_norm, sparse"]),
        (lambda: limited(scale_grad_by_freq=True), ["scale_grad_by_freq"]),
        (lambda: LayerLoss(nn.Linear(6, 6), lambda values: values[0]), ["layer (Linear) is given a tensor"]),
    ],
    ids=lambda value: getattr(value, "__name__", "") if callable(value) else "",
)
def test_what_cannot_be_clipped_is_refused_by_name_and_the_module_is_left_as_found(
    make: Callable[[], nn.Module], fragments: list[str]
):
    module, batch = seeded(make), batch_of((6,), (1, 3, 1, 2, 1))
    attributes = {name: set(vars(part)) for name, part in module.named_modules()}
    with pytest.raises(IncompatibleModelError) as caught:
        clip(BookkeepingEngine(), module, batch, 1.0)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert {name: set(vars(part)) for name, part in module.named_modules()} == attributes
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_module_is_left_as_found_after_an_exception_of_its_own():
    class Breaks(TableVae):
        def forward(self, values: Tensor, *rest: object) -> Tensor:
            self.encoder(torch.cat([values, rest[0]], 1))
            raise KeyError("broken")

    module, batch = seeded(Breaks), batch_of((6,), RAGGED)
    own = nn.Linear.forward.__get__(module.encoder[0])
    module.encoder[0].forward = own  # somebody else's patch stays, too
    with pytest.raises(KeyError, match="broken"):
        clip(BookkeepingEngine(), module, batch, 1.0)
    assert module.encoder[0].forward is own
    assert all("forward" not in vars(part) for part in module.modules() if part is not module.encoder[0])


# Weights made to cancel: a patient's records are x and -x, many times over and out of order, so that their sum
# is exactly zero, and what float32 kernels return is rounding of terms of size 1e8.


def cancelling(features: int = 256, pairs: int = 128) -> Batch:
    generator = torch.Generator().manual_seed(0)
    half = 1e8 * torch.randn(pairs, features, generator=generator)
    rows = torch.cat([half, -half])[torch.randperm(2 * pairs, generator=generator)]
    return raw_batch(rows.tolist(), [0] * (2 * pairs), torch.float32)


def contribution_of(method: Method | None, batch: Batch) -> float:
    """Return the norm of what one patient contributes, C = 1."""
    module = RawGradient(batch.values.shape[1]).train()
    clipped = BookkeepingEngine(method=method).clipped_sum(
        module, batch, latent_noise=latent_of(batch), kl_weight=0.0, max_grad_norm=1.0
    )
    return float(torch.linalg.vector_norm(flatten(clipped.sum)))


@pytest.mark.parametrize("method", [None, *METHODS])
def test_terms_that_cancel_do_not_lengthen_a_contribution(method: Method | None):
    assert contribution_of(method, cancelling()) <= 1 + 1e-12


def test_the_bound_alone_holds_too_and_costs_the_signal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bookkeeping, "_with_signal", lambda parts, *_: parts)
    for method in ("gram", "loop-recompute", "columns-recompute"):
        assert contribution_of(method, cancelling()) <= 1e-2


def test_without_the_bound_the_clip_would_fail(monkeypatch: pytest.MonkeyPatch):
    # The exact gradient is zero, and Gram matrices in float64 know: norm about 0, no clip. The weighted kernel's
    # rounding is added as it is.
    monkeypatch.setattr(norms, "unit_roundoff", lambda _: 0.0)
    monkeypatch.setattr(norms, "_gram_error", lambda product, runs, like: torch.zeros_like(like))
    assert contribution_of("gram", cancelling()) > 1.5


def test_bounds_that_would_take_the_place_of_signal_are_replaced_by_what_is_kept(
    monkeypatch: pytest.MonkeyPatch,
):
    seen: list[str] = []
    measured = bookkeeping.measure

    def spy(name: str, product: object, runs: object, method: Method) -> norms.Part:
        seen.append(method)
        return measured(name, product, runs, method)  # type: ignore[arg-type]

    monkeypatch.setattr(bookkeeping, "measure", spy)
    contribution_of("gram", cancelling())
    assert seen == ["gram", "loop"]
    seen.clear()
    contribution_of("gram", raw_batch(torch.randn(8, 4).tolist(), [0, 0, 1, 1, 2, 3, 4, 5], torch.float32))
    assert seen == ["gram"]


@pytest.mark.parametrize("entry", [3e38, 1e-40])
@pytest.mark.parametrize("method", ["gram", "loop-recompute"])
def test_extreme_values_are_kept_so_that_no_factor_underflows(method: Method, entry: float):
    # Norm 2 |entry|: beyond float32 for the first, far below C for the second.
    batch = raw_batch([[entry] * 4], [0], torch.float32)
    clipped = BookkeepingEngine(method=method).clipped_sum(
        RawGradient(4).train(), batch, latent_noise=latent_of(batch), kl_weight=0.0, max_grad_norm=1.0
    )
    expected = torch.full((4,), 0.5 if entry > 1 else entry, dtype=torch.float64)
    torch.testing.assert_close(flatten(clipped.sum), expected, rtol=1e-5, atol=0.0)


def product_of(rows: int = 6, dtype: torch.dtype = torch.float32, channels: int = 16) -> ConvolutionProduct:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, g = torch.randn(rows, channels, 4, 5), torch.randn(rows, 16, 4, 5)
    way = Geometry(
        stride=(1, 1), padding=(1, 1), dilation=(1, 1), transposed=False, output_padding=(0, 0), groups=1
    )
    return ConvolutionProduct(
        x=x.to(dtype),
        gradient_of_output=g.to(dtype),
        weight=torch.zeros(16, channels, 3, 3, dtype=dtype),
        geometry=way,
    )


RUNS = (Run(start=0, patients=2, records=1), Run(start=2, patients=2, records=2))


@methods
def test_bounds_lie_above_the_norm_and_close_to_it(method: Method):
    exact = measure("w", product_of(dtype=torch.float64), RUNS, "loop").squared.sqrt()
    part = measure("w", product_of(), RUNS, method)
    found = part.squared.sqrt()
    if part.bound is None:
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=0.0)
    else:
        assert (found >= exact).all()
        torch.testing.assert_close(found, exact, rtol=2e-3, atol=0.0)


@methods
def test_the_weighted_sum_is_that_of_the_gradients(method: Method):
    factors = torch.tensor([0.5, 1.0, 0.0, 0.25], dtype=torch.float64)
    part = measure("w", product_of(dtype=torch.float64), RUNS, method)
    expected = torch.einsum(
        "p,p...->...", factors, norms.gradients_of(product_of(dtype=torch.float64), RUNS, "loop")
    )
    torch.testing.assert_close(contribution(part, RUNS, factors, None), expected, rtol=1e-12, atol=1e-12)
    counted = torch.tensor([True, True, False, True])
    torch.testing.assert_close(contribution(part, RUNS, factors, counted), expected, rtol=1e-12, atol=1e-12)


def test_a_choice_is_timed_once_and_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bookkeeping, "_choices", {})
    monkeypatch.setattr(bookkeeping, "_SMALL_WORK", 0)
    tried: list[str] = []

    def spy(product: object, runs: object, method: Method) -> None:
        tried.append(method)

    monkeypatch.setattr(bookkeeping, "_trial", spy)
    chosen = {choose_method(product_of(dtype=torch.float64), RUNS, max_bytes=2**20) for _ in range(3)}
    assert len(chosen) == 1
    assert {method: tried.count(method) for method in set(tried)} == dict.fromkeys(METHODS, 3)
    choose_method(product_of(dtype=torch.float64, channels=15), RUNS, max_bytes=2**20)
    assert len(tried) == 6 * len(METHODS)


def test_small_weights_are_never_timed_and_large_ones_not_beyond_the_cap(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bookkeeping, "_choices", {})
    assert choose_method(product_of(), RUNS, max_bytes=2**20) == "vmap"
    assert bookkeeping._choices == {}
    rows = 512
    wide = LinearProduct(x=torch.ones(rows, 1, 300), gradient_of_output=torch.ones(rows, 1, 300))
    runs = (Run(start=0, patients=rows, records=1),)
    # 512 x 300 x 300 floats are 184 MB.
    assert set(bookkeeping._candidates(wide, runs, 2**28)) == set(METHODS) - {"columns"}
    assert set(bookkeeping._candidates(wide, runs, 2**27)) == {"gram", "loop-recompute", "columns-recompute"}
    # 400 positions: bounds of float32 kernels would be too wide, so gradients are kept whatever the cap.
    long = LinearProduct(x=torch.ones(2, 400, 9), gradient_of_output=torch.ones(2, 400, 9))
    assert bookkeeping._candidates(long, (Run(start=0, patients=2, records=1),), 1) == ("loop",)


def linear(rows: int, size: int, positions: int = 1) -> LinearProduct:
    return LinearProduct(
        x=torch.ones(rows, positions, size), gradient_of_output=torch.ones(rows, positions, size)
    )


@pytest.mark.parametrize(
    ("product", "records", "expected"),
    [
        (linear(64, 300), 1, "gram"),
        (linear(64, 300), 64, "vmap"),  # few patients: little to keep, and 64 positions each
        (linear(2, 300, 40), 1, "vmap"),
        (linear(64, 300, 40), 1, "columns-recompute"),  # 23 MB to keep
    ],
)
def test_without_timing_shapes_alone_choose(
    monkeypatch: pytest.MonkeyPatch, product: LinearProduct, records: int, expected: Method
):
    monkeypatch.setattr(bookkeeping, "_seconds", None)  # whoever times fails
    runs = (Run(start=0, patients=len(product.x) // records, records=records),)
    assert choose_method(product, runs, is_timed=False) == expected


def convolution(channels: int, size: int, kernel: int, axes: int = 3) -> ConvolutionProduct:
    x = torch.zeros(8, channels, *[size] * axes)
    return ConvolutionProduct(
        x=x,
        gradient_of_output=torch.zeros(8, 8, *[size] * axes),
        weight=torch.zeros(8, channels, *[kernel] * axes),
        geometry=Geometry(
            stride=(1,) * axes,
            padding=(kernel // 2,) * axes,
            dilation=(1,) * axes,
            transposed=False,
            output_padding=(0,) * axes,
            groups=1,
        ),
    )


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        (convolution(16, 8, 5), "vmap"),  # 512 positions
        (convolution(16, 16, 5), "loop"),  # 4096
        (convolution(16, 16, 3), "vmap"),  # and a kernel that is slow for one row of 16 x 16 x 16 = 4096
        (convolution(24, 30, 3), "loop"),  # not for one of 24 x 30 x 30 = 21600
    ],
)
def test_without_timing_patients_of_many_positions_get_a_kernel_each(
    product: ConvolutionProduct, expected: Method
):
    runs = (Run(start=0, patients=8, records=1),)
    assert choose_method(product, runs, is_timed=False) == expected
    if expected == "vmap" and product.terms >= 4096:  # two rows are fast
        runs = (Run(start=0, patients=4, records=2),)
        assert choose_method(product, runs, is_timed=False) == "loop"


def test_without_timing_a_rule_never_leaves_the_candidates(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bookkeeping, "_SMALL_WORK", 0)
    for product in (linear(8, 5), linear(8, 300, 3), product_of(), product_of(dtype=torch.float64)):
        rows = product.gradient_of_output.shape[0]
        runs = (Run(start=0, patients=rows, records=1),)
        for cap in (1, 2**12, 2**28):
            chosen = choose_method(product, runs, max_bytes=cap, is_timed=False)
            assert chosen in bookkeeping._candidates(product, runs, cap)


def test_seeded_training_does_not_time():
    for kind, is_timed in ((False, True), (True, False)):
        engine = build_engine("bookkeeping", max_rows=7, repeatable=kind)
        assert engine == BookkeepingEngine(max_rows=7, is_timed=is_timed)


def test_rows_are_grouped_by_the_number_of_records():
    batch = batch_of((2,), (2, 1, 3, 1, 2))
    rows = next(patient_chunks(batch, latent_of(batch), 100, like=torch.zeros(1, dtype=torch.float64)))
    grouped, runs = group_by_count(rows)
    assert runs == (
        Run(start=0, patients=2, records=1),
        Run(start=2, patients=2, records=2),
        Run(start=6, patients=1, records=3),
    )
    assert grouped.patient.tolist() == [1, 3, 0, 0, 4, 4, 2, 2, 2]
    for row, patient in enumerate(grouped.patient):
        owner = (rows.values == grouped.values[row]).all(1).nonzero()[0, 0]
        assert rows.patient[owner] == patient
        assert torch.equal(rows.noise[owner], grouped.noise[row])
        assert rows.weight[owner] == grouped.weight[row]


@pytest.mark.parametrize("name", ["table", "image"])
def test_under_autocast_norms_and_sums_keep_the_type_of_the_weights(name: str):
    # bfloat16 kernels round differently for one patient and for all: 8 bits are compared.
    module, batch = make_module(name).train(), batch_of(SHAPES[name], RAGGED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.decoder[0](torch.zeros(1, module.decoder[0].in_features)).dtype == torch.bfloat16
        gradients = gradients_of(module, batch)
        bound = median_norm(gradients)
        sums = {method: clip(BookkeepingEngine(method=method), module, batch, bound) for method in METHODS}
        alone = clip(BookkeepingEngine(), module, batch_of(SHAPES[name], (3,)), 1e-3)
    for clipped in sums.values():
        assert distance(clipped, gradients, bound) <= 0.03
        assert distance(clipped, flatten(sums["loop"].sum)[None], 1e9) <= 1e-3
    assert float(torch.linalg.vector_norm(flatten(alone.sum))) == pytest.approx(1e-3, rel=1e-12)


def test_tf32_widens_the_bounds_where_it_is_allowed(monkeypatch: pytest.MonkeyPatch):
    def allowed(everywhere: str, cudnn: str, convolutions: str, matrices: str) -> tuple[bool, bool]:
        setting = SimpleNamespace
        backends = setting(
            fp32_precision=everywhere,
            cudnn=setting(fp32_precision=cudnn, conv=setting(fp32_precision=convolutions)),
            cuda=setting(matmul=setting(fp32_precision=matrices)),
        )
        with monkeypatch.context() as patch:
            patch.setattr(torch, "backends", backends)
            return norms._allows_tf32(is_convolution=True), norms._allows_tf32(is_convolution=False)

    assert (norms._allows_tf32(is_convolution=True), norms._allows_tf32(is_convolution=False)) == (
        True,
        False,
    )
    assert allowed("none", "none", "none", "none") == (False, False)
    assert allowed("ieee", "ieee", "tf32", "ieee") == (True, False)
    assert allowed("none", "tf32", "none", "none") == (True, False)
    assert allowed("none", "none", "ieee", "tf32") == (False, True)
    assert allowed("tf32", "none", "none", "none") == (True, True)


def test_the_documented_methods_are_those_that_exist():
    documented = set(
        re.findall(
            r"(?:loop|columns)-recompute|loop|vmap|columns|gram(?= )",
            (norms.__doc__ or "").split("Rounding")[0],
        )
    )
    assert documented == set(METHODS)
