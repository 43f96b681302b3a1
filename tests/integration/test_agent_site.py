"""A whole hospital behind a socket: `python -m deploy agent` as a process, killed and started again."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from client.contract import FailureCode, LearningPlan, TrainRequest
from client.errors import SiteError
from client.relay import AgentService
from deploy.agent import running
from deploy.errors import ConfigError, ExitCode
from deploy.ledger.failures import UsageError
from deploy.site import load_site
from privacy.ledger import Ledger
from server.federation import initial_weights
from tests.integration.test_ledger_cli import works, write_site
from tests.support.audits import PLAN, SPEC
from tests.support.shared import ROOT
from vae.weights import hash_weights

SECTION = "agent:\n  folder: state\n  socket: agent.sock\npolicy:"
WEIGHTS = initial_weights(SPEC, "all", 0)


@pytest.fixture
def site(tmp_path):
    """The file of a hospital whose ledger has begun."""
    tmp_path.chmod(0o700)
    file = write_site(tmp_path, **{"policy:": SECTION})
    works("init", "--site", file)
    return file


def _start(file):
    """Start the agent as a hospital does; return the process, and a way to it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy", "agent", "--site", str(file)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    said = process.stdout.readline()
    assert said.startswith("agent: listening at unix:"), said
    return process, AgentService(said.split()[-1], patience_s=60)


def _request(round_=1, **changes):
    return TrainRequest(
        **{
            "run_id": "study-1", "round": round_, "base_hash": hash_weights(WEIGHTS), "model": SPEC, "sharing": "all",
            "plan": PLAN, "learning": LearningPlan(learning_rate=0.01), **changes,
        }
    )  # fmt: skip


def _costs(file):
    """Return how many reservations the ledger holds."""
    return len(Ledger.open(file.parent / "ledger.sqlite").state().reservations)


def test_an_agent_that_is_killed_answers_again_without_paying_twice(site):
    process, service = _start(site)
    try:
        first = service.train(_request(), WEIGHTS)
        assert first.receipt is not None
        assert first.claim.kind == "dp"
    finally:
        service.close()
        process.kill()
        process.communicate()
    assert _costs(site) == 1
    process, service = _start(site)
    try:
        again = service.train(_request(), WEIGHTS)
    finally:
        service.close()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == ExitCode.DONE
    assert again.update_hash == first.update_hash
    for name, value in first.delta.items():
        np.testing.assert_array_equal(again.delta[name], value)
    assert _costs(site) == 1


def test_what_the_policy_forbids_is_refused_and_costs_nothing(site, caplog):
    other = type(SPEC)(family="vae", input_shape=(6,), latent_size=3, channels=(6,), initial_scale=0.5)
    with caplog.at_level("CRITICAL"), running(site) as target:
        service = AgentService(target)
        weights = initial_weights(other, "all", 0)
        with pytest.raises(SiteError) as refused:
            service.train(_request(model=other, base_hash=hash_weights(weights)), weights)
        service.close()
    assert refused.value.code is FailureCode.REFUSED
    assert _costs(site) == 0


def test_a_second_agent_of_the_folder_is_refused(site):
    with running(site), pytest.raises(UsageError, match="another agent runs in this folder"):
        running(site).__enter__()


def test_without_a_ledger_nothing_listens(tmp_path):
    file = write_site(tmp_path, **{"policy:": SECTION})
    with pytest.raises(UsageError, match="there is no ledger yet"):
        running(file).__enter__()
    assert not (tmp_path / "agent.sock").exists()
    assert not (tmp_path / "state").exists()


def test_without_the_section_the_way_out_is_named(tmp_path):
    file = write_site(tmp_path)
    works("init", "--site", file)
    with pytest.raises(UsageError, match="has no `agent` section"):
        running(file).__enter__()


@pytest.mark.parametrize(
    ("section", "rule"),
    [
        ("agent: {folder: state}\npolicy:", "needs either `socket` or `tcp`"),
        ("agent: {folder: state, socket: a, seed: 3}\npolicy:", "goes with policy.randomness: seeded"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(tmp_path, section, rule):
    with pytest.raises(ConfigError, match=rule):
        load_site(write_site(tmp_path, **{"policy:": section}))


def test_the_head_over_the_socket_is_that_of_the_ledger(site):
    import grpc

    from client.agent_pb2 import AuditReply, AuditRequest
    from client.relay import SERVICE

    with running(site) as target, grpc.insecure_channel(target) as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/Audit",
            request_serializer=AuditRequest.SerializeToString,
            response_deserializer=AuditReply.FromString,
        )
        head = json.loads(ask(AuditRequest()).head)
    assert head == Ledger.open(site.parent / "ledger.sqlite").head().to_dict()
