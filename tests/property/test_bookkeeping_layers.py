"""Every layer that the bookkeeping engine knows, in shapes that hypothesis draws, against a loop over patients."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from privacy.bookkeeping import BookkeepingEngine
from privacy.norms import METHODS, Method
from tests.support.layer_toys import LayerLoss, batch_of, clip, distance, gradients_of, median_norm, seeded

CONVOLUTIONS = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}
RECORDS = st.one_of(
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.lists(st.sampled_from([1, 2, 40]), min_size=1, max_size=3),
    st.integers(1, 6).map(lambda patients: [1] * patients),
)
METHOD = st.sampled_from(METHODS)

Drawn = tuple[nn.Module, tuple[int, ...]]


@st.composite
def convolutions(draw: st.DrawFn) -> Drawn:
    """Return a convolution of either kind and the shape of a record."""
    axes, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    into, out = (groups * draw(st.integers(1, 2)) for _ in range(2))
    kernel, stride, dilation = (
        tuple(draw(st.integers(1, most)) for _ in range(axes))
        for most in ((4, 3, 2) if axes < 3 else (3, 2, 2))
    )
    reach = [step * (size - 1) + 1 for size, step in zip(kernel, dilation, strict=True)]
    padding = tuple(draw(st.integers(0, min(2, size - 1))) for size in reach)
    settings_: dict[str, object] = {
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if transposed:
        settings_["output_padding"] = tuple(
            draw(st.integers(0, max(step, gap) - 1)) for step, gap in zip(stride, dilation, strict=True)
        )
        # Outputs need at least one pixel.
        sizes = [
            max(2, 2 * pad - extent + 2) + draw(st.integers(0, 2))
            for pad, extent in zip(padding, reach, strict=True)
        ]
    else:
        sizes = [
            max(3, extent - 2 * pad) + draw(st.integers(0, 4))
            for pad, extent in zip(padding, reach, strict=True)
        ]
        mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
        settings_["padding_mode"] = mode if max(padding) > 0 else "zeros"
        if draw(st.integers(0, 4)) == 0:
            settings_ |= {"padding": "same", "stride": 1, "padding_mode": "zeros"}
    layer = seeded(lambda: LayerLoss(CONVOLUTIONS[axes, transposed](into, out, **settings_)))  # type: ignore[arg-type]
    return layer, (into, *sizes)


@st.composite
def others(draw: st.DrawFn) -> Drawn:
    """Return any other known layer and the shape of a record."""
    channels, space = (
        2 * draw(st.integers(1, 3)),
        tuple(draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))),
    )
    middle = tuple(draw(st.lists(st.integers(1, 4), max_size=2)))
    instance = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[len(space)]
    bias = draw(st.booleans())
    makers: dict[str, Drawn] = {
        "linear": (seeded(lambda: LayerLoss(nn.Linear(channels, 3, bias=bias))), (*middle, channels)),
        "group": (seeded(lambda: LayerLoss(nn.GroupNorm(2, channels))), (channels, *space)),
        "flat group": (seeded(lambda: LayerLoss(nn.GroupNorm(1, channels))), (channels,)),
        "layer": (seeded(lambda: LayerLoss(nn.LayerNorm(space, bias=bias))), (*middle, *space)),
        "instance": (seeded(lambda: LayerLoss(instance(channels, affine=True))), (channels, *space)),
        "prelu": (
            seeded(lambda: LayerLoss(nn.PReLU(draw(st.sampled_from([1, channels]))))),
            (channels, *space),
        ),
        "embedding": (
            seeded(
                lambda: LayerLoss(
                    nn.Embedding(5, 3, padding_idx=draw(st.sampled_from([None, 0, 3]))),
                    lambda values: (values.abs() * 4).long() % 5,
                )
            ),
            (*middle, 2),
        ),
    }
    return makers[draw(st.sampled_from(sorted(makers)))]


def check(drawn: Drawn, records: list[int], method: Method) -> None:
    """Compare the sum of gradients, and of clipped ones, in both types."""
    (module, shape), engine = drawn, BookkeepingEngine(method=method)
    batch = batch_of(shape, records)
    gradients = gradients_of(module, batch)
    assert distance(clip(engine, module, batch, 1e9), gradients, 1e9) <= 1e-12
    bound = median_norm(gradients)
    kept = method in ("loop", "vmap", "columns")
    # Bounds of rounding may make a factor smaller (`norms`), never larger.
    clipped = clip(engine, module, batch, bound)
    assert distance(clipped, gradients, bound) <= (1e-12 if kept else 1e-8)
    single = module.float()
    narrow = gradients_of(single, batch)  # of the rounded weights
    assert distance(clip(engine, single, batch, 1e9), narrow, 1e9) <= 1e-5
    assert distance(clip(engine, single, batch, bound), narrow, bound) <= (
        1e-5 if kept else 5e-4 * len(records)
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@given(drawn=convolutions(), records=RECORDS, method=METHOD)
@settings(max_examples=300)
def test_convolutions_equal_a_loop_over_patients(drawn: Drawn, records: list[int], method: Method):
    check(drawn, records, method)


@given(drawn=others(), records=RECORDS, method=METHOD)
@settings(max_examples=150)
def test_other_layers_equal_a_loop_over_patients(drawn: Drawn, records: list[int], method: Method):
    check(drawn, records, method)


@given(
    records=st.lists(st.integers(1, 5), min_size=1, max_size=6), max_rows=st.integers(1, 12), method=METHOD
)
@settings(max_examples=30)
def test_physical_batches_do_not_matter(records: list[int], max_rows: int, method: Method):
    module, batch = seeded(lambda: LayerLoss(nn.Conv2d(2, 3, 3, 2, 1))), batch_of((2, 5, 4), records)
    gradients = gradients_of(module, batch)
    bound = median_norm(gradients)
    parts = clip(BookkeepingEngine(method=method, max_rows=max_rows), module, batch, bound)
    assert distance(parts, gradients, bound) <= 1e-8


@pytest.mark.parametrize("method", METHODS)
@given(
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e10, 1e18]),
    bound=st.sampled_from([1e-3, 1.0, 1e3]),
    records=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=st.integers(0, 5),
)
@settings(max_examples=15)
def test_one_patient_contributes_at_most_the_bound(
    method: Method, scale: float, bound: float, records: list[int], seed: int
):
    """Alone, a patient's contribution is the sum: C is never exceeded, in float32 and by any method."""

    def project(values: Tensor) -> Tensor:
        return values * scale

    module = seeded(lambda: LayerLoss(nn.Conv2d(2, 3, 3, 1, 1), project), seed).float()
    batch = batch_of((2, 6, 6), records[:1], seed)
    total = torch.cat(
        [each.flatten() for each in clip(BookkeepingEngine(method=method), module, batch, bound).sum.values()]
    )
    assert float(torch.linalg.vector_norm(total)) <= bound * (1 + 1e-12)
