"""The sampler's event, its edges and its determinism."""

from __future__ import annotations

import numpy as np
import pytest

from privacy.accounting import Release
from privacy.errors import PlanError
from privacy.noise import SeededRandomness, SystemRandomness
from privacy.sampling import PoissonSampler


def sampler(num_patients: int = 50, q: float = 0.2, seed: int = 0) -> PoissonSampler:
    return PoissonSampler(
        num_patients=num_patients, sampling_probability=q, stream=SeededRandomness(seed).stream("sampling")
    )


def test_samples_are_ascending_distinct_indices():
    for chosen in sampler().samples(50):
        assert chosen.dtype == np.int64
        assert np.array_equal(chosen, np.unique(chosen))
        assert len(chosen) == 0 or (chosen[0] >= 0 and chosen[-1] < 50)


def test_a_sample_is_exactly_those_whose_deviate_is_below_q():
    deviates = SeededRandomness(3).stream("sampling").uniform(150).reshape(3, 50)
    for row, chosen in zip(deviates, sampler(seed=3).samples(3), strict=True):
        assert chosen.tolist() == np.flatnonzero(row < 0.2).tolist()


@pytest.mark.parametrize("steps", [0, 1, 17])
def test_there_are_exactly_as_many_samples_as_steps(steps: int):
    assert len(list(sampler().samples(steps))) == steps


def test_probability_one_takes_everybody_each_time():
    for chosen in sampler(q=1.0).samples(20):
        assert chosen.tolist() == list(range(50))


def test_a_tiny_probability_gives_empty_steps_not_fewer():
    sizes = [len(chosen) for chosen in sampler(q=1e-9).samples(30)]
    assert sizes == [0] * 30


def test_a_site_without_patients_has_empty_steps():
    assert [len(chosen) for chosen in sampler(num_patients=0).samples(5)] == [0] * 5


def test_a_negative_number_of_patients_is_refused():
    with pytest.raises(ValueError, match="num_patients must be >= 0, got -1"):
        sampler(num_patients=-1)


@pytest.mark.parametrize("q", [0.0, 1.5, float("nan")])
def test_a_probability_that_cannot_be_accounted_is_refused(q: float):
    with pytest.raises(PlanError, match="sampling_probability must be a number in"):
        sampler(q=q)


def test_the_event_is_the_samplers_own():
    event = sampler(q=0.2).release(1.5, 40)
    assert event == Release(sampling_probability=0.2, noise_multiplier=1.5, steps=40, sampler="poisson")


def test_the_event_carries_the_relation_that_it_is_asked_for():
    event = sampler(q=0.2).release(1.5, 40, neighbouring="replace_one")
    assert event == Release(
        sampling_probability=0.2, noise_multiplier=1.5, steps=40, neighbouring="replace_one"
    )
    assert event != sampler(q=0.2).release(1.5, 40)


def test_equal_seeds_give_equal_samples_and_the_system_does_not():
    one, two = ([chosen.tolist() for chosen in sampler(seed=9).samples(20)] for _ in range(2))
    assert one == two
    assert one != [chosen.tolist() for chosen in sampler(seed=10).samples(20)]
    fresh = [
        [
            chosen.tolist()
            for chosen in PoissonSampler(
                num_patients=50, sampling_probability=0.2, stream=SystemRandomness().stream("sampling")
            ).samples(20)
        ]
        for _ in range(2)
    ]
    assert fresh[0] != fresh[1]


def test_a_sample_does_not_depend_on_who_else_there_is():
    # Removing the last patient leaves everybody else's coins of the first step alone.
    with_them, without = next(sampler(50).samples(1)), next(sampler(49).samples(1))
    assert without.tolist() == [index for index in with_them.tolist() if index < 49]
