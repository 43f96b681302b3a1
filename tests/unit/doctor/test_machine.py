"""Checks of the machine: what is free, flushed, open, installed and switched off, and what a GPU says."""

import os
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from deploy.doctor import machine
from deploy.doctor.mounts import mount_of
from tests.support.doctors import look, only, visit

Usage = namedtuple("Usage", "total used free")
GIB = 2**30


@pytest.fixture
def there(tmp_path):
    return visit(tmp_path, mounts=mounts(tmp_path, "/ ext4"))


def mounts(folder, *lines):
    """Write a list of file systems, `PLACE KIND` each."""
    file = folder / "mounts"
    file.write_text("".join(f"dev {line} rw 0 0\n" for line in lines))
    return file


@pytest.mark.parametrize(("gib", "severity"), [(3.0, "ok"), (1.9, "warning"), (0.1, "error")])
def test_free_space(there, monkeypatch, gib, severity):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, int(gib * GIB)))
    ledger, cache = look(machine.free, there)
    assert ledger.severity == cache.severity == severity
    assert f"{gib:.1f} GiB are free for the ledger" in ledger.found


def test_free_space_of_a_folder_that_is_not_there_yet_is_that_above_it(tmp_path):
    there = visit(tmp_path, cache=tmp_path / "not/yet")
    assert len(look(machine.free, there)) == 2


def test_a_flush_leaves_nothing_behind(there, tmp_path, monkeypatch):
    seen = []
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(handle), flush(handle)))
    before = set(tmp_path.iterdir())
    found = only(machine.fsync, there)
    assert found.severity == "ok"
    assert " ms" in found.found
    assert len(seen) == 5
    assert set(tmp_path.iterdir()) == before


def test_a_disk_that_cannot_flush(there, tmp_path, monkeypatch):
    def fails(handle):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    before = set(tmp_path.iterdir())
    found = only(machine.fsync, there)
    assert found.severity == "error"
    assert "(Input/output error)" in found.found
    assert set(tmp_path.iterdir()) == before


def test_a_slow_disk(there, monkeypatch):
    monkeypatch.setattr(machine, "_flush", lambda folder: [0.3, 0.2, 0.3])
    found = only(machine.fsync, there)
    assert found.severity == "warning"
    assert "300.0 ms" in found.found


def test_no_folder_for_the_ledger(tmp_path):
    there = visit(tmp_path, **{"ledger: ledger.sqlite": "ledger: none/ledger.sqlite"})
    found = only(machine.fsync, there)
    assert found.severity == "error"
    assert "mkdir -p" in found.fix


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nfs4", "network file system (nfs4)"),
        ("cifs", "network"),
        ("tmpfs", "does not last (tmpfs)"),
        ("overlay", "not last"),
    ],
)
def test_a_file_system_that_a_ledger_must_not_lie_on(tmp_path, kind, words):
    there = visit(tmp_path, mounts=mounts(tmp_path, "/ ext4", f"{tmp_path} {kind}"))
    flushed, found = look(machine.fsync, there)
    assert flushed.severity == "ok"
    assert found.severity == "warning"
    assert words in found.found


def test_the_deepest_and_last_mount_counts(tmp_path):
    here = tmp_path / "a b"
    here.mkdir()
    escaped = str(here).replace(" ", r"\040")
    assert mount_of(here, mounts(tmp_path, "/ ext4", f"{escaped} nfs4", f"{tmp_path} xfs")) == "nfs4"
    assert mount_of(here, mounts(tmp_path, "/ ext4", f"{tmp_path} xfs", f"{tmp_path} tmpfs")) == "tmpfs"
    assert mount_of(here, mounts(tmp_path, "/ ext4", f"{escaped}c nfs4")) == "ext4"
    assert mount_of(here, tmp_path / "none") == ""
    assert Path("/proc/mounts").exists() is bool(mount_of(Path("/"), Path("/proc/mounts")))


def test_open_files(there, monkeypatch):
    assert only(machine.files, there).severity in ("ok", "warning")
    for soft, severity in ((1024, "ok"), (resource.RLIM_INFINITY, "ok"), (1023, "warning")):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert only(machine.files, there).severity == severity


@pytest.mark.parametrize(
    ("cards", "usable", "severities", "words"),
    [
        ([], 0, ["note"], "there is no GPU here"),
        ([("H100", 70.0)], 1, ["ok"], "H100: 70.0 GiB of memory are free"),
        ([("H100", 1.0)], 1, ["warning"], "1.0 GiB"),
        ([("H100", 70.0)], 0, ["warning"], "sees 1 GPU, torch"),
        ([("H100", 70.0), ("H100", 1.5)], 2, ["ok", "warning"], "H100"),
        ([], 1, ["warning"], "not found"),
    ],
)
def test_a_gpu(there, monkeypatch, cards, usable, severities, words):  # noqa: PLR0917 - cases
    monkeypatch.setattr(machine, "_cards", lambda: ("580.1" if cards else "", cards))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: usable)
    found = look(machine.gpu, there)
    assert [each.severity for each in found] == severities
    assert words in found[0].found


def test_the_driver_is_asked_for_its_cards(monkeypatch):
    """What is read of NVML, by its own names; a machine without a driver has none."""
    import pynvml

    driver, cards = machine._cards()
    assert bool(driver) == bool(cards)
    memory = type("Memory", (), {"free": 3 * GIB})
    answers = {"Init": None, "DeviceGetCount": 1, "DeviceGetHandleByIndex": "h", "DeviceGetName": "A100",
               "DeviceGetMemoryInfo": memory, "SystemGetDriverVersion": "580.1", "Shutdown": None}  # fmt: skip
    for name, answer in answers.items():
        assert hasattr(pynvml, f"nvml{name}")
        monkeypatch.setattr(pynvml, f"nvml{name}", lambda *_, answer=answer: answer)
    assert machine._cards() == ("580.1", [("A100", 3.0)])


def test_packages_are_those_of_the_lock(there):
    found = look(machine.packages, there)
    assert {each.severity for each in found} <= {"ok", "warning"}
    assert not any("pyproject.toml" in each.found for each in found)


@pytest.mark.parametrize(
    ("name", "version", "severity", "words"),
    [
        ("flwr", "1.42.0", "error", "flwr 1.42.0"),
        ("opacus", "", "error", "opacus is missing"),
        ("torch", "2.11.0", "warning", "torch 2.11.0 (tested: 2."),
        ("torch", "2.10.0", "error", "torch 2.10.0"),
        ("torch", "3.0.0rc1", "error", "torch 3.0.0rc1"),
    ],
)
def test_another_version(there, monkeypatch, name, version, severity, words):  # noqa: PLR0917 - cases
    true = machine._installed
    monkeypatch.setattr(machine, "_installed", lambda asked: version if asked == name else true(asked))
    found = [each for each in look(machine.packages, there) if each.severity == severity]
    assert any(words in each.found and each.fix == "make setup" for each in found)


def test_a_local_build_is_the_same_version(there, monkeypatch):
    monkeypatch.setattr(machine, "version", lambda name: "2.13.0+cu130")
    assert machine._installed("torch") == "2.13.0"


def test_flower_phones_nobody(tmp_path):
    both = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    assert only(machine.switches, visit(tmp_path, environment=both)).severity == "ok"
    for name, wanted in both.items():
        for value in ("", "yes"):
            found = only(machine.switches, visit(tmp_path, environment={**both, name: value}))
            assert found.severity == "warning"
            assert f"not set here: {name}={wanted}" in found.found
    assert "not set here: FLWR_TELEMETRY_ENABLED=0, FLWR" in only(machine.switches, visit(tmp_path)).found
