"""Virtual hospitals on disk: the same bytes everywhere, real BIDS files, cohorts that say what they hold."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.support.phantoms import CACHE, SMALL, label_head, write_labels
from vae.data.cohort import concatenate
from vae.data.nifti import NiftiSource, open_nifti
from vae.data.phantom import bids, generate
from vae.data.phantom.disease import hypometabolic_weight
from vae.data.phantom.generate import MARKER, cohort_key, open_phantom, write_bids
from vae.data.phantom.prepared import PET_FULL_SCALE, scale_image
from vae.data.phantom.spec import PhantomSpec
from vae.data.prepare import Preparation
from vae.errors import DataError

ROOT = Path(__file__).resolve().parents[3]
SLAB = PhantomSpec(slab=1, sites=2, **SMALL)
VOLUME = PhantomSpec(
    **SMALL | {"patients_per_site": 2, "test_patients_per_site": 1, "degrees": (30,)},
    channels=("pet", "t1w"),
    diseased_patients_per_site=1,
)


def digests(root):
    """SHA-256 of every file of a tree."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A tree of whole volumes, PET and T1w, one diseased person."""
    root = tmp_path_factory.mktemp("phantom") / "tree"
    write_bids(VOLUME, root, site=0, cache=CACHE)
    return root


@pytest.fixture(scope="module")
def slab_site():
    """Site 1 of the slab cohort."""
    return open_phantom(SLAB, site=0, cache=CACHE)


def test_the_tree_is_named_as_bids_says(tree):
    files = digests(tree)
    for expected in (
        "dataset_description.json",
        "participants.tsv",
        "participants.json",
        "sub-001/sub-001_sessions.tsv",
        "sub-001/ses-01/anat/sub-001_ses-01_T1w.nii.gz",
        "sub-001/ses-01/pet/sub-001_ses-01_trc-18FFDG_pet.nii.gz",
        "derivatives/phantom/dataset_description.json",
        "derivatives/phantom/sub-001/ses-01/anat/sub-001_ses-01_desc-brain_mask.nii.gz",
        "derivatives/phantom/sub-001/ses-01/sub-001_ses-01_factors.json",
        "derivatives/phantom/sub-005/ses-01/pet/sub-005_ses-01_trc-18FFDG_desc-ad30_pet.nii.gz",
    ):
        assert expected in files
    assert not any(".incoming" in name or name.endswith(".new") for name in files)


def test_everything_says_synthetic(tree):
    for path in ("dataset_description.json", "derivatives/phantom/dataset_description.json"):
        description = json.loads((tree / path).read_text())
        assert "synthetic" in description["GeneratedBy"][0]["Description"]
        assert "Synthetic" in description["Name"]
    assert nibabel.load(tree / bids.image_path("t1w", "sub-001", 0)).header["descrip"].item() == b"synthetic"
    for path in tree.glob("derivatives/phantom/sub-*/ses-*/*_factors.json"):
        assert json.loads(path.read_text())["synthetic"] is True


def test_images_lie_where_their_header_says(tree):
    image = nibabel.load(tree / bids.image_path("pet", "sub-001", 0))
    assert image.shape == (48, 48, 48)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header.get_zooms() == (4.0, 4.0, 4.0)
    centre = image.affine @ [23.5, 23.5, 23.5, 1]
    np.testing.assert_allclose(centre[:3], [0, -16, 8], atol=1e-4)


def test_tables_hold_the_true_factors(tree):
    people = bids.read_table((tree / "participants.tsv").read_text())
    assert [row["group"] for row in people] == ["train"] * 2 + ["reference"] * 2 + ["test"] + ["diseased"]
    assert set(people[0]) == set(json.loads((tree / "participants.json").read_text()))
    assert {row["site"] for row in people} == {"site-1"}
    assert people[-1]["diagnosis"] == "AD"
    for row in people:
        label = row["participant_id"]
        visits = bids.read_table((tree / label / f"{label}_sessions.tsv").read_text())
        assert len(visits) == int(row["visits"])
        factors = json.loads((tree / "derivatives/phantom" / bids.factors_path(label, 0)).read_text())
        assert float(visits[0]["hippocampus_ml"]) == factors["hippocampus_ml"] > 2.0
        assert float(row["age"]) == factors["age"]
        assert (factors["severity"] > 0) == (row["diagnosis"] == "AD")


def test_the_stored_brain_volume_is_that_of_the_mask(tree):
    factors = json.loads((tree / "derivatives/phantom" / bids.factors_path("sub-001", 0)).read_text())
    mask = nibabel.load(tree / "derivatives/phantom" / bids.mask_path("sub-001", 0, "brain"))
    volume = np.asarray(mask.dataobj).sum() * 4.0**3 / 1000
    assert volume == pytest.approx(factors["intracranial_ml"], rel=0.02)


def test_another_process_with_more_threads_writes_the_same_bytes(tmp_path):
    write_bids(SLAB, tmp_path / "here", site=1, cache=CACHE)
    program = (
        "import sys, torch; torch.set_num_threads(2)\n"
        "from pathlib import Path\n"
        "from vae.data.phantom.generate import write_bids\n"
        "from vae.data.phantom.spec import PhantomSpec\n"
        f"spec = {SLAB!r}\n"
        "write_bids(spec, Path(sys.argv[1]), site=1, cache=Path(sys.argv[2]))\n"
    )
    there = tmp_path / "there"
    command = [sys.executable, "-c", program, str(there), str(CACHE)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=120)
    assert digests(tmp_path / "here") == digests(there)


def test_seed_and_site_change_every_image_and_the_number_of_sites_none(tmp_path, slab_site):
    more = open_phantom(dataclasses.replace(SLAB, sites=7), site=0, cache=CACHE)
    assert more.train.fingerprint() == slab_site.train.fingerprint()
    assert cohort_key(SLAB) == cohort_key(dataclasses.replace(SLAB, sites=7))
    other_site = open_phantom(SLAB, site=1, cache=CACHE)
    other_seed = open_phantom(dataclasses.replace(SLAB, seed=5), site=0, cache=CACHE)
    for other in (other_site, other_seed):
        assert np.abs(other.train.values[0] - slab_site.train.values[0]).max() > 0.1


def test_other_scanners_see_the_same_people():
    spec = dataclasses.replace(SLAB, scanner_offset=4, patients_per_site=2, test_patients_per_site=1)
    same = open_phantom(dataclasses.replace(spec, scanner_offset=0), site=0, cache=CACHE)
    other = open_phantom(spec, site=0, cache=CACHE)
    assert np.array_equal(same.train.covariates, other.train.covariates)
    assert np.array_equal(same.test.labels["brain"], other.test.labels["brain"])
    assert not np.array_equal(same.train.values, other.train.values)


def test_a_complete_tree_is_left_alone(tree, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    monkeypatch.setattr(generate, "scan_person", lambda *a, **k: pytest.fail("scanned again"))
    write_bids(VOLUME, tree, site=0, cache=CACHE)
    assert before == {path: path.stat().st_mtime_ns for path in tree.rglob("*")}


def test_an_interrupted_call_is_taken_up_where_it_stopped(tmp_path, monkeypatch):
    root, whole = tmp_path / "cut", tmp_path / "whole"
    scan, scanned = generate.scan_person, []

    def dies_at_the_third(*arguments, **options):
        scanned.append(arguments[1].label)
        if len(scanned) == 3:
            raise KeyboardInterrupt
        return scan(*arguments, **options)

    monkeypatch.setattr(generate, "scan_person", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write_bids(SLAB, root, site=0, cache=CACHE)
    assert json.loads((root / MARKER).read_text())["complete"] is False
    write_bids(SLAB, root, site=0, cache=CACHE)
    assert len(scanned) == len(set(scanned)) + 1, "only the third person is scanned twice"
    monkeypatch.setattr(generate, "scan_person", scan)
    write_bids(SLAB, whole, site=0, cache=CACHE)
    assert digests(root) == digests(whole)


def test_a_person_is_there_wholly_or_not_at_all(tmp_path, monkeypatch):
    root, put, written = tmp_path / "tree", generate._put, []

    def disk_full(path, content):
        written.append(path)
        if len(written) == 4:
            raise OSError("No space left on device")
        put(path, content)

    monkeypatch.setattr(generate, "_put", disk_full)
    with pytest.raises(OSError, match="No space"):
        write_bids(SLAB, root, site=0, cache=CACHE)
    assert not list(root.glob("sub-*"))


def test_foreign_folders_are_never_written_into(tmp_path, tree):
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(DataError, match="is not empty and holds no synthetic cohort"):
        write_bids(SLAB, tmp_path, site=0, cache=CACHE)
    with pytest.raises(DataError, match="holds another synthetic cohort"):
        write_bids(SLAB, tree, site=0, cache=CACHE)
    with pytest.raises(DataError, match="holds another synthetic cohort"):
        write_bids(dataclasses.replace(VOLUME, sites=5), tree, site=1, cache=CACHE)


@pytest.mark.parametrize("site", [-1, 2])
def test_a_site_that_is_not_there_is_refused(site, tmp_path):
    with pytest.raises(ValueError, match=r"the spec has sites 0\.\.1"):
        write_bids(SLAB, tmp_path / "x", site=site, cache=CACHE)
    with pytest.raises(ValueError, match=r"the spec has sites 0\.\.1"):
        open_phantom(SLAB, site=site, cache=CACHE)


def test_progress_is_told_person_by_person(tmp_path):
    told = []
    write_bids(
        SLAB, tmp_path / "x", site=0, cache=CACHE, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(i + 1, 7) for i in range(7)]


def test_the_cohorts_of_a_slab(slab_site):
    train, reference, test = slab_site.train, slab_site.reference, slab_site.test
    assert train.values.shape[1:] == (1, 48, 48)
    assert (train.num_patients, reference.num_patients, test.num_patients) == (3, 2, 2)
    assert not set(train.patients) & set(test.patients)
    assert not set(reference.patients) & (set(train.patients) | set(test.patients))
    for cohort in (train, reference, test):
        assert isinstance(cohort.values, np.memmap)
        assert not cohort.values.flags.writeable
        assert cohort.values.dtype == np.float32
        assert cohort.values.min() >= 0.0
        assert 0.5 < cohort.values.max() <= 1.0
        assert cohort.covariate_names == ("age", "sex")
        assert set(np.unique(cohort.covariates[:, 1])) <= {0.0, 1.0}
        assert np.all(np.abs(cohort.covariates[:, 0]) < 1.5)
    assert concatenate([train, open_phantom(SLAB, site=1, cache=CACHE).train], name="all").num_patients == 6


def test_the_test_cohort_pairs_each_simulated_scan_with_its_original(slab_site):
    test = slab_site.test
    labels, values = test.labels, test.values
    original = labels["subject_scan"]
    healthy = labels["anomaly"] == 0
    assert np.array_equal(original[healthy], np.flatnonzero(healthy))
    assert np.all(healthy[original])
    assert set(labels["degree"].tolist()) == {0.0, 10.0, 50.0}
    assert np.array_equal(labels["degree"] > 0, labels["anomaly"] == 1)
    patient = np.repeat(np.arange(test.num_patients), np.diff(test.offsets))
    assert np.array_equal(patient, patient[original]), "a simulated scan belongs to the same patient"
    assert np.array_equal(test.covariates, test.covariates[original])
    change = values[original, 0] - values[:, 0]
    assert np.all(change[healthy] == 0)
    lesion = labels["lesion"]
    assert set(np.unique(lesion)) == {0.0, 1.0}
    assert np.all(lesion[healthy] == 0)
    for row in np.flatnonzero(~healthy):
        inside = change[row][lesion[row] > 0]
        assert inside.size > 20
        loss = inside.mean() / values[original[row], 0][lesion[row] > 0].mean()
        # Smoothing by 5 mm spreads a part of the loss over the edge of a small region.
        assert 0.4 < 100 * loss / labels["degree"][row] < 1.0
        assert np.abs(change[row][labels["brain"][row] == 0]).max() < 0.02


def test_simulated_files_hold_the_published_formula(tree):
    label = "sub-005"
    derived = tree / "derivatives/phantom"
    healthy = np.asarray(nibabel.load(tree / bids.image_path("pet", label, 0)).dataobj)
    ill = np.asarray(nibabel.load(derived / bids.image_path("pet", label, 0, desc="ad30")).dataobj)
    mask = np.asarray(nibabel.load(derived / bids.mask_path(label, 0, "ad30")).dataobj, dtype=np.float32)
    expected = healthy * (1 - 0.3 * hypometabolic_weight(mask[None], spacing=4.0)[0])
    np.testing.assert_allclose(ill, expected, atol=2 * healthy.max() / 32_000)


def test_whole_volumes_with_two_channels():
    site = open_phantom(VOLUME, site=0, cache=CACHE)
    assert site.train.values.shape[1:] == (2, 48, 48, 48)
    assert site.test.labels["lesion"].shape[1:] == (48, 48, 48)
    simulated = np.flatnonzero(site.test.labels["anomaly"] == 1)
    original = site.test.labels["subject_scan"][simulated]
    assert np.array_equal(site.test.values[simulated, 1], site.test.values[original, 1]), "T1w is untouched"
    assert not np.array_equal(site.test.values[simulated, 0], site.test.values[original, 0])
    assert site.train.num_patients + site.reference.num_patients + site.test.num_patients == 5, (
        "no diseased person"
    )


def test_without_pet_white_matter_lesions_are_the_anomaly():
    spec = dataclasses.replace(SLAB, channels=("t1w", "t2w"), degrees=(2, 8), slab=3)
    test = open_phantom(spec, site=0, cache=CACHE).test
    labels = test.labels
    assert test.values.shape[1:] == (2, 48, 48, 3)
    ill = np.flatnonzero(labels["degree"] == 8)
    less = np.flatnonzero(labels["degree"] == 2)
    assert labels["lesion"][ill].sum() > 2.5 * labels["lesion"][less].sum() > 0
    change = test.values[ill] - test.values[labels["subject_scan"][ill]]
    inside = labels["lesion"][ill] > 0
    assert change[:, 0][inside].mean() < -0.05
    assert change[:, 1][inside].mean() > 0.05


def test_the_cache_is_read_and_not_made_again(slab_site, monkeypatch):
    monkeypatch.setattr(generate, "write_bids", lambda *a, **k: pytest.fail("written again"))
    monkeypatch.setattr(generate, "prepare", lambda *a, **k: pytest.fail("prepared again"))
    assert open_phantom(SLAB, site=0, cache=CACHE).train.fingerprint() == slab_site.train.fingerprint()


def test_a_half_prepared_folder_is_prepared_again(slab_site, tmp_path):
    spec = dataclasses.replace(SLAB, seed=9, patients_per_site=2, test_patients_per_site=1)
    first = open_phantom(spec, site=0, cache=CACHE).train.fingerprint()
    folder = CACHE / "phantom" / cohort_key(spec)[:20] / "site-1" / "prepared"
    (folder / "complete").unlink()
    (folder / "train" / "values.npy").write_bytes(b"half of it")
    assert open_phantom(spec, site=0, cache=CACHE).train.fingerprint() == first


def test_intensities_need_nothing_but_the_scan():
    values = np.linspace(0, 4000, 1000, dtype=np.float32).reshape(10, 10, 10)
    scaled = scale_image("t1w", values)
    assert scaled.max() == 1.0
    np.testing.assert_allclose(scale_image("t1w", 3 * values), scaled, atol=1e-6)
    assert scale_image("pet", np.array([0.5 * PET_FULL_SCALE], dtype=np.float32)).item() == pytest.approx(0.5)
    assert scale_image("t2w", np.zeros((2, 2, 2), dtype=np.float32)).max() == 0.0


def test_the_tree_reads_as_a_hospitals_own(tree, tmp_path):
    preparation = Preparation(shape=(48, 48, 48), window=(0.0, PET_FULL_SCALE))
    source = NiftiSource(root=str(tree), suffixes=("pet",), preparation=preparation)
    cohort, _ = open_nifti(source, name="site-1", cache=tmp_path)
    assert cohort.num_patients == 6
    ours = open_phantom(VOLUME, site=0, cache=CACHE).train
    np.testing.assert_allclose(cohort.values[0, 0], ours.values[0, 0], atol=1e-4)


def test_founders_split_train_from_test(tmp_path):
    folder = tmp_path / "heads"
    folder.mkdir()
    write_labels(folder / "one.nii.gz", label_head())
    write_labels(folder / "two.nii.gz", label_head()[::-1])
    spec = dataclasses.replace(
        SLAB, founders=str(folder), founder_subset=("one",), held_out_founders=("two",)
    )
    write_bids(spec, tmp_path / "tree", site=0, cache=CACHE)
    rows = bids.read_table((tmp_path / "tree" / "participants.tsv").read_text())
    assert {row["founder"] for row in rows if row["group"] == "train"} == {"one"}
    assert {row["founder"] for row in rows if row["group"] != "train"} == {"two"}
    assert cohort_key(spec) != cohort_key(SLAB)
