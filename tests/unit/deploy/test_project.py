"""The project's own files say what the others do: Makefile, CI, licence, direction of imports."""

import hashlib
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = {contract["name"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}


def modules(package):
    found = (ROOT / package).iterdir()
    names = {
        path.stem if path.suffix == ".py" else path.name
        for path in found
        if (path / "__init__.py").exists() or path.suffix == ".py"
    }
    return {f"{package}.{name}" for name in names - {"__init__"}}


def test_the_server_may_import_of_the_client_its_contract_alone():
    forbidden = CONTRACTS["the server sees of the client its contract alone"]["forbidden_modules"]
    assert set(forbidden) == modules("client") - {"client.contract", "client.arrays", "client.learning"}


def test_every_package_is_checked_and_bundled():
    packages = {"vae", "privacy", "client", "server", "deploy"}
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"} == packages
    assert set(PROJECT["tool"]["mypy"]["packages"]) == packages
    assert set(PROJECT["tool"]["importlinter"]["root_packages"]) == packages
    assert {
        pattern.partition("/")[0] for pattern in PROJECT["tool"]["flwr"]["app"]["fab-include"]
    } == packages


def test_nothing_can_be_built_into_a_wheel():
    """A second distribution with a top-level `server` would overwrite ours."""
    assert "build-system" not in PROJECT


def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())
    done = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True)
    listed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("  make ")}
    assert listed == targets
    assert {"run", "test", "check", "setup", "bench", "lock"} <= targets


def test_ci_runs_what_a_developer_runs():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in lines
    assert lines.index("make check") < lines.index("make test")


def test_an_old_python_is_refused_before_anything_is_made(tmp_path):
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    for name in ("Makefile", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    command = ["make", "setup", f"PYTHON={old}"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_the_licence_is_the_standard_text():
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert PROJECT["project"]["license"]["text"] == "Apache-2.0"


@pytest.mark.parametrize("setting", ["FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"])
def test_tests_and_targets_phone_nobody(setting):
    assert setting in os.environ
    assert f"export {setting}" in (ROOT / "Makefile").read_text(encoding="utf-8")
