"""Deformations against closed forms, and a check of folding that sees a fold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from vae.data.phantom.deform import (
    Lattice,
    displace,
    exponentiate,
    jacobian_determinant,
    sample,
    smooth_field,
)

LATTICE = Lattice(origin=(-40.0, -40.0, -40.0), spacing=4.0, shape=(21, 21, 21))


def smooth_velocity(seed, strength=3.0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(
        smooth_field(strength * rng.standard_normal((3, 4, 4, 4)), LATTICE.shape)
    ).float()[None]


def test_nodes_and_affine_agree():
    lattice = Lattice(origin=(1.0, 2.0, 3.0), spacing=2.0, shape=(4, 5, 6))
    assert lattice.nodes()[1, 2, 3].tolist() == [3.0, 6.0, 9.0]
    assert (lattice.affine() @ [1, 2, 3, 1])[:3].tolist() == [3.0, 6.0, 9.0]
    assert Lattice.spanning((0, 0, 0), (9, 10, 11), 5.0).shape == (3, 3, 4)


def test_sampling_equals_scipy():
    volume = torch.randn(1, 2, *LATTICE.shape, generator=torch.Generator().manual_seed(0))
    points = 36 * (2 * torch.rand(1, 50, 3, generator=torch.Generator().manual_seed(1)) - 1)
    index = ((points[0].numpy() - LATTICE.origin) / LATTICE.spacing).T
    expected = [ndimage.map_coordinates(v.numpy(), index, order=1) for v in volume[0]]
    np.testing.assert_allclose(sample(volume, LATTICE, points)[0], expected, atol=2e-5)


def test_outside_is_nothing_or_the_edge():
    volume = torch.ones(1, 1, *LATTICE.shape)
    far = torch.full((1, 1, 3), 1000.0)
    assert sample(volume, LATTICE, far).item() == 0.0
    assert sample(volume, LATTICE, far, outside="border").item() == 1.0


def test_the_flow_of_a_linear_field_is_an_exponential():
    # dx/dt = a x has the flow x e^a; at x = 10 mm, a = 0.3: u = 10 (e^0.3 - 1) = 3.499 mm.
    nodes = LATTICE.nodes()
    velocity = (0.3 * nodes).movedim(-1, 0)[None]
    moved = sample(exponentiate(velocity, LATTICE, steps=8), LATTICE, torch.tensor([[[10.0, 0.0, -5.0]]]))
    expected = torch.tensor([10.0, 0.0, -5.0]) * (math.exp(0.3) - 1)
    # n squarings compose Euler steps of size 2^-n: the error is of order a^2 2^-n / 2 = 0.02 %.
    torch.testing.assert_close(moved[0, :, 0], expected, rtol=1e-3, atol=1e-4)
    # The linear approximation u = a x would be 14 % off, and the test tells the two apart.
    assert abs(moved[0, 0, 0].item() - 3.0) > 0.4


def test_the_flow_backwards_undoes_the_flow():
    velocity = smooth_velocity(0)
    inner = LATTICE.nodes()[6:-6, 6:-6, 6:-6][None]
    there = displace(inner, exponentiate(velocity, LATTICE, outside="border"), LATTICE, outside="border")
    back = displace(there, exponentiate(-velocity, LATTICE, outside="border"), LATTICE, outside="border")
    assert (there - inner).norm(dim=-1).max() > 3.0
    assert (back - inner).norm(dim=-1).max() < 0.25, "a fraction of the 4 mm lattice"
    assert (back - inner).norm(dim=-1).mean() < 0.1


def test_volumes_are_integrated_separately_for_each_field():
    a, b = smooth_velocity(1), smooth_velocity(2)
    together = exponentiate(torch.cat([a, b]), LATTICE)
    torch.testing.assert_close(together[1:], exponentiate(b, LATTICE))


def test_the_jacobian_of_a_scaling_is_its_cube():
    points = 1.1 * LATTICE.nodes()
    torch.testing.assert_close(
        jacobian_determinant(points, LATTICE.spacing), torch.full((20, 20, 20), 1.331), rtol=1e-4, atol=0
    )


def test_flows_of_strong_fields_do_not_fold_where_plain_displacements_do():
    # A sink at the centre, v = -s x exp(-x^2 / 2 r^2): points stream inwards, and x + v overshoots for s > 1.
    nodes = LATTICE.nodes()
    sink = -2.0 * nodes * torch.exp(-(nodes**2).sum(-1, keepdim=True) / (2 * 12.0**2))
    velocity = sink.movedim(-1, 0)[None]
    flow = nodes + exponentiate(velocity, LATTICE, steps=7)[0].movedim(0, -1)
    assert jacobian_determinant(flow, LATTICE.spacing).min() > 0
    assert jacobian_determinant(nodes + sink, LATTICE.spacing).min() < 0


def test_one_swapped_pair_of_nodes_counts_as_folded():
    points = LATTICE.nodes()
    points[[10, 11]] = points[[11, 10]]
    assert jacobian_determinant(points, LATTICE.spacing).min() < 0


@pytest.mark.parametrize("shape", [(9, 9, 9), (12, 7, 5)])
def test_splines_keep_corners_and_straight_lines(shape):
    ramp = np.broadcast_to(np.arange(4.0)[:, None, None], (4, 4, 4))[None]
    fine = smooth_field(ramp, shape)
    np.testing.assert_allclose(fine[0, :, 0, 0], np.linspace(0, 3, shape[0]), atol=1e-9)
    rng = np.random.default_rng(0).standard_normal((2, 4, 4, 4))
    dense = smooth_field(rng, shape)
    assert dense.shape == (2, *shape)
    np.testing.assert_allclose(dense[:, [0, -1], 0, -1], rng[:, [0, -1], 0, -1], atol=1e-9)
