"""Folders and files that appear whole or not at all, and never over another."""

import os

import pytest

from deploy.provision.failures import InputError
from deploy.provision.files import new_folder, read_small, require_free, reserved


def test_a_folder_appears_with_everything_in_it(tmp_path):
    with new_folder(tmp_path / "new") as partial:
        (partial / "a").write_text("a")
        assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_nothing_is_left_of_a_folder_that_failed(tmp_path):
    def fail():
        with new_folder(tmp_path / "new") as partial:
            (partial / "a").write_text("a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_there_stays(tmp_path, kind):
    target = tmp_path / "there"
    if kind == "file":
        target.write_text("mine")
    elif kind == "folder":
        target.mkdir()
        (target / "mine").write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="there: exists already, and nothing is overwritten"):
        require_free(target)
    with pytest.raises(InputError, match="exists already"), new_folder(target):
        pytest.fail("must not be entered")
    with pytest.raises(InputError, match="exists already"), reserved(target):
        pytest.fail("must not be entered")
    assert os.path.lexists(target)


def test_an_empty_folder_may_be_there(tmp_path):
    (tmp_path / "new").mkdir()
    with new_folder(tmp_path / "new") as partial:
        (partial / "a").write_text("a")
    assert (tmp_path / "new/a").read_text() == "a"


def test_what_somebody_makes_meanwhile_stays(tmp_path):
    def both():
        with new_folder(tmp_path / "new") as partial:
            (partial / "a").write_text("ours")
            (tmp_path / "new").mkdir()
            (tmp_path / "new/a").write_text("theirs")

    with pytest.raises(InputError, match="exists already"):
        both()
    assert (tmp_path / "new/a").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none: No such file or directory; give a folder"):
        new_folder(tmp_path / "none/new").__enter__()
    with pytest.raises(InputError, match=r"new: No such file or directory; give a path"):
        reserved(tmp_path / "none/new").__enter__()


@pytest.mark.parametrize("content", ["", "whole"])
def test_a_reserved_file_goes_away_unless_it_was_written(tmp_path, content):
    def fail():
        with reserved(tmp_path / "a"):
            (tmp_path / "a").write_text(content)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.read_text() for path in tmp_path.iterdir()] == [content] * bool(content)


def test_a_small_file_is_regular_and_small(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"x" * 10)
    assert read_small(file, 10) == b"x" * 10
    with pytest.raises(InputError, match="is larger than 9 bytes"):
        read_small(file, 9)
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "pipe", "."):
        with pytest.raises(InputError, match="there is no such file"):
            read_small(tmp_path / name, 9)
