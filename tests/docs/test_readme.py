"""The README cannot rot: its commands run, its configuration loads, its links lead somewhere, its figures are ours."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from deploy.config import load_experiment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
LINES = [
    line.split("  #")
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.S)
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]
COMMANDS = [command.strip() for command, *_ in LINES]
EXIT_CODES = {
    command.strip(): 3 if comment and comment[0].endswith("exit code 3") else 0 for command, *comment in LINES
}
SMALL = [
    "federation.rounds=1",
    "training.local_steps=1",
    "privacy.local_steps=1",
    "arms=[mean,federated-dp]",
    "report.bootstrap=100",
    "engine.workers=1",
]


def _run(arguments, folder):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FEDERATED_VAE_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def _arguments(command):
    return shlex.split(command)[1:]


def test_every_command_is_of_a_kind_that_is_tested_here():
    kinds = (r"make (run|test|bench|check|help)$", r"\.venv/bin/python (simulate\.py|-m deploy) ")
    unknown = [command for command in COMMANDS if not any(re.match(kind, command) for kind in kinds)]
    assert COMMANDS
    assert not unknown


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_make_targets_exist(command):
    # Not run here (`make test` would run itself); `--dry-run` fails where a target does not exist.
    done = subprocess.run(
        ["make", "--dry-run", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    """Two small hospitals as the README's configuration expects them, and that configuration."""
    folder = tmp_path_factory.mktemp("own")
    generator = np.random.default_rng(0)
    for site in ("north", "south"):
        for patient in range(8):
            path = folder / "data" / site / f"sub-{patient:02d}" / "anat" / f"sub-{patient:02d}_T1w.nii.gz"
            path.parent.mkdir(parents=True)
            voxels = generator.random((16, 18, 14), dtype=np.float32)
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([6.0, 6.0, 6.0, 1.0])), path)
    (text,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.S)
    (folder / "my.yaml").write_text(text)
    return folder


def test_the_configuration_for_own_data_loads(own_data):
    experiment = load_experiment(own_data / "my.yaml")
    assert experiment.data.kind == "nifti"
    assert experiment.site_names == ("north", "south")


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if ".venv/bin/python" in command])
def test_commands_run(command, own_data, tmp_path):
    arguments = [_absolute(argument) for argument in _arguments(command)]
    if arguments[0] == "simulate.py" and "--out" not in arguments:
        if not ("smoke" in command or "my.yaml" in command):
            # A shipped configuration of full size: it has to load, and its own test trains it.
            load_experiment(Path(arguments[arguments.index("--config") + 1]))
            return
        arguments += ["--out", str(tmp_path), "--cache", str(tmp_path / "c")]
        arguments += [part for pair in SMALL for part in ("--set", pair)]
    if arguments[0] == "simulate.py":
        arguments[0] = str(ROOT / "simulate.py")
    # What a command with --out leaves in the folder, the commands after it find there.
    code, said = _run(arguments, own_data)
    assert code == EXIT_CODES[command], said


def test_a_command_that_reads_a_run_comes_after_the_one_that_makes_it():
    makes = next(number for number, command in enumerate(COMMANDS) if "--out runs/capped" in command)
    reads = [
        number for number, command in enumerate(COMMANDS) if " runs/capped" in command and number != makes
    ]
    assert len(reads) == 3
    assert makes < min(reads)


def _absolute(argument):
    return str(ROOT / argument) if argument.startswith("deploy/") else argument


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert targets
    assert not missing


def test_it_says_no_more_than_it_may():
    lowered = README.lower()
    assert "anonym" not in lowered
    assert "no privacy claim" in lowered, "figures of seeded simulations are marked as such"
