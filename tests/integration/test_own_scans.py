"""A hospital's own scans, from a BIDS folder to the report: bad files are put aside by name, and counted by reason."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from tests.support.commands import run_here, strict_json, write_config
from tests.support.hostile_files import write_nifti
from tests.support.shared import ROOT

SHAPE = (8, 8, 8)


def _head(rng, *, lesion):
    """Return int16 voxels: a bright ball of its own brightness, with a dark hole where it is diseased."""
    x, y, z = np.meshgrid(*(np.arange(size) - 3.5 for size in SHAPE), indexing="ij")
    head = (x**2 + y**2 + z**2 < 12) * rng.uniform(600, 900) + rng.uniform(0, 50, SHAPE)
    if lesion:
        head[3:5, 3:5, 3:5] = 0
    return head.astype(np.int16)


def _bids(root, *, seed, patients=12):
    """Write a tree of patients with one or two sessions; each fourth patient is diseased."""
    rng = np.random.default_rng(seed)
    root.mkdir()
    with (root / "participants.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["participant_id", "age", "anomaly"])
        for patient in range(patients):
            diseased = patient % 4 == 3
            table.writerow([f"sub-{patient:02d}", 50 + patient, int(diseased)])
            for session in range(1 + patient % 2):
                folder = root / f"sub-{patient:02d}" / f"ses-{session}" / "anat"
                name = f"sub-{patient:02d}_ses-{session}_T1w.nii.gz"
                write_nifti(folder / name, _head(rng, lesion=diseased), np.diag([2.0, 2.0, 2.0, 1.0]))
    return root


def _config(tmp_path, **sections):
    site = {
        "covariates": ["age"],
        "covariate_scale": {"age": [60.0, 20.0]},
        "labels": ["anomaly"],
        "preparation": {"shape": list(SHAPE), "spacing_mm": [2.0, 2.0, 2.0]},
    }
    sites = {name: {"root": name, **site} for name in ("north", "south")}
    return write_config(
        tmp_path,
        data={"kind": "nifti", "held_out": 0.4, "sites": sites},
        model={
            "family": "cvae",
            "latent_size": 2,
            "channels": [4, 4],
            "output": "sigmoid",
            "initial_scale": 0.1,
        },
        report={"bootstrap": 100, "panels": 2},
        **sections,
    )


def _truncate(root, count):
    for path in sorted(root.rglob("*.nii.gz"))[:count]:
        path.write_bytes(path.read_bytes()[:-40])


def _check(config, cache, *options):
    """Run the readiness check of the command line on its own."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "deploy",
            "data",
            "check",
            "--config",
            str(config),
            "--cache",
            str(cache),
            *options,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.slow
def test_own_scans_from_end_to_end(tmp_path, capsys):
    for seed, name in enumerate(("north", "south")):
        _bids(tmp_path / name, seed=seed)
    _truncate(tmp_path / "north", 1)
    config = _config(tmp_path, arms=["mean", "local", "federated", "federated-dp", "centralised"])
    fields = json.loads(config.read_text())
    for site in fields["data"]["sites"].values():
        site["quarantine_threshold"] = 0.1
    config.write_text(json.dumps(fields))
    assert run_here(config, tmp_path / "out") == 0
    said = capsys.readouterr()
    assert "data: north: refused records: truncated 1" in said.err
    report = strict_json((tmp_path / "out" / "report.json").read_text())
    assert report["model"]["input_shape"] == [1, *SHAPE]
    assert report["data_note"] == "The hospitals' own scans. Records refused as unusable: 1 at north."
    assert not report["synthetic"]
    assert {row["arm"] for row in report["results"]} >= {
        "federated",
        "federated-dp",
        "site-mean",
        "centralised",
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image" in page
    for text in (page, json.dumps({**report, "config": ""})):
        assert "sub-" not in text, "no patient and no file is named"

    checked = _check(config, tmp_path / "cache", "--site", "north", "--json")
    assert checked.returncode == 0
    (readiness,) = json.loads(checked.stdout)
    assert readiness["planned"] == {"records": 18, "patients": 12}
    assert readiness["usable"]["records"] == 17
    assert readiness["refused"] == {"truncated": 1}
    assert "sub-" not in checked.stdout
    detailed = _check(config, tmp_path / "cache", "--site", "north", "--details")
    assert "sub-00_ses-0_T1w.nii.gz" in detailed.stdout


def test_too_many_truncated_scans_end_with_5_counts_and_no_name(tmp_path, capsys):
    for seed, name in enumerate(("north", "south")):
        _bids(tmp_path / name, seed=seed, patients=8)
    _truncate(tmp_path / "south", 2)
    config = _config(tmp_path, arms=["federated"])
    assert run_here(config, tmp_path / "out") == 5
    said = capsys.readouterr()
    assert "data not ready: south: 2 of 12 planned records cannot be used (truncated 2)" in said.err
    assert "over the threshold of 5.0%" in said.err
    assert "sub-" not in said.err
    lines = (tmp_path / "cache" / "south" / "quarantine.tsv").read_text().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("truncated\t") for line in lines)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_link_out_of_the_data_root_is_put_aside(tmp_path, capsys):
    for seed, name in enumerate(("north", "south")):
        _bids(tmp_path / name, seed=seed, patients=8)
    secret = write_nifti(
        tmp_path / "elsewhere" / "secret.nii.gz", _head(np.random.default_rng(9), lesion=False)
    )
    link = next(iter(sorted((tmp_path / "south").rglob("*.nii.gz"))))
    link.unlink()
    link.symlink_to(secret)
    assert run_here(_config(tmp_path, arms=["federated"]), tmp_path / "out") == 5
    assert "outside-data-root 1" in capsys.readouterr().err
