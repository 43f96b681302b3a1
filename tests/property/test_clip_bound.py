"""The clip bound for any gradients, hostile ones included: nobody moves the sum by more than C."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from privacy.clipping import ClippedSum, build_engine
from privacy.plan import GradEngine
from tests.support.private_toys import RawGradient, flatten, latent_of, raw_batch, reference_sum

SIZE = 4
ORDINARY = st.floats(-100.0, 100.0, width=32)
HOSTILE = st.sampled_from(
    [0.0, -0.0, 1e-45, 1e-30, 1e30, -1e30, 3.4e38, float("nan"), float("inf"), -float("inf")]
)
ENTRY = st.one_of(ORDINARY, HOSTILE)
RECORD = st.lists(ENTRY, min_size=SIZE, max_size=SIZE)
PATIENT = st.lists(RECORD, min_size=1, max_size=4)
BOUND = st.sampled_from([1e-3, 0.5, 1.0, 7.25, 1e3])

engines = pytest.mark.parametrize("engine", ["vmap", "opacus", "bookkeeping"])
types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def clipped_sum(
    engine: GradEngine,
    patients: list[list[list[float]]],
    bound: float,
    dtype: torch.dtype,
    max_rows: int = 256,
) -> ClippedSum:
    """Return the clipped sum where record b's gradient is row b."""
    rows = [record for records in patients for record in records]
    owner = [index for index, records in enumerate(patients) for _ in records]
    batch = raw_batch(rows, owner, dtype)
    module = RawGradient(SIZE).to(dtype).train()
    return build_engine(engine, max_rows=max_rows).clipped_sum(
        module, batch, latent_noise=latent_of(batch), kl_weight=0.0, max_grad_norm=bound
    )


@engines
@types
@given(patient=PATIENT, bound=BOUND)
def test_one_patient_contributes_at_most_the_bound(
    engine: GradEngine, dtype: torch.dtype, patient: list[list[float]], bound: float
):
    clipped = clipped_sum(engine, [patient], bound, dtype)
    total = flatten(clipped.sum)
    assert torch.isfinite(total).all()
    assert float(torch.linalg.vector_norm(total)) <= bound * (1 + 1e-12)
    assert math.isfinite(clipped.loss_sum)


@engines
@types
@given(patients=st.lists(PATIENT, min_size=1, max_size=5), bound=BOUND, data=st.data())
def test_removing_any_patient_moves_the_sum_by_at_most_the_bound(
    engine: GradEngine,
    dtype: torch.dtype,
    patients: list[list[list[float]]],
    bound: float,
    data: st.DataObject,
):
    leaver = data.draw(st.integers(0, len(patients) - 1))
    others = patients[:leaver] + patients[leaver + 1 :]
    with_them = flatten(clipped_sum(engine, patients, bound, dtype).sum)
    without = (
        flatten(clipped_sum(engine, others, bound, dtype).sum) if others else torch.zeros_like(with_them)
    )
    # float32 kernels round the mean of a patient's records in another way when the composition differs.
    slack = 1e-5 if dtype == torch.float32 else 1e-12
    assert float(torch.linalg.vector_norm(with_them - without)) <= bound * (1 + slack)


@engines
@given(patients=st.lists(PATIENT, min_size=1, max_size=5), bound=BOUND)
def test_equals_the_definition(engine: GradEngine, patients: list[list[list[float]]], bound: float):
    clipped = clipped_sum(engine, patients, bound, torch.float64)
    with np.errstate(all="ignore"):
        means = torch.stack([torch.tensor(records, dtype=torch.float64).mean(0) for records in patients])
    torch.testing.assert_close(
        flatten(clipped.sum), reference_sum(means, bound), rtol=1e-11, atol=1e-11 * bound
    )
    assert clipped.num_nonfinite == int((~torch.isfinite(means).all(1)).sum())


@engines
@given(patients=st.lists(PATIENT, min_size=1, max_size=6), max_rows=st.integers(1, 12))
def test_physical_batches_do_not_matter(engine: GradEngine, patients: list[list[list[float]]], max_rows: int):
    whole, parts = (clipped_sum(engine, patients, 1.0, torch.float64, rows) for rows in (256, max_rows))
    torch.testing.assert_close(flatten(whole.sum), flatten(parts.sum), rtol=1e-11, atol=1e-12)
    assert whole.num_nonfinite == parts.num_nonfinite


@given(patients=st.lists(PATIENT, min_size=1, max_size=5), bound=BOUND)
def test_both_engines_agree(patients: list[list[list[float]]], bound: float):
    vmap, opacus = (clipped_sum(engine, patients, bound, torch.float64) for engine in ("vmap", "opacus"))
    torch.testing.assert_close(flatten(vmap.sum), flatten(opacus.sum), rtol=1e-11, atol=1e-11 * bound)
    assert (vmap.num_nonfinite, vmap.num_clipped) == (opacus.num_nonfinite, opacus.num_clipped)


@engines
@types
@pytest.mark.parametrize("entry", [1e30, 3e38, -3e38])
def test_worked_example_norms_beyond_float32_are_clipped_not_dropped(
    engine: GradEngine, dtype: torch.dtype, entry: float
):
    # Four equal entries: the norm is 2 |entry|, squared beyond float32. Clipped to 1: each entry +-0.5.
    clipped = clipped_sum(engine, [[[entry] * SIZE]], 1.0, dtype)
    expected = torch.full((SIZE,), math.copysign(0.5, entry), dtype=torch.float64)
    torch.testing.assert_close(flatten(clipped.sum), expected, rtol=1e-12, atol=0.0)
    assert (clipped.num_nonfinite, clipped.num_clipped) == (0, 1)


@engines
def test_a_norm_beyond_float64_contributes_zero(engine: GradEngine):
    clipped = clipped_sum(engine, [[[1e300] * SIZE], [[1.0, 0.0, 0.0, 0.0]]], 1.0, torch.float64)
    torch.testing.assert_close(flatten(clipped.sum), torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    assert clipped.num_nonfinite == 1


def test_this_suite_would_notice_clipping_by_record():
    # Two records of one patient, each clipped to 1 and then summed: norm 2, twice the bound.
    records = torch.tensor([[5.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    by_record = reference_sum(records, 1.0)
    assert float(torch.linalg.vector_norm(by_record)) > 1.0 * (1 + 1e-5)
