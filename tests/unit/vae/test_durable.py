"""Files that are whole or not there: who may read them, and what a failure leaves."""

import os

import pytest

from vae.data.durable import READABLE, atomic_path, write_atomically


def mode(path):
    return path.stat().st_mode & 0o777


def test_a_file_is_its_owners_unless_it_is_meant_to_be_read(tmp_path):
    write_atomically(tmp_path / "new" / "scan", b"1")
    write_atomically(tmp_path / "report", b"2", mode=READABLE)
    assert mode(tmp_path / "new") == 0o700
    assert (mode(tmp_path / "new" / "scan"), mode(tmp_path / "report")) == (0o600, 0o644)


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    target = tmp_path / "report"
    write_atomically(target, b"old")

    def full(_):
        raise OSError("disk full")

    def half():
        with atomic_path(target) as partial:
            partial.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert target.read_bytes() == b"old"
