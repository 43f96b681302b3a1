"""Releases: merging and splitting never change what is charged, and no sampler is charged less than it takes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting import NEIGHBOURINGS, Release, merge_releases
from privacy.releases import SAMPLERS, charged_as, group_releases, same_parameters

probabilities = st.one_of(
    st.integers(1, 3000).map(lambda batches: 1 / batches),
    st.floats(1e-6, 1.0, exclude_min=False),
)


def releases(neighbouring: str | None = None) -> st.SearchStrategy[Release]:
    relation = st.sampled_from(NEIGHBOURINGS) if neighbouring is None else st.just(neighbouring)
    return st.builds(
        Release,
        sampling_probability=probabilities,
        noise_multiplier=st.floats(0.1, 100.0),
        steps=st.integers(0, 1_000_000),
        sampler=st.sampled_from(SAMPLERS),
        neighbouring=relation,
    )


@st.composite
def histories(draw: Callable[..., object]) -> list[Release]:
    # Few kinds and many releases, so that neighbours of equal parameters are common.
    kinds = draw(st.lists(releases("add_remove"), min_size=1, max_size=2))
    return [
        dataclasses.replace(draw(st.sampled_from(kinds)), steps=draw(st.integers(0, 400_000)))  # type: ignore[type-var,arg-type]
        for _ in range(draw(st.integers(0, 8)))  # type: ignore[arg-type]
    ]


@given(histories())
def test_merging_never_changes_what_is_charged(history: list[Release]):
    merged = merge_releases(history)
    assert group_releases(merged) == group_releases(history)
    assert merge_releases(merged) == merged
    assert all(one.steps > 0 for one in merged)


@given(histories(), st.randoms())
def test_the_charge_does_not_know_an_order(history: list[Release], rng: object):
    shuffled = list(history)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert group_releases(shuffled) == group_releases(history)


@given(releases())
def test_a_release_survives_json(one: Release):
    assert Release.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@given(releases(), st.integers(0, 1_000_000))
def test_only_steps_may_differ_between_equal_parameters(one: Release, steps: int):
    assert same_parameters(one, dataclasses.replace(one, steps=steps))
    assert not same_parameters(
        one, dataclasses.replace(one, noise_multiplier=one.noise_multiplier * 1.0000001)
    )


@given(releases(), st.integers(0, 1000))
def test_parts_are_never_charged_less_than_the_whole(one: Release, part: int):
    part = min(part, one.steps)
    pieces = [dataclasses.replace(one, steps=steps) for steps in (part, one.steps - part)]
    assert sum(charged_as(piece).steps for piece in pieces) >= charged_as(one).steps


@given(releases())
def test_shuffled_is_charged_the_epochs_begun(one: Release):
    charged = charged_as(dataclasses.replace(one, sampler="shuffled"))
    epochs = Fraction(one.sampling_probability) * one.steps
    # Never less than the passes over the data, up to the last digit of q; never a whole one more.
    assert epochs * (1 - Fraction(1, 2**52)) <= charged.steps < epochs * (1 + Fraction(1, 2**52)) + 1
    assert charged.sampling_probability == 1.0
