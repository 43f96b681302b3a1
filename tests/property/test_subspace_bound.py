"""The clip bound in theta, for any gradients and any directions: nobody moves the sum by more than C."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from privacy.clipping import ClippedSum, build_engine
from privacy.subspace import within
from tests.property.test_clip_bound import BOUND, PATIENT, SIZE
from tests.support.private_toys import RawGradient, flatten, latent_of, raw_batch, reference_sum
from tests.support.subspaces import orthonormal

Patients = list[list[list[float]]]

K = 2
SCALE = st.sampled_from([1.0, 0.0, 1e-20, 1e20])
"""Of the directions: a server that sends others than orthonormal ones must not gain by it."""


def clipped_sum(patients: Patients, bound: float, matrix: np.ndarray) -> ClippedSum:
    """Return the clipped sum of theta's gradients, where record b's gradient is row b."""
    rows = [record for records in patients for record in records]
    owner = [index for index, records in enumerate(patients) for _ in records]
    batch = raw_batch(rows, owner)
    module = RawGradient(SIZE).double().train()
    with within(module, {"layer.weight": torch.from_numpy(matrix)[:, None]}) as space:
        return build_engine("vmap").clipped_sum(
            space, batch, latent_noise=latent_of(batch), kl_weight=0.0, max_grad_norm=bound
        )


@given(patients=st.lists(PATIENT, min_size=1, max_size=4), bound=BOUND, scale=SCALE, data=st.data())
def test_removing_any_patient_moves_theta_by_at_most_the_bound(
    patients: Patients, bound: float, scale: float, data: st.DataObject
):
    matrix = scale * orthonormal(K, SIZE, data.draw(st.integers(0, 9)))
    leaver = data.draw(st.integers(0, len(patients) - 1))
    others = patients[:leaver] + patients[leaver + 1 :]
    with_them = flatten(clipped_sum(patients, bound, matrix).sum)
    without = flatten(clipped_sum(others, bound, matrix).sum) if others else torch.zeros(K)
    assert with_them.shape == (K,)
    assert torch.isfinite(with_them).all()
    assert float(torch.linalg.vector_norm(with_them - without)) <= bound * (1 + 1e-12)


@given(records=st.lists(st.lists(st.floats(-100, 100), min_size=SIZE, max_size=SIZE), min_size=1, max_size=4))
def test_the_norm_that_is_clipped_is_that_of_the_projection(records: list[list[float]]):
    matrix = orthonormal(K, SIZE)
    projected = np.mean(records, axis=0) @ matrix.T
    expected = reference_sum(torch.from_numpy(projected)[None], 0.5)
    found = flatten(clipped_sum([records], 0.5, matrix).sum)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_this_suite_would_notice_a_clip_before_the_projection():
    # Along v the gradient is 3, outside 4: clipped to 1 first, 3/5 of the bound is left; after, all of it.
    matrix = np.array([[1.0, 0.0, 0.0, 0.0]])
    found = flatten(clipped_sum([[[3.0, 4.0, 0.0, 0.0]]], 1.0, matrix).sum)
    assert found.tolist() == pytest.approx([1.0])
