"""Preparation: axes, spacing, intensity, size; and a cache that decodes a scan once."""

from __future__ import annotations

import json
import stat

import numpy as np
import pytest

from tests.support.hostile_files import scan
from vae.data.cache import Cache
from vae.data.limits import Limits
from vae.data.prepare import Preparation, Volume, intensity_range, prepare_volume
from vae.data.quarantine import Reason, RefusedFileError

PLAIN = Preparation(shape=(4, 5, 6), window=(0.0, 119.0))


def volume(values: np.ndarray, affine: np.ndarray | None = None) -> Volume:
    matrix = np.eye(4) if affine is None else affine
    sizes = np.linalg.norm(matrix[:3, :3], axis=0)
    return Volume(
        values=np.ascontiguousarray(values, np.float32),
        affine=matrix.astype(np.float64),
        dtype="int16",
        voxel_mm=(float(sizes[0]), float(sizes[1]), float(sizes[2])),
    )


def test_a_scan_on_the_grid_of_the_study_is_only_scaled():
    values = np.arange(120).reshape(4, 5, 6)
    prepared = prepare_volume(volume(values), PLAIN)
    assert prepared.dtype == np.float32
    assert np.allclose(prepared, values / 119.0, atol=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (-1, -1, -1)])
def test_however_a_scan_is_stored_its_axes_end_right_anterior_superior(order, flips):
    values = np.arange(120).reshape(4, 5, 6)
    stored = np.transpose(values[:: flips[0], :: flips[1], :: flips[2]], order)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, world in enumerate(order):  # stored axis `axis` runs along world axis `world`
        affine[world, axis] = flips[world]
    assert np.allclose(prepare_volume(volume(stored, affine), PLAIN), values / 119.0, atol=1e-6)


def test_resampling_keeps_a_ramp_a_ramp():
    # a ramp of 1 per 2 mm voxel along x; at 1 mm it rises by one half per voxel
    values = np.broadcast_to(np.arange(8.0)[:, None, None], (8, 8, 8))
    study = Preparation(shape=(15, 15, 15), spacing_mm=(1.0, 1.0, 1.0), window=(0.0, 7.0))
    prepared = prepare_volume(volume(values, np.diag([2.0, 2.0, 2.0, 1.0])), study)
    assert np.allclose(np.diff(prepared, axis=0), 0.5 / 7.0, atol=1e-5)


def test_small_scans_are_padded_with_zero_and_large_ones_cut_around_the_centre():
    values = np.full((2, 3, 10), 119.0)
    values[:, :, 5] = 0.0
    prepared = prepare_volume(volume(values), PLAIN)
    assert np.flatnonzero(prepared.any(axis=(1, 2))).tolist() == [1, 2]  # 2 of 4, in the middle
    assert (prepared[1, 2] == [1, 1, 1, 0, 1, 1]).all()  # 10 -> 6 keeps 2..7: voxel 5 is the fourth


def test_a_slab_is_the_middle_axial_slice():
    values = np.arange(5.0)[None, None, :] * np.ones((4, 4, 1))
    study = Preparation(shape=(4, 4), slab=True, window=(0.0, 4.0))
    assert np.array_equal(prepare_volume(volume(values), study), np.full((4, 4), 0.5, np.float32))


def test_percentiles_are_those_of_the_one_scan_and_clip():
    values = np.arange(1000.0).reshape(10, 10, 10)
    low, high = intensity_range(values.astype(np.float32), Preparation(shape=(10, 10, 10)))
    assert (low, high) == pytest.approx((0.005 * 999, 0.995 * 999))
    prepared = prepare_volume(volume(values), Preparation(shape=(10, 10, 10)))
    assert (prepared.min(), prepared.max()) == (0.0, 1.0)
    # gain and offset of the scanner cancel
    assert np.allclose(
        prepare_volume(volume(3 * values + 50), Preparation(shape=(10, 10, 10))), prepared, atol=1e-5
    )


@pytest.mark.parametrize(
    ("values", "study", "reason"),
    [
        (np.full((4, 4, 4), 7.0), Preparation(shape=(4, 4, 4)), Reason.CONSTANT),
        (np.full((4, 4, 4), 7.0), Preparation(shape=(4, 4, 4), window=(10.0, 20.0)), Reason.CONSTANT),
        (np.full((4, 4, 4), 15.0), Preparation(shape=(4, 4, 4), window=(10.0, 20.0)), Reason.CONSTANT),
        (np.full((4, 4, 4), np.nan), Preparation(shape=(4, 4, 4)), Reason.NON_FINITE),
        (np.where(np.arange(64).reshape(4, 4, 4) == 3, np.inf, 1.0), PLAIN, Reason.NON_FINITE),
    ],
)
def test_images_without_content_are_refused(values, study, reason):
    with pytest.raises(RefusedFileError) as caught:
        prepare_volume(volume(values), study)
    assert caught.value.reason is reason


def test_thick_voxels_cannot_blow_up_when_resampled():
    # 8 x 100 mm at 0.5 mm = 1600 voxels along each axis: 4.1e9, over the limit of 512^3 = 1.3e8
    study = Preparation(shape=(8, 8, 8), spacing_mm=(0.5, 0.5, 0.5), window=(0.0, 1.0))
    with pytest.raises(RefusedFileError) as caught:
        prepare_volume(
            volume(np.random.default_rng(0).random((8, 8, 8)), np.diag([100.0, 100.0, 100.0, 1])), study
        )
    assert caught.value.reason is Reason.TOO_LARGE


def test_the_limit_holds_for_the_grid_that_the_transforms_really_make():
    # sheared, 12^3 voxels of about 2 mm: 41 x 30 x 24 = 29520 voxels of 1 mm; the sizes alone give 18029
    shear = np.array([[2.0, 1.2, 0, 0], [0, 2.0, 0.9, 0], [0.4, 0, 2.0, 0], [0, 0, 0, 1]])
    study = Preparation(shape=(70, 70, 70), spacing_mm=(1.0, 1.0, 1.0), window=(0.0, 600.0))
    item = volume(scan(1, (12, 12, 12)) + 1, shear)
    prepared = prepare_volume(item, study)
    inside = np.count_nonzero(prepared)  # every voxel of the resampled grid is at least 1, padding is 0
    assert inside == 29520
    with pytest.raises(RefusedFileError):
        prepare_volume(item, study, limits=Limits(max_voxels=inside - 1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": (4, 4)}, "shape needs 3 entries"),
        ({"shape": (4, 4, 4), "slab": True}, "shape needs 2 entries"),
        ({"shape": (4, 0, 4)}, "shape must be positive"),
        ({"shape": (4, 4, 4), "window": (2.0, 2.0)}, "low < high"),
        ({"shape": (4, 4, 4), "window": (0.0, float("inf"))}, "low < high"),
        ({"shape": (4, 4, 4), "percentiles": (99.0, 1.0)}, "percentiles must be ascending"),
        ({"shape": (4, 4, 4), "spacing_mm": (1.0, -1.0, 1.0)}, "spacing_mm must be positive"),
    ],
)
def test_a_preparation_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Preparation(**fields)


def test_every_field_of_a_preparation_is_in_its_hash():
    base = Preparation(shape=(4, 4, 4))
    others = [
        Preparation(shape=(4, 4, 5)),
        Preparation(shape=(4, 4, 4), spacing_mm=(1.0, 1.0, 1.0)),
        Preparation(shape=(4, 4, 4), window=(0.0, 1.0)),
        Preparation(shape=(4, 4, 4), percentiles=(1.0, 99.0)),
        Preparation(shape=(4, 4), slab=True),
    ]
    assert len({item.hash() for item in [base, *others]}) == 6
    assert base.hash() == Preparation(shape=(4, 4, 4)).hash()


class Loads:
    """Counts how often a scan is decoded."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.count = values, 0

    def __call__(self) -> Volume:
        self.count += 1
        return volume(self.values)


def test_a_scan_is_decoded_once(tmp_path):
    cache, loads = Cache(folder=tmp_path / "c", preparation=PLAIN), Loads(scan(1))
    first = cache.fetch("a" * 64, loads)
    assert Cache(folder=tmp_path / "c", preparation=PLAIN).fetch("a" * 64, loads) == first
    assert loads.count == 1
    assert np.array_equal(np.load(cache.path("a" * 64)), prepare_volume(volume(scan(1)), PLAIN))


def test_another_preparation_or_content_is_decoded_again(tmp_path):
    loads = Loads(scan(1))
    Cache(folder=tmp_path, preparation=PLAIN).fetch("a" * 64, loads)
    Cache(folder=tmp_path, preparation=PLAIN).fetch("b" * 64, loads)
    Cache(folder=tmp_path, preparation=Preparation(shape=(3, 3, 3))).fetch("a" * 64, loads)
    assert loads.count == 3


@pytest.mark.parametrize("damage", ["cut", "shape", "facts", "no facts"])
def test_a_damaged_cache_file_is_made_again(tmp_path, damage):
    cache, loads = Cache(folder=tmp_path, preparation=PLAIN), Loads(scan(1))
    facts = cache.fetch("a" * 64, loads)
    path = cache.path("a" * 64)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-8])
    elif damage == "shape":
        np.save(path, np.zeros((2, 2, 2), np.float32))
    elif damage == "facts":
        path.with_suffix(".json").write_text("{")
    else:
        path.with_suffix(".json").unlink()
    assert cache.fetch("a" * 64, loads) == facts
    assert loads.count == 2
    assert path.read_bytes() == whole


def test_a_scan_refused_for_its_voxels_is_not_decoded_again(tmp_path):
    cache, loads = Cache(folder=tmp_path, preparation=PLAIN), Loads(np.full((4, 4, 4), np.nan))
    for _ in range(2):
        with pytest.raises(RefusedFileError) as caught:
            cache.fetch("a" * 64, loads)
        assert caught.value.reason is Reason.NON_FINITE
    assert loads.count == 1


def test_a_crash_while_preparing_leaves_nothing_behind(tmp_path):
    cache = Cache(folder=tmp_path, preparation=PLAIN)

    def crash() -> Volume:
        raise MemoryError

    with pytest.raises(MemoryError):
        cache.fetch("a" * 64, crash)
    assert list(tmp_path.rglob("*.*")) == []
    assert cache.fetch("a" * 64, Loads(scan(1))).shape == (12, 14, 10)


def test_cache_files_are_readable_by_their_owner_alone_and_name_nobody(tmp_path):
    cache = Cache(folder=tmp_path / "c", preparation=PLAIN)
    cache.fetch("a" * 64, Loads(scan(1)))
    cache.assemble([["a" * 64]])
    for path in (tmp_path / "c").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    assert set(json.loads(cache.path("a" * 64).with_suffix(".json").read_text())) == {
        "voxels_hash",
        "shape",
        "voxel_mm",
        "dtype",
        "intensity",
        "affine",
    }


def test_records_are_assembled_into_a_read_only_memory_map(tmp_path):
    cache = Cache(folder=tmp_path, preparation=PLAIN)
    for seed, key in enumerate("abcd"):
        cache.fetch(key * 64, Loads(scan(seed)))
    values = cache.assemble([["a" * 64, "b" * 64], ["c" * 64, "d" * 64]])
    assert isinstance(values, np.memmap)
    assert values.shape == (2, 2, 4, 5, 6)
    assert np.array_equal(values[1, 0], prepare_volume(volume(scan(2)), PLAIN))
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 0
    files = sorted((tmp_path / "cohorts").iterdir())
    written = files[0].stat().st_mtime_ns
    cache.assemble([["a" * 64, "b" * 64], ["c" * 64, "d" * 64]])
    assert sorted((tmp_path / "cohorts").iterdir()) == files
    assert files[0].stat().st_mtime_ns == written
