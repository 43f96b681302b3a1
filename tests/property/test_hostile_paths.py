"""Whatever a path or file says: nothing outside the root is opened, nothing but a refusal is raised."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import vae.data.paths as paths_module
from tests.support.hostile_files import dicom_slice, nifti_bytes, scan, write_dicom
from vae.data.dicom import read_series
from vae.data.gate import Limits, check_dicom, check_nifti, resolve_inside
from vae.data.nifti import read_nifti
from vae.data.paths import open_inside
from vae.data.quarantine import Reason, RefusedFileError
from vae.data.rows import read_rows
from vae.errors import DataError

SMALL = Limits(max_voxels=1 << 20, max_bytes=1 << 23)
SECRET = b"outside the root"
HONEST = nifti_bytes(scan(1, (4, 4, 4)))

parts = st.sampled_from(
    ["..", ".", "in", "link", "loop", "out", "secret", "file", "", "/", "~", "%2e%2e", "\0", "a\nb"]
)
paths = st.one_of(
    st.lists(parts, max_size=7).map("/".join),
    st.lists(parts, max_size=7).map(lambda items: "/" + "/".join(items)),
    st.text(max_size=40),
)


@contextlib.contextmanager
def tree() -> Iterator[tuple[Path, Path]]:
    """A root with honest files, links that stay and links that leave; beside it what must not be read."""
    with tempfile.TemporaryDirectory() as name:
        root, out = Path(name) / "root", Path(name) / "out"
        (root / "in").mkdir(parents=True)
        out.mkdir()
        (out / "secret").write_bytes(SECRET)
        (root / "file").write_bytes(b"inside")
        (root / "in" / "file").write_bytes(b"inside")
        (root / "link").symlink_to("in")
        (root / "out").symlink_to(out)
        (root / "secret").symlink_to("../out/secret")
        (root / "loop").symlink_to("loop")
        yield root, out


@settings(deadline=None, max_examples=300)
@given(path=paths)
@example(path="../out/secret")
@example(path="out/secret")
@example(path="in/../../out/secret")
@example(path="link/../secret")
@example(path="a" * 5000)
@example(path="\ud800")
def test_no_path_reads_what_is_outside(path):
    with tree() as (root, _):
        try:
            with open_inside(root, path) as stream:
                content = stream.read()
        except RefusedFileError:
            return
        assert content == b"inside"


@settings(deadline=None)
@given(path=paths)
def test_a_resolved_path_is_inside_and_printable(path):
    with tree() as (root, _), contextlib.suppress(RefusedFileError):
        real = resolve_inside(root, path)
        assert real == real.resolve()
        assert real.is_relative_to(root.resolve())
        assert "\n" not in str(real)


def test_links_that_stay_inside_are_followed_and_absolute_paths_inside_too():
    with tree() as (root, _):
        for path in ("link/file", str(root / "in" / "file"), "in/../file"):
            with open_inside(root, path) as stream:
                assert stream.read() == b"inside"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("out/secret", Reason.OUTSIDE_ROOT),
        ("secret", Reason.OUTSIDE_ROOT),
        ("../out/secret", Reason.OUTSIDE_ROOT),
        ("/etc/passwd", Reason.OUTSIDE_ROOT),
        ("loop", Reason.UNREADABLE),
        ("nothing", Reason.FILE_MISSING),
        ("in", Reason.NOT_REGULAR),
        (".", Reason.NOT_REGULAR),
        ("file/file", Reason.UNREADABLE),
        ("a\0b", Reason.NAME_FORBIDDEN),
        ("a\nb", Reason.NAME_FORBIDDEN),
        ("a\x9bb", Reason.NAME_FORBIDDEN),
    ],
)
def test_each_way_out_has_its_reason(path, reason):
    with tree() as (root, _), pytest.raises(RefusedFileError) as caught, open_inside(root, path):
        pass
    assert caught.value.reason is reason


@pytest.mark.parametrize("where", ["file", "in/file"])
def test_a_link_put_there_after_the_check_is_refused(monkeypatch, where):
    """The race: the path is honest when it is resolved and a link when it is opened."""
    with tree() as (root, out):
        honest = root.resolve() / where

        def resolve_then_swap(base: Path, path: str) -> Path:
            real = resolve_inside(base, path)
            if where == "file":
                honest.unlink()
                honest.symlink_to(out / "secret")
            else:
                (root / "in" / "file").rename(out / "file")
                (root / "in").rmdir()
                (root / "in").symlink_to(out)
            return real

        monkeypatch.setattr(paths_module, "resolve_inside", resolve_then_swap)
        with pytest.raises(RefusedFileError) as caught, open_inside(root, where):
            pass
        assert caught.value.reason is Reason.UNREADABLE


def test_a_named_pipe_does_not_block_and_a_device_is_not_read():
    with tree() as (root, _):
        os.mkfifo(root / "pipe")
        with pytest.raises(RefusedFileError, match="not-a-regular-file"), open_inside(root, "pipe"):
            pass
    with pytest.raises(RefusedFileError, match="not-a-regular-file"), open_inside("/dev", "zero"):
        pass


def test_no_handle_is_left_open():
    with tree() as (root, _):
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for path in ("in/file", "out/secret", "in", "nothing", "file/file"):
            with contextlib.suppress(RefusedFileError), open_inside(root, path):
                pass
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_nifti_with_any_header_bytes_is_read_or_refused(changes):
    content = bytearray(HONEST)
    for position, value in changes:
        content[position] = value
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "a.nii").write_bytes(content)
        try:
            volume = read_nifti("a.nii", name, SMALL)
        except RefusedFileError:
            return
        assert volume.values.dtype == np.float32
        assert volume.values.size <= SMALL.max_voxels
        assert np.isfinite(volume.affine).all()


@settings(deadline=None, max_examples=100)
@given(content=st.binary(max_size=1000))
def test_any_bytes_are_refused(content):
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "a").write_bytes(content)
        (Path(name) / "b").write_bytes(b"\x1f\x8b" + content)
        for path in ("a", "b"):
            with pytest.raises(RefusedFileError):
                check_nifti(path, name)
        with pytest.raises(RefusedFileError):
            check_dicom("a", name)


@pytest.fixture(scope="module")
def honest_slice(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("dicom") / "a.dcm"
    write_dicom(path, dicom_slice(np.zeros((4, 6), np.int16)))
    return path.read_bytes()


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(128, 1200), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 200),
)
def test_a_dicom_series_with_any_bytes_is_read_or_refused(honest_slice, changes, cut):
    content = bytearray(honest_slice)
    for position, value in changes:
        content[position % len(content)] = value
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "s").mkdir()
        (Path(name) / "s" / "a.dcm").write_bytes(content[: len(content) - cut])
        (Path(name) / "s" / "b.dcm").write_bytes(honest_slice.replace(b"0.0 ", b"3.0 ", 1))
        with contextlib.suppress(RefusedFileError):
            read_series("s", name, SMALL)


@settings(deadline=None, max_examples=200)
@given(
    content=st.one_of(
        st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace"))
    )
)
def test_any_bytes_are_a_table_or_a_data_error(content):
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "t.csv").write_bytes(content)
        with contextlib.suppress(DataError):
            rows = read_rows(name, "t.csv")
            assert all(set(row.cells) == set(rows.columns) for row in rows.rows if row.reason is None)
