"""The lock: complete, current, and refused when it is not."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from deploy import lock

ROOT = Path(__file__).resolve().parents[3]
PROJECT = {
    "project": {"requires-python": ">=3.11", "dependencies": ["a==1.0", "B_x.y[extra]>=2,<3"]},
    "dependency-groups": {"dev": ["c~=1.4"], "ray": ["d"]},
}
VERSIONS = {"a": "1.0", "b-x-y": "2.9.1", "C": "1.5.2", "d": "0.1", "only-indirect": "7"}


def project(**changes):
    return {"project": {**PROJECT["project"], **changes}, "dependency-groups": PROJECT["dependency-groups"]}


def test_a_rendered_lock_is_complete_and_current():
    text = lock.render(PROJECT, VERSIONS)
    assert lock.check(PROJECT, text) == []
    assert text.splitlines()[2:] == ["a==1.0", "b-x-y==2.9.1", "c==1.5.2", "d==0.1", "only-indirect==7"]


def test_local_builds_become_public_versions():
    assert "torch==2.13.0\n" in lock.render(PROJECT, {**VERSIONS, "torch": "2.13.0+cpu"})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text.replace("a==1.0\n", ""), "a is not pinned"),
        (lambda text: text.replace("a==1.0\n", "a==1.1\n"), "a==1.1 does not satisfy 'a==1.0'"),
        (lambda text: text.replace("2.9.1", "3.0"), "b-x-y==3.0 does not satisfy"),
        (lambda text: text.replace("1.5.2", "2.0"), "c==2.0 does not satisfy 'c~=1.4'"),
        (lambda text: text.replace("d==0.1\n", "d>=0.1\n"), "line 6 is no pin"),
        (lambda text: text + "https://host.example/x.whl\n", "is no pin"),
        (lambda text: text + "x @ file:///tmp/x.whl\n", "is no pin"),
        (lambda text: text + "torch==2.13.0+cpu\n", "is no pin"),
        (lambda text: text + "A==1.0\n", "A is pinned twice"),
        (lambda text: text.replace("# dependencies", "# depend"), "header"),
        (lambda text: text[: text.index("sha256:")] + "sha256:" + "0" * 64 + "\na==1.0", "have changed"),
        (lambda _: "", "header"),
    ],
)
def test_what_is_wrong_is_named(change, problem):
    assert any(problem in found for found in lock.check(PROJECT, change(lock.render(PROJECT, VERSIONS))))


@pytest.mark.parametrize(
    "changed",
    [
        project(dependencies=["a==1.0", "b-x-y>=2"]),
        project(**{"requires-python": ">=3.12"}),
        {**PROJECT, "dependency-groups": {"dev": ["c~=1.4"], "ray": ["d", "a"]}},
    ],
)
def test_a_change_of_dependencies_makes_the_lock_stale(changed):
    assert lock.check(changed, lock.render(PROJECT, VERSIONS)) == [
        "the dependencies in pyproject.toml have changed since it was made"
    ]


def test_other_changes_of_the_project_do_not():
    assert lock.digest(project(description="other", version="9")) == lock.digest(PROJECT)


def test_requirement_lines_by_group():
    assert lock.requirements(PROJECT) == ["a==1.0", "B_x.y[extra]>=2,<3"]
    assert lock.requirements(PROJECT, ["ray"])[-1] == "d"
    with pytest.raises(lock.LockError, match=r"'rya'.*dev, ray"):
        lock.requirements(PROJECT, ["rya"])


@pytest.mark.parametrize("line", ["", "-r other.txt", "a @ https://host.example/a.whl", "a>=1.0 <2", "a>=x"])
def test_unreadable_requirements(line):
    with pytest.raises(lock.LockError, match="cannot read"):
        lock.parse_requirement(line)


releases = st.lists(st.integers(0, 12), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
operators = st.sampled_from(["==", "!=", "<=", ">=", "<", ">"])


@given(releases, operators, releases)
def test_versions_compare_as_packaging_does(version, operator, bound):
    assert lock.satisfies(version, operator, bound) == SpecifierSet(operator + bound).contains(version)


@given(
    releases,
    st.lists(st.integers(0, 12), min_size=2, max_size=4).map(lambda parts: ".".join(map(str, parts))),
)
def test_compatible_and_prefix_clauses_compare_as_packaging_does(version, bound):
    assert lock.satisfies(version, "~=", bound) == SpecifierSet("~=" + bound).contains(version)
    for operator in ("==", "!="):
        assert lock.satisfies(version, operator, bound + ".*") == SpecifierSet(
            operator + bound + ".*"
        ).contains(version)


@pytest.mark.parametrize("version", ["1.0rc1", "1.0.dev3", "one", "1.0+cpu"])
def test_versions_that_are_no_release(version):
    with pytest.raises(lock.LockError, match="cannot compare"):
        lock.satisfies(version, ">=", "1")


def shipped():
    project_file = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project_file, (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_the_shipped_lock_is_current():
    assert lock.check(*shipped()) == []


def test_the_shipped_lock_names_no_host_and_no_file():
    _, text = shipped()
    for word in ("://", "file:", "@", "+cpu", "--index", "--find"):
        assert word not in text


def test_the_shipped_lock_pins_everything_that_the_installed_packages_need():
    """Walks the metadata of what is installed: an unpinned package could change between installations."""
    project_file, text = shipped()
    pins = {name: version for name, _, version in (line.partition("==") for line in text.splitlines()[2:])}
    waiting = [Requirement(line) for line in lock.requirements(project_file, ["dev", "ray"])]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        key = (lock.normalise(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        assert key[0] in pins, f"{key[0]} is not pinned"
        assert wanted.specifier.contains(Version(pins[key[0]]), prereleases=True), (
            f"{wanted} against {pins[key[0]]}"
        )
        for line in metadata.requires(key[0]) or ():
            needed = Requirement(line)
            extras = key[1] or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    assert len(seen) > len(lock.requirements(project_file, ["dev", "ray"]))


def test_the_command_prints_requirements_and_checks(capsys, monkeypatch, tmp_path):
    assert lock.main(["requirements", "--group", "ray"]) == 0
    assert "flwr==1.41.0" in capsys.readouterr().out.splitlines()
    assert lock.main(["check"]) == 0
    monkeypatch.setattr(lock, "LOCK", tmp_path / "constraints.txt")
    assert lock.main(["check"]) == 1
    assert "make lock" in capsys.readouterr().err
    assert lock.main(["requirements", "--group", "none"]) == 1


def test_renewing_writes_what_was_resolved(monkeypatch, tmp_path):
    """The resolution itself asks a registry; `make lock` is run by hand."""
    asked = []

    def resolved(lines):
        asked.extend(lines)
        return {**{lock.parse_requirement(line)[0]: "1" for line in lines}, "torch": "2.13.0+cpu"}

    monkeypatch.setattr(lock, "LOCK", tmp_path / "constraints.txt")
    monkeypatch.setattr(lock, "resolve", resolved)
    assert lock.main(["renew"]) == 0
    assert "torch==2.13.0\n" in (tmp_path / "constraints.txt").read_text(encoding="utf-8")
    assert {"flwr==1.41.0", "ray==2.55.1"} <= set(asked)


def test_a_resolution_that_fails_says_so():
    with pytest.raises(lock.LockError, match="pip found no versions"):
        lock.resolve(["--no-index", "no-such-package-of-ours==1"])
