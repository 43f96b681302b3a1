"""How a deployed run ended, as its files tell it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from privacy.accounting import Release
from privacy.claim import Claim
from server.errors import EnrolmentError, QuorumLostError
from server.outcome import MODEL, NAME, write_done, write_failed
from server.strategy import StrategyState
from vae.weights import hash_weights

PLAN = SimpleNamespace(run_id="study-1", config_hash="0" * 64)
RELEASE = Release(sampling_probability=0.02, noise_multiplier=1.1, steps=40)
WEIGHTS = {"a": np.arange(3, dtype=np.float32)}


def claim(kind="dp", releases=(RELEASE,)):
    return Claim(site="north", unit="patient", delta=1e-5, kind=kind, releases=releases)


def state(one=None):
    return StrategyState(
        weights=WEIGHTS,
        optimiser={},
        rejections=(),
        claims={"north": (one or claim()).to_json()},
        participation=({"north": "admitted", "south": "late"}, {"north": "admitted", "south": "admitted"}),
    )


def read(folder):
    return json.loads((folder / NAME).read_text())


def test_a_run_that_was_done(tmp_path):
    write_done(tmp_path / "new", PLAN, state())
    told = read(tmp_path / "new")
    assert (told["ended"], told["run"], told["weights"]) == ("done", "study-1", hash_weights(WEIGHTS))
    assert [(line["round"], line["admitted"], line["sites"]) for line in told["rounds"]] == [
        (1, 1, 2),
        (2, 2, 2),
    ]
    assert told["claims"]["north"] == f"epsilon {claim().epsilons().pld:.2f} at delta 1e-05 per patient"
    assert (tmp_path / "new" / MODEL).is_file()


@pytest.mark.parametrize(
    ("one", "words"),
    [(claim("seeded"), "a rehearsal, nothing is private"), (claim("none", ()), "no differential privacy")],
)
def test_what_is_not_private_is_never_called_so(tmp_path, one, words):
    write_done(tmp_path, PLAN, state(one))
    assert words in read(tmp_path)["claims"]["north"]


def test_a_run_that_lost_its_quorum_tells_the_rounds_before_and_has_no_model(tmp_path):
    lost = QuorumLostError(round=3, admitted=["north"], quorum=2, state=state())
    write_failed(tmp_path, PLAN, lost)
    told = read(tmp_path)
    assert told["ended"] == "quorum-lost"
    assert told["message"] == str(lost)
    assert len(told["rounds"]) == 2
    assert not (tmp_path / MODEL).exists()


def test_a_run_that_never_began(tmp_path):
    write_failed(tmp_path, PLAN, EnrolmentError("no answer from north within 600 s"))
    assert read(tmp_path) == {
        "ended": "failed",
        "run": "study-1",
        "message": "no answer from north within 600 s",
    }
