"""A real federation on loopback: SuperLink behind nginx, three SuperNodes, three agents; equal to its simulation."""

import contextlib
import http.client
import json
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file

from deploy.errors import ExitCode
from privacy.ledger import Ledger
from tests.support.federations import deploy, federation, require_nginx, sites_of
from tests.support.shared import ROOT
from vae.weights import hash_weights

EXPERIMENT = """\
name: rehearsal
seed: 5
data: {kind: toy, sites: 3, patients_per_site: 24, features: 6}
model: {family: vae, latent_size: 2, channels: [6], input_shape: [6]}
federation: {rounds: 2}
arms: [federated-dp]
privacy:
  epsilon: 8.0
  delta: 1e-3
  sampling_probability: 0.25
  local_steps: 4
  max_grad_norm: 1.0
  divisor: 6
  learning_rate: 0.05
report: {bootstrap: 100, panels: 0}
"""


HOWTO = (ROOT / "deploy/docs/deployment.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", HOWTO, flags=re.S)
    for line in block.splitlines()
    if line
]


@pytest.fixture(scope="module")
def running():
    """The folder of a federation that runs, and that has run the experiment once."""
    require_nginx()
    home = Path(tempfile.mkdtemp(prefix="fed"))  # a socket's path must be short
    try:
        with federation(home / "f", EXPERIMENT, "--seeded") as verbs:
            yield home / "f"
            for site in sites_of(home / "f"):
                deploy("stop", "--site", home / "f" / site / "site.yaml")
            deploy("stop", "--centre", home / "f/centre/centre.yaml")
            assert {verb.process.wait(60) for verb in verbs.values()} == {0}
    finally:
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def submitted(running):
    """What the experiment printed."""
    return deploy(
        "submit", "--seeded", "--centre", running / "centre/centre.yaml", running / "experiment.yaml"
    )


def _simulated(running, tmp_path):
    """Return the weights that `simulate.py` ends with."""
    argv = [sys.executable, "simulate.py", "--config", running / "experiment.yaml", "--out", tmp_path / "sim"]
    subprocess.run([*map(str, argv)], cwd=ROOT, check=True, capture_output=True, timeout=300)
    last = max((tmp_path / "sim/checkpoints/federated-dp").glob("round-*"))
    return load_file(last / "weights.safetensors")


def test_the_deployed_model_is_the_simulated_one_bit_for_bit(running, submitted, tmp_path):
    deployed = load_file(running / "centre/state/runs/rehearsal/model.safetensors")
    simulated = _simulated(running, tmp_path)
    assert deployed.keys() == simulated.keys()
    for name, value in simulated.items():
        assert value.tobytes() == deployed[name].tobytes(), name
    assert hash_weights(simulated) in submitted.stdout


def test_who_submitted_sees_rounds_and_privacy(running, submitted):
    assert "round 2: 3 of 3 sites" in submitted.stdout
    assert "site-1: a rehearsal, nothing is private (epsilon would be 8.00" in submitted.stdout
    told = json.loads(deploy("status", "--json", "--centre", running / "centre/centre.yaml").stdout)
    assert told["programs"] == {"superlink": True, "superexec": True, "front": True}
    assert set(told["sites"].values()) == {"online"}
    assert list(told["runs"].values()) == ["finished:completed"]


def test_each_hospital_has_paid_for_what_it_trained(running, submitted):
    for site in ("site-1", "site-2", "site-3"):
        file = running / site / "site.yaml"
        assert deploy("ledger", "verify", "--site", file).returncode == ExitCode.DONE
        with contextlib.closing(Ledger.open(running / site / "ledger.sqlite")) as ledger:
            state = ledger.state()
        assert state.genesis.claims == "seeded"
        assert len(state.reservations) == 2


def test_the_same_study_again_is_done_and_asks_nobody(running, submitted):
    again = deploy(
        "submit", "--seeded", "--centre", running / "centre/centre.yaml", running / "experiment.yaml"
    )
    assert "round 2: 3 of 3 sites" in again.stdout
    assert again.stdout.splitlines()[-1] == submitted.stdout.splitlines()[-1]


def _ask(running, method, path, *, certificate=True, length=0):
    """Return the status of the centre's answer to a hospital."""
    site = yaml.safe_load((running / "site-1/site.yaml").read_text())
    host, _, port = site["connection"]["server"].rpartition(":")
    context = ssl.create_default_context(cafile=running / "authority/ca.pem")
    if certificate:
        context.load_cert_chain(running / "site-1/keys/client.pem", running / "site-1/keys/client.key")
    with contextlib.closing(
        http.client.HTTPSConnection(host, int(port), context=context, timeout=10)
    ) as line:
        line.putrequest(method, path)
        line.putheader("Content-Length", str(length))
        line.endheaders()
        return line.getresponse().status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("POST", "/v1/control/list-nodes", 403),
        ("POST", "/v1/control/start-run", 403),
        ("POST", "/v1/runtime/acquire-task", 403),
        ("GET", "/docs", 403),
        ("GET", "/openapi.json", 403),
        ("POST", "/v1/fleet/../control/list-nodes", 403),
        ("POST", "//v1/control/list-nodes", 403),
        ("POST", "/v1/fleet/%2e%2e/control/list-nodes", 403),
    ],
)
def test_a_member_reaches_the_fleet_and_nothing_else(running, method, path, status):
    assert _ask(running, method, path) == status


def test_without_a_certificate_nothing_is_reached(running):
    assert _ask(running, "GET", "/health", certificate=False) == 400


def test_what_is_too_large_never_reaches_the_superlink(running):
    assert _ask(running, "POST", "/v1/fleet/push-object", length=2 << 30) == 413


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_documentation(running, submitted, command):
    python, m, package, verb, *rest = command.split()
    assert (python, m, package) == ("python", "-m", "deploy")
    words = [word.replace("rehearsal", str(running), 1) if "/" in word else word for word in rest]
    if verb in {"status", "logs"}:
        assert deploy(verb, *words).stdout
    else:  # what the fixtures have run, or run at the end: here, that its options and files are there
        known = deploy(verb, "--help").stdout
        assert all(word in known for word in rest if word.startswith("--"))
        assert all(Path(word).exists() for word in words if "/" in word)
