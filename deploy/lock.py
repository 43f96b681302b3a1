"""The lock: `constraints.txt` pins every package that an installation takes, direct or not.

    python -m deploy.lock requirements [--group NAME ...]   what to install, from pyproject.toml
    python -m deploy.lock check                             is constraints.txt complete and current?
    python -m deploy.lock renew                             make it again from a fresh resolution

Standard library only: it runs before anything is installed. The file names no host and no local build, so
that the same lock serves a machine with a GPU and one without. Pins are of one resolution, on Linux with the
Python that ran `renew`; packages that only other platforms take are left to pip. What it does not do: hashes
of files (pip's `--require-hashes`): builds of one version differ between machines.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "pyproject.toml"
LOCK = ROOT / "constraints.txt"

_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^]]*\])?\s*([^;]*)(;.*)?")
_CLAUSE = re.compile(r"(==|!=|<=|>=|<|>|~=)\s*([0-9][0-9A-Za-z.+!*-]*)")
_VERSION = re.compile(r"v?([0-9]+(?:\.[0-9]+)*)(?:\.post([0-9]+))?")
_DIGEST = re.compile(r"^# dependencies: sha256:([0-9a-f]{64})$", re.MULTILINE)
_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([0-9A-Za-z.!]+)")

_HEADER = """\
# Every package at the version that the tests ran with. Made by `make lock`; do not edit.
# dependencies: sha256:{digest}
"""


class LockError(Exception):
    """The lock cannot be made or read; the message names the line or package."""


def requirements(project: Mapping[str, Any], groups: Sequence[str] = ()) -> list[str]:
    """Return the requirement lines of a project and of some of its dependency groups.

    Raises:
        LockError: there is no such group.
    """
    known: Mapping[str, list[str]] = project.get("dependency-groups", {})
    unknown = [group for group in groups if group not in known]
    if unknown:
        raise LockError(
            f"pyproject.toml: no dependency group {unknown[0]!r}; there are {', '.join(sorted(known))}"
        )
    return [*project["project"]["dependencies"], *(line for group in groups for line in known[group])]


def digest(project: Mapping[str, Any]) -> str:
    """Return the SHA-256 of everything in `pyproject.toml` that decides what is installed."""
    tables = {
        "requires-python": project["project"].get("requires-python"),
        "dependencies": project["project"]["dependencies"],
        "dependency-groups": project.get("dependency-groups", {}),
    }
    return hashlib.sha256(json.dumps(tables, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check(project: Mapping[str, Any], lock: str) -> list[str]:
    """Return what is wrong with a lock; empty if it is complete and current.

    Args:
        project: `pyproject.toml`.
        lock: Text of `constraints.txt`.
    """
    problems: list[str] = []
    found = _DIGEST.search(lock)
    if found is None:
        problems.append("the header `# dependencies: sha256:...` is missing")
    elif found[1] != digest(project):
        problems.append("the dependencies in pyproject.toml have changed since it was made")
    pins: dict[str, str] = {}
    for number, line in enumerate(lock.splitlines(), start=1):
        pin = _PIN.fullmatch(line)
        if pin is None:
            problems += (
                [f"line {number} is no pin `name==version`: {line}"] if line and line[0] != "#" else []
            )
        elif normalise(pin[1]) in pins:
            problems.append(f"line {number}: {pin[1]} is pinned twice")
        else:
            pins[normalise(pin[1])] = pin[2]
    everything = requirements(project, sorted(project.get("dependency-groups", {})))
    return [*problems, *_unmet(everything, pins)]


def _unmet(lines: Iterable[str], pins: Mapping[str, str]) -> Iterator[str]:
    """Yield the requirements that no pin meets."""
    for line in lines:
        name, clauses = parse_requirement(line)
        pinned = pins.get(name)
        if pinned is None:
            yield f"{name} is not pinned"
        elif not all(satisfies(pinned, operator, bound) for operator, bound in clauses):
            yield f"{name}=={pinned} does not satisfy {line!r}"


def parse_requirement(line: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the normalised name of a requirement and its clauses (operator, version).

    Raises:
        LockError: the line is not of the form `name[extra]>=1,<2`.
    """
    match = _REQUIREMENT.fullmatch(line.strip())
    if match is None:
        raise LockError(f"pyproject.toml: cannot read the requirement {line!r}")
    clauses = []
    for part in filter(None, (part.strip() for part in match[3].split(","))):
        clause = _CLAUSE.fullmatch(part)
        if clause is None:
            raise LockError(f"pyproject.toml: cannot read {part!r} in the requirement {line!r}")
        clauses.append((clause[1], clause[2]))
    return normalise(match[1]), clauses


def satisfies(version: str, operator: str, bound: str) -> bool:
    """Return whether a version meets a clause (PEP 440, releases only: no pre-releases, no local builds).

    Raises:
        LockError: a version is not made of numbers and dots.
    """
    prefix = bound.endswith(".*")
    one, other = _release(version), _release(bound.removesuffix(".*"))
    if prefix or operator == "~=":
        head = other if prefix else other[:-1]
        inside = _padded(one, len(head))[: len(head)] == head
        if prefix:
            return inside if operator == "==" else not inside
        return inside and _padded(one, len(other)) >= other
    width = max(len(one), len(other))
    one, other = _padded(one, width), _padded(other, width)
    return {
        "==": one == other,
        "!=": one != other,
        "<=": one <= other,
        ">=": one >= other,
        "<": one < other,
        ">": one > other,
    }[operator]


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version; a post-release counts as one more."""
    match = _VERSION.fullmatch(version)
    if match is None:
        raise LockError(f"cannot compare the version {version!r}: only releases such as 1.2.3 are supported")
    numbers = tuple(int(part) for part in match[1].split("."))
    return (*numbers, int(match[2])) if match[2] else numbers


def _padded(release: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Return the numbers of a version, filled up with zeros: 1.2 and 1.2.0 are the same."""
    return release + (0,) * (width - len(release))


def normalise(name: str) -> str:
    """Return the one spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def render(project: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Return the text of a lock for resolved versions; local builds (`+cpu`) become their public version."""
    pins = {normalise(name): version.partition("+")[0] for name, version in versions.items()}
    return _HEADER.format(digest=digest(project)) + "".join(
        f"{name}=={pins[name]}\n" for name in sorted(pins)
    )


def resolve(lines: Sequence[str]) -> dict[str, str]:
    """Return the newest versions that meet all requirements together, as pip resolves them; installs nothing.

    Raises:
        LockError: pip finds no solution, or cannot reach a registry.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--report",
        "-",
    ]
    done = subprocess.run([*command, *lines], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LockError(f"pip found no versions:\n{done.stderr.strip()}")
    report = json.loads(done.stdout)
    return {entry["metadata"]["name"]: entry["metadata"]["version"] for entry in report["install"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.lock", description="The lock of all packages.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    wanted = verbs.add_parser("requirements", help="print the requirement lines of pyproject.toml")
    wanted.add_argument("--group", action="append", default=[], help="a dependency group to add")
    verbs.add_parser("check", help="fail unless constraints.txt is complete and current")
    verbs.add_parser("renew", help="make constraints.txt from a fresh resolution")
    chosen = parser.parse_args(arguments)
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))
    try:
        return _run(chosen, project)
    except LockError as error:
        _say(str(error))
        return 1


def _run(chosen: argparse.Namespace, project: Mapping[str, Any]) -> int:
    """Run a verb."""
    everything = requirements(project, sorted(project.get("dependency-groups", {})))
    if chosen.verb == "requirements":
        sys.stdout.write("\n".join(requirements(project, chosen.group)) + "\n")
    elif chosen.verb == "renew":
        LOCK.write_text(render(project, resolve(everything)), encoding="utf-8")
        _say(f"{LOCK.name} written")
    else:
        problems = check(project, LOCK.read_text(encoding="utf-8") if LOCK.exists() else "")
        for problem in problems:
            _say(f"{LOCK.name}: {problem}")
        _say(f"{LOCK.name}: run `make lock` to renew it" if problems else f"{LOCK.name} is current")
        return 1 if problems else 0
    return 0


def _say(text: str) -> None:
    """Write a line for a person."""
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
