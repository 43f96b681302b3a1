"""Founders: plausible anatomy from template and label maps, cached by content, with readable refusals."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from tests.support.phantoms import CACHE, label_head, template, write_labels
from tests.support.shared import shared_data
from vae.data.phantom import founder as founders
from vae.data.phantom.deform import Lattice, displace, jacobian_determinant
from vae.data.phantom.founder import TISSUES, founder_names, load_founder, sources_digest, stack
from vae.data.phantom.sources import MNI_BRAIN_CENTRE_MM, read_source
from vae.data.phantom.spec import DISEASES, PhantomSpec
from vae.errors import DataError


def millilitres(founder, name):
    return float(founder.maps[name].double().sum()) * founder.lattice.spacing**3 / 1000


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("brain", 1300, 1800),
        ("cortex", 500, 900),
        ("white", 400, 700),
        ("hippocampus", 4.5, 9.5),
        ("ventricle", 10, 45),
        ("deep", 25, 70),
    ],
)
def test_the_template_has_the_volumes_of_a_person(name, low, high):
    assert low < millilitres(template(), name) < high


def test_tissues_share_the_brain_between_them():
    maps = template().maps
    total = sum(maps[name] for name in TISSUES)
    assert float((total - maps["brain"]).abs().max()) < 0.06, "half precision and clipping, no more"
    for name in TISSUES:
        assert float(maps[name].min()) >= -1e-3
        assert float(maps[name].max()) <= 1.01


@pytest.mark.parametrize("name", ["hippocampus", "ventricle", "cortex"])
def test_left_and_right_are_alike_in_the_template(name):
    founder = template()
    x = founder.lattice.nodes()[..., 0]
    left = float(founder.maps[name][x < 0].double().sum())
    right = float(founder.maps[name][x > 0].double().sum())
    assert left == pytest.approx(right, rel=0.1)


def test_maps_that_are_derived_are_there():
    maps = template().maps
    assert {f"pattern_{disease}" for disease in DISEASES} <= set(maps)
    assert 0 <= float(maps["sulcal"].min()) <= float(maps["sulcal"].max()) <= 1.001
    assert stack(template(), ("cortex", "white")).shape == (1, 2, *template().lattice.shape)


def test_the_cache_gives_what_was_made(tmp_path, monkeypatch):
    folder = tmp_path / "heads"
    folder.mkdir()
    write_labels(folder / "head.nii.gz", label_head())
    spec = PhantomSpec(founders=str(folder))
    first = load_founder(spec, "head", cache=tmp_path / "one")
    founders._load.cache_clear()
    monkeypatch.setattr(founders, "_prepare", lambda *a, **k: pytest.fail("prepared twice"))
    again = load_founder(spec, "head", cache=tmp_path / "one")
    assert first is not again
    for name, value in first.maps.items():
        assert np.array_equal(value, again.maps[name])
    assert np.array_equal(first.calibration.log_volumes, again.calibration.log_volumes)
    assert [path.suffix for path in (tmp_path / "one" / "founders").iterdir()] == [".npz"], (
        "no part is left behind"
    )


def test_other_content_is_another_founder(tmp_path):
    labels = label_head().copy()
    write_labels(tmp_path / "head.nii.gz", labels)
    spec = PhantomSpec(founders=str(tmp_path))
    before = sources_digest(spec)
    labels[50, 50, 50] = 41
    labels[0, 0, 0] = 24
    write_labels(tmp_path / "head.nii.gz", labels)
    founders._content.cache_clear()
    assert sources_digest(spec) != before
    assert sources_digest(spec) != sources_digest(PhantomSpec())


def test_a_label_map_keeps_its_volumes_however_it_is_stored(tmp_path):
    labels = label_head()
    write_labels(tmp_path / "a.nii.gz", labels)
    flipped = np.diag([-2.0, 2.0, 2.0, 1.0])
    flipped[:3, 3] = [labels.shape[0] + 40.0, -labels.shape[1], -labels.shape[2] + 30.0]
    write_labels(tmp_path / "b.nii.gz", labels[::-1], flipped)
    a, b = (read_source(name, (tmp_path / f"{name}.nii.gz",)) for name in "ab")
    for name in ("hippocampus", "ventricle", "white"):
        true = a.tissues[name].sum() * 8 / 1000
        assert true == pytest.approx(b.tissues[name].sum() * 8 / 1000, rel=0.03)
    number = np.isin(labels, (17, 53)).sum() * 8 / 1000
    assert a.tissues["hippocampus"].sum() * 8 / 1000 == pytest.approx(number, rel=0.03)


def test_a_tilted_head_is_set_upright(tmp_path):
    labels = label_head()
    write_labels(tmp_path / "straight.nii.gz", labels)
    angle = 0.3
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-size for size in labels.shape]
    write_labels(tmp_path / "tilted.nii.gz", labels, tilt @ affine)
    straight, tilted = (read_source(n, (tmp_path / f"{n}.nii.gz",)) for n in ("straight", "tilted"))

    def centre(source, name):
        return source.lattice.nodes().numpy()[source.tissues[name] > 0].mean(axis=0)

    for name in ("hippocampus", "ventricle", "deep"):
        assert np.linalg.norm(centre(straight, name) - centre(tilted, name)) < 1.5
    brain = (
        sum(straight.tissues[name] for name in ("cortex", "white", "deep", "hippocampus", "ventricle")) > 0
    )
    assert np.linalg.norm(straight.lattice.nodes().numpy()[brain].mean(axis=0) - MNI_BRAIN_CENTRE_MM) < 0.5


def test_train_and_held_out_founders_are_told_apart(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"")
    whole = PhantomSpec(founders=str(tmp_path))
    assert founder_names(whole) == (("a", "b", "c"), ("a", "b", "c"))
    split = PhantomSpec(founders=str(tmp_path), founder_subset=("a", "b"), held_out_founders=("c",))
    assert founder_names(split) == (("a", "b"), ("c",))


def refusal(tmp_path, labels=None, content=None):
    path = tmp_path / "head.nii.gz"
    if labels is None:
        path.write_bytes(content)
    else:
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), path)
    with pytest.raises(DataError) as caught:
        read_source("head", (path,))
    return str(caught.value)


def test_unusable_label_maps_are_refused_by_name(tmp_path):
    assert "not a readable NIfTI" in refusal(tmp_path, content=b"no image at all")
    assert "must be three axes" in refusal(tmp_path, np.zeros((4, 4, 4, 2), np.int16))
    assert "must be three axes of at most 512" in refusal(tmp_path, np.zeros((600, 2, 2), np.int16))
    assert "no whole numbers" in refusal(tmp_path, np.full((4, 4, 4), 2.5, np.float32))
    assert "no voxel of cortex" in refusal(tmp_path, np.zeros((4, 4, 4), np.int16))


def test_missing_folders_and_founders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.nii or \.nii\.gz label map"):
        founder_names(PhantomSpec(founders=str(tmp_path / "nowhere")))
    (tmp_path / "a.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match="lacks b; it has a"):
        founder_names(PhantomSpec(founders=str(tmp_path), founder_subset=("a", "b")))


def test_real_label_maps_become_founders():
    folder = shared_data("labelmaps")
    spec = PhantomSpec(founders=str(folder), founder_subset=("founder_09",))
    assert len(founder_names(PhantomSpec(founders=str(folder)))[0]) == 10
    founder = load_founder(spec, "founder_09", cache=CACHE)
    assert 1000 < millilitres(founder, "brain") < 1900
    assert 5 < millilitres(founder, "hippocampus") < 12
    assert 4 < millilitres(founder, "pattern_pca") < 100
    flow = founder.calibration.displacements([founder.calibration.solve(-0.9, 0.95)])
    lattice = Lattice.spanning((-70, -100, -64), (70, 70, 70), 3.0)
    moved = displace(lattice.nodes()[None], flow, founder.calibration.lattice)[0]
    assert float(jacobian_determinant(moved, 3.0).min()) > 0, "nothing folds at the end of the range"
