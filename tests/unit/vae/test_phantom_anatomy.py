"""People: drawn reproducibly, deformed without a fold, changed by disease where it acts and nowhere else."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.support.phantoms import body, person, template
from vae.data.phantom.ageing import (
    LOG_HIPPOCAMPUS_RANGE,
    LOG_VENTRICLE_RANGE,
    Calibration,
    deep_lattice,
)
from vae.data.phantom.anatomy import SLAB_CENTRE_MM, Body, image_lattice, pad_slices
from vae.data.phantom.deform import Lattice, displace, jacobian_determinant, sample
from vae.data.phantom.founder import TISSUES
from vae.data.phantom.person import generator, groups
from vae.data.phantom.spec import PhantomSpec

SPEC = PhantomSpec(patients_per_site=6, test_patients_per_site=2, diseased_patients_per_site=6, visits=(2, 3))
FIRST_ILL = 6 + 2 + 2


def same(a, b):
    return all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name))
        for f in dataclasses.fields(a)
        if f.name != "trajectory"
    )


def test_groups_follow_one_another():
    assert groups(SPEC) == ("train",) * 6 + ("reference",) * 2 + ("test",) * 2 + ("diseased",) * 6


def test_a_person_is_a_function_of_seed_site_and_index():
    first = person(SPEC, 3)
    assert same(first, person(SPEC, 3))
    assert first.trajectory == person(SPEC, 3).trajectory
    others = [person(SPEC, 4), person(SPEC, 3, site=1), person(dataclasses.replace(SPEC, seed=1), 3)]
    for other in others:
        assert not np.array_equal(first.warp_fine, other.warp_fine)
        assert first.ages != other.ages


def test_streams_of_randomness_never_meet():
    keys = [(i, v, p) for i in range(3) for v in range(3) for p in range(3)]
    draws = {generator(SPEC, site=0, index=i, visit=v, purpose=p).integers(2**60) for i, v, p in keys}
    assert len(draws) == len(keys)


def test_visits_and_ages_stay_in_bounds():
    spec = PhantomSpec(visits=(4, 12), patients_per_site=40)
    for index in range(40):
        ages = person(spec, index).ages
        assert 4 <= len(ages) <= 12
        assert 55 <= ages[0] <= 88
        assert ages[-1] <= 92
        assert all(b > a for a, b in pairwise(ages))


def test_both_sexes_and_several_ages_occur():
    people = [person(SPEC, i, site=s) for i in range(10) for s in range(2)]
    assert {p.sex for p in people} == {0, 1}
    assert np.std([p.ages[0] for p in people]) > 3
    assert np.mean([person(PhantomSpec(), i, site=0).ages[0] for i in range(56)]) < 69
    assert np.mean([person(PhantomSpec(), i, site=2).ages[0] for i in range(56)]) > 72


@pytest.mark.parametrize("index", [0, 1, 2, FIRST_ILL, FIRST_ILL + 1, FIRST_ILL + 2])
def test_no_voxel_folds(index):
    lattice = image_lattice(PhantomSpec())
    for points in body(SPEC, index).points(lattice):
        assert float(jacobian_determinant(points, lattice.spacing).min()) > 0


@pytest.mark.parametrize("hippocampus", LOG_HIPPOCAMPUS_RANGE)
@pytest.mark.parametrize("ventricle", LOG_VENTRICLE_RANGE)
def test_no_voxel_folds_at_the_ends_of_the_range(hippocampus, ventricle):
    calibration = template().calibration
    flow = calibration.displacements([calibration.solve(hippocampus, ventricle)])
    lattice = Lattice.spanning((-70, -100, -64), (70, 70, 70), 3.0)
    moved = displace(lattice.nodes()[None], flow, calibration.lattice)[0]
    assert float(jacobian_determinant(moved, 3.0).min()) > 0


def test_targets_outside_the_table_are_an_error_of_ours():
    with pytest.raises(RuntimeError, match="outside the calibrated range"):
        template().calibration.solve(-5.0, 0.0)


@pytest.mark.parametrize("target", [(-0.5, 0.6), (0.2, -0.4), (-0.05, 0.03)])
def test_solved_strengths_give_the_volumes_asked_for(target):
    # Measured on a finer lattice (2 mm) than the one that was calibrated on (3 mm).
    founder = template()
    fine = dataclasses.replace(deep_lattice(), spacing=2.0, shape=(58, 76, 61))
    maps = torch.stack([founder.maps["hippocampus"], founder.maps["ventricle"]])[None]
    flow = founder.calibration.displacements([founder.calibration.solve(*target)])
    points = fine.nodes()[None]
    before = sample(maps, founder.lattice, points).double().sum(dim=(2, 3, 4))
    after = (
        sample(maps, founder.lattice, displace(points, flow, founder.calibration.lattice))
        .double()
        .sum(dim=(2, 3, 4))
    )
    np.testing.assert_allclose(torch.log(after / before)[0], target, atol=0.01)


@pytest.mark.parametrize("name", ["hippocampus", "ventricle"])
def test_three_millimetres_are_fine_enough_to_measure_on(name):
    founder, coarse = template(), deep_lattice()
    fine = Lattice.spanning(coarse.origin, (57.0, 60.0, 60.0), 1.0)
    volumes = [
        float(sample(founder.maps[name][None, None], founder.lattice, lattice.nodes()[None]).double().sum())
        * lattice.spacing**3
        for lattice in (coarse, fine)
    ]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.01)


def test_a_calibration_survives_storage():
    calibration = template().calibration
    again = Calibration.from_arrays(calibration.arrays())
    assert again.solve(-0.3, 0.4) == calibration.solve(-0.3, 0.4)
    assert again.lattice == calibration.lattice


def displacement_at(calibration, strengths, point):
    flow = calibration.displacements([strengths])
    return float(sample(flow, calibration.lattice, torch.tensor([[point]], dtype=torch.float32)).norm())


def test_atrophy_of_the_hippocampus_stays_there():
    calibration = template().calibration
    strengths = (calibration.solve(-0.4, 0.0)[0], 0.0)
    assert displacement_at(calibration, strengths, [20.0, -20.0, -14.0]) > 0.5
    for far in ([0.0, 50.0, 20.0], [40.0, -60.0, 40.0], [11.0, -18.0, 14.0]):
        assert displacement_at(calibration, strengths, far) < 0.25


def test_the_thalamus_is_spared_where_the_hippocampus_shrinks_by_a_third():
    spec = PhantomSpec(visits=(1, 1))
    well = person(spec, 0)
    shrunk = dataclasses.replace(
        well,
        trajectory=dataclasses.replace(
            well.trajectory, log_hippocampus=well.trajectory.log_hippocampus - 0.4
        ),
    )
    before, after = (Body(p, template()).volumes()[0] for p in (well, shrunk))
    assert after["hippocampus_ml"] / before["hippocampus_ml"] == pytest.approx(np.exp(-0.4), abs=0.06)
    assert after["deep_grey_ml"] / before["deep_grey_ml"] == pytest.approx(1.0, abs=0.02)
    assert after["ventricle_ml"] / before["ventricle_ml"] == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("index", [0, FIRST_ILL])
def test_a_person_ages_within_an_unchanging_skull(index):
    visits = body(SPEC, index).volumes()
    first, last = visits[0], visits[-1]
    assert last["intracranial_ml"] == pytest.approx(first["intracranial_ml"], rel=1e-3)
    assert last["hippocampus_ml"] < first["hippocampus_ml"]
    assert last["cortex_ml"] < first["cortex_ml"]
    assert last["ventricle_ml"] > first["ventricle_ml"]


def test_severity_begins_at_onset_and_ends_at_one():
    ill = person(SPEC, FIRST_ILL).trajectory
    assert ill.onset_age is not None
    assert (ill.severity(ill.onset_age - 1), ill.severity(ill.onset_age + 30)) == (0.0, 1.0)
    assert ill.severity(ill.onset_age + 5) == pytest.approx(0.5)
    assert person(SPEC, 0).trajectory.severity(90.0) == 0.0
    assert ill.cortex_fraction(80.0) < person(SPEC, 0).trajectory.cortex_fraction(80.0) < 1.0


def test_tissues_fill_the_head_after_every_change():
    maps = body(SPEC, FIRST_ILL).scene(image_lattice(PhantomSpec())).maps
    total = sum(maps[name] for name in TISSUES)
    assert float((total - maps["brain"]).abs().max()) < 0.06
    assert "sulcal" not in maps


def test_a_head_fits_into_the_image():
    for index in range(6):
        brain = body(SPEC, index).scene(image_lattice(PhantomSpec())).maps["brain"][0] > 0.5
        faces = [brain[0], brain[-1], brain[:, 0], brain[:, -1], brain[:, :, 0], brain[:, :, -1]]
        cut = sum(int(face.sum()) for face in faces)
        assert cut < 0.001 * int(brain.sum())


def test_the_slab_is_a_part_of_the_cube():
    cube, slab = image_lattice(PhantomSpec()), image_lattice(PhantomSpec(slab=1))
    assert slab.shape == (48, 48, 1)
    assert abs(slab.origin[2] - SLAB_CENTRE_MM) <= 2.0
    assert ((slab.origin[2] - cube.origin[2]) / 4.0) % 1 == 0
    padded = pad_slices(slab, 3)
    assert padded.shape == (48, 48, 7)
    assert padded.origin[2] == slab.origin[2] - 12.0
    one = body(SPEC, 0)
    whole = one.scene(cube).maps["cortex"][..., round((slab.origin[2] - cube.origin[2]) / 4.0)]
    torch.testing.assert_close(one.scene(slab).maps["cortex"][..., 0], whole, atol=1e-4, rtol=0)
