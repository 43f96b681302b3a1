"""The ClientApp relays, and lets nothing but a code out when something goes wrong."""

import logging

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

import client.app
from client.app import make_app
from client.contract import Description, Failure, FailureCode, decode_reply
from client.errors import SiteError
from deploy.simulation.grid import identify

PLANTED = "/data/patient_0815/scan.nii"


class _Broken:
    def __init__(self, error):
        self.error = error

    def describe(self):
        return Description(site="site-1")

    def train(self, request, weights):
        raise self.error


def _context():
    return Context(run_id=1, node_id=2, node_config={"site": "site-1"}, state=RecordDict(), run_config={})


def _message(kind, content=None):
    identify(1)
    message = Message(content or RecordDict({"x": ConfigRecord()}), 2, kind)
    message.metadata.__dict__["_message_id"] = "m1"
    return message


def _train_content():
    from client.contract import encode_request
    from tests.unit.client.test_contract import request, some_weights

    return encode_request(request(), some_weights())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError(f"boom {PLANTED}"), FailureCode.INTERNAL),
        (SiteError(FailureCode.BUDGET, PLANTED), FailureCode.BUDGET),
        (MemoryError(PLANTED), FailureCode.OUT_OF_MEMORY),
        (FileNotFoundError(PLANTED), FailureCode.INTERNAL),
    ],
)
def test_the_text_of_an_exception_stays_at_the_site(error, code, caplog):
    with caplog.at_level(logging.CRITICAL):
        reply = make_app(lambda context: _Broken(error))(_message("train", _train_content()), _context())
    assert decode_reply(reply.content) == Failure(site="site-1", code=code)
    assert PLANTED not in str(reply)


def test_a_malformed_request_is_answered_with_a_code(caplog):
    with caplog.at_level(logging.CRITICAL):
        reply = make_app(lambda context: _Broken(RuntimeError()))(_message("train"), _context())
    assert decode_reply(reply.content) == Failure(site="site-1", code=FailureCode.BAD_REQUEST)


def test_describe_names_the_site():
    reply = make_app(lambda context: _Broken(RuntimeError()))(_message("query.describe"), _context())
    assert decode_reply(reply.content) == Description(site="site-1")


def test_without_an_agent_nothing_runs(caplog):
    with caplog.at_level(logging.CRITICAL):
        reply = client.app.app(_message("query.describe"), _context())
    assert decode_reply(reply.content) == Failure(site="site-1", code=FailureCode.UNREACHABLE)


def test_the_relay_needs_no_torch():
    import subprocess
    import sys
    from pathlib import Path

    code = "import sys, client.app, client.relay; sys.exit('torch' in sys.modules or 'opacus' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False)
    assert done.returncode == 0
