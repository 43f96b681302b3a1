"""With mechanism discrete a patient moves the sum by integers of bounded norm, and moves nobody else's by a bit."""

from __future__ import annotations

import math
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from privacy.clipping import build_engine
from privacy.discrete import SCALE, Lattice
from privacy.plan import GradEngine
from tests.property.test_clip_bound import PATIENT, SIZE
from tests.support.private_toys import SHAPES, RawGradient, latent_of, make_cohort, make_module, raw_batch

SIGMAS = st.sampled_from([2.0**-10, 0.05, 1.0, 3.7, 4096.0])
BOUNDS = st.sampled_from([1e-3, 0.5, 1.0, 7.25, 1e3])
engines = pytest.mark.parametrize("engine", ["vmap", "opacus"])


def lattice_of(sigma: float, bound: float, size: int = SIZE) -> Lattice:
    return Lattice(noise_multiplier=sigma, max_grad_norm=bound, num_coordinates=size)


def integers(engine: GradEngine, patients: list[list[list[float]]], lattice: Lattice) -> list[int]:
    """Return the sum in units of the lattice, where record b's gradient is row b."""
    rows = [record for records in patients for record in records]
    owner = [index for index, records in enumerate(patients) for _ in records]
    batch = raw_batch(rows, owner, torch.float32)
    clipped = build_engine(engine, lattice=lattice).clipped_sum(
        RawGradient(SIZE).train(),
        batch,
        latent_noise=latent_of(batch),
        kl_weight=0.0,
        max_grad_norm=lattice.max_grad_norm,
    )
    (total,) = clipped.sum.values()
    assert total.dtype == torch.int64
    return [int(entry) for entry in total.flatten()]


def exact_norm_squared(entries: list[int]) -> int:
    """Return the squared norm, in integers of any size: no rounding helps or hurts."""
    return sum(entry * entry for entry in entries)


@engines
@given(patient=PATIENT, sigma=SIGMAS, bound=BOUNDS)
def test_a_patients_integers_have_at_most_the_norm_that_is_accounted(
    engine: GradEngine, patient: list[list[list[float]]], sigma: float, bound: float
):
    own = integers(engine, [patient], lattice_of(sigma, bound))
    assert exact_norm_squared(own) <= Fraction(lattice_of(sigma, bound).bound_units) ** 2
    assert lattice_of(sigma, bound).bound_units < SCALE / sigma


@engines
@given(patients=st.lists(PATIENT, min_size=1, max_size=4), patient=PATIENT, sigma=SIGMAS, bound=BOUNDS)
def test_a_patient_changes_the_sum_by_exactly_its_own_integers(
    engine: GradEngine,
    patients: list[list[list[list[float]]]],
    patient: list[list[list[float]]],
    sigma: float,
    bound: float,
):
    lattice = lattice_of(sigma, bound)
    without, own = integers(engine, patients, lattice), integers(engine, [patient], lattice)
    together = integers(engine, [*patients, patient], lattice)
    assert together == [a + b for a, b in zip(without, own, strict=True)]


@engines
@pytest.mark.parametrize("name", ["table", "image", "volume"])
def test_leaving_out_a_patient_of_a_model_changes_the_sum_by_exactly_its_integers(
    engine: GradEngine, name: str
):
    """Float32 kernels round by the shape of their batch; here no kernel sees two patients."""
    module = make_module(name).train()
    cohort = make_cohort(SHAPES[name], [1, 3, 2, 1, 4])
    size = sum(tensor.numel() for tensor in module.parameters())
    lattice = lattice_of(1.0, 0.5, size)

    def total(chosen: list[int]) -> torch.Tensor:
        batch = cohort.batch(np.array(chosen, dtype=np.int64))
        everybody = latent_of(cohort.batch(np.arange(5, dtype=np.int64)))
        first = [0, 1, 4, 6, 7, 11]
        noise = torch.cat([everybody[first[p] : first[p + 1]] for p in chosen])
        made = build_engine(engine, lattice=lattice).clipped_sum(
            module, batch, latent_noise=noise, kl_weight=1.0, max_grad_norm=0.5
        )
        return torch.cat([tensor.flatten() for tensor in made.sum.values()])

    whole = total([0, 1, 2, 3, 4])
    assert int(whole.abs().max()) > 0
    for left_out in range(5):
        others = [p for p in range(5) if p != left_out]
        assert torch.equal(whole, total(others) + total([left_out]))


@given(
    size=st.integers(1, 10_000_000),
    sigma=st.floats(2.0**-10, 4096.0),
    bound=st.floats(1e-6, 1e6),
)
def test_the_clip_leaves_room_for_the_rounding_of_every_coordinate(size: int, sigma: float, bound: float):
    lattice = lattice_of(sigma, bound, size)
    worst = lattice.clip_units * (1 + size * 2.0**-53) + 0.5 * math.sqrt(size)
    assert worst <= lattice.bound_units
    assert lattice.clip_units >= 0.5 * lattice.bound_units
    assert lattice.clip_norm < bound


def test_a_clip_without_that_room_breaks_the_bound():
    """The test above can fail: of a million coordinates just above a half all round up."""
    lattice = lattice_of(4096.0, 1.0, 1_000_000)
    gradient = torch.full((1, 1_000_000), 100_000.0, dtype=torch.float64)

    def rounded_norm(clip_units: float) -> float:
        factor = torch.tensor([clip_units * lattice.unit / float(gradient.norm())], dtype=torch.float64)
        return math.sqrt(exact_norm_squared(lattice.round_clipped(gradient, factor).tolist()))

    a_half_more = (math.floor(lattice.clip_units / 1000.0) + 0.5001) * 1000.0
    assert rounded_norm(a_half_more) > a_half_more + 499
    assert rounded_norm(lattice.bound_units // 1000 * 1000.0 + 501.0) > lattice.bound_units
    assert rounded_norm(lattice.clip_units) <= lattice.bound_units


def test_bookkeeping_has_no_lattice():
    with pytest.raises(ValueError, match="take vmap or opacus"):
        build_engine("bookkeeping", lattice=lattice_of(1.0, 1.0))


def test_a_lattice_too_coarse_for_a_model_is_refused():
    with pytest.raises(ValueError, match="take mechanism independent"):
        lattice_of(4096.0, 1.0, 10**15)
