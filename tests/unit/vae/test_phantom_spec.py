"""A phantom's specification names every problem at once, and what it derives is right."""

from __future__ import annotations

import dataclasses

import pytest

from vae.data.phantom.spec import PhantomSpec, public_fields, site_names
from vae.errors import DataError


def test_the_defaults_are_valid_and_frozen():
    spec = PhantomSpec()
    assert (spec.sites, spec.channels, spec.image_shape) == (4, ("pet",), (48, 48, 48))
    assert spec.reference_patients_per_site == 10
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.seed = 2


def test_shapes_follow_the_slab():
    assert PhantomSpec(slab=1).image_shape == (48, 48)
    assert PhantomSpec(slab=8).image_shape == (48, 48, 8)
    assert PhantomSpec(size=32, voxel_mm=6.0).image_shape == (32, 32, 32)


def test_sites_are_numbered_from_one():
    assert site_names(PhantomSpec(sites=3)) == ("site-1", "site-2", "site-3")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": 0}, "sites is 0, must be a whole number >= 1"),
        ({"patients_per_site": 1}, "patients_per_site is 1"),
        ({"test_patients_per_site": True}, "test_patients_per_site is True"),
        ({"visits": (3, 1)}, r"visits is \(3, 1\)"),
        ({"visits": (0, 1)}, r"visits is \(0, 1\)"),
        ({"size": 32}, "size 32 x voxel_mm 4 spans 128 mm, must lie in 176..320 mm; try voxel_mm 6"),
        ({"size": 4}, "size is 4"),
        ({"channels": ("t1w", "ct")}, "channels holds 'ct', must be one of t1w, t2w, pet"),
        ({"channels": ()}, r"channels is \(\)"),
        ({"channels": ("pet", "pet")}, "without repetition"),
        ({"slab": 0}, "slab is 0"),
        ({"slab": 25}, "slab is 25, must be null or in 1..24"),
        ({"degrees": (10, 100)}, "degrees holds 100, must be percent in 1..99"),
        ({"hypometabolism": ("als",)}, "hypometabolism holds 'als'"),
        ({"founder_subset": ("a",)}, "need founders: DIR"),
        ({"founders": "d", "held_out_founders": ("a",)}, "held_out_founders is"),
        (
            {"founders": "d", "founder_subset": ("a",), "held_out_founders": ("a",)},
            "without a founder in common",
        ),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_each_bad_value_is_named_with_its_rule(change, message):
    with pytest.raises(DataError, match=message):
        PhantomSpec(**change)


def test_all_problems_are_told_at_once():
    with pytest.raises(DataError) as caught:
        PhantomSpec(sites=0, channels=("x",), degrees=(0,), seed=-3)
    text = str(caught.value)
    assert all(part in text for part in ("sites is 0", "channels holds 'x'", "degrees holds 0", "seed is -3"))


def test_the_public_fields_leave_out_what_does_not_decide_a_site():
    a, b = PhantomSpec(sites=2, founders="/one"), PhantomSpec(sites=9, founders="/two")
    assert public_fields(a) == public_fields(b)
    assert public_fields(a) != public_fields(PhantomSpec(seed=1))
