"""What crosses the wire survives the way unchanged, and anything else is refused."""

import json

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from client.contract import (
    ContractError,
    Description,
    Failure,
    FailureCode,
    LearningPlan,
    TrainRequest,
    Update,
    decode_arrays,
    decode_reply,
    decode_request,
    encode_description,
    encode_failure,
    encode_request,
    encode_update,
    encode_weights,
)
from privacy.accounting import Release
from privacy.claim import Claim
from privacy.plan import PrivacyPlan
from vae.spec import ModelSpec


def some_weights():
    return {"b.weight": np.array([[0.1, -0.0], [1e-45, 3e38]], np.float32), "a": np.float32([7.0])}


def request(**changes):
    fields = {
        "run_id": "run",
        "round": 3,
        "base_hash": "ab" * 32,
        "model": ModelSpec(
            family="cvae", input_shape=(1, 8, 8), latent_size=2, channels=(4,), num_covariates=2
        ),
        "sharing": "decoder",
        "plan": PrivacyPlan(
            sampling_probability=0.1,
            steps=5,
            noise_multiplier=1.1,
            max_grad_norm=0.5,
            divisor=4.0,
            delta=1e-5,
            grad_engine="vmap",  # the one that goes with every way to learn
        ),
        "learning": LearningPlan(
            optimiser="sgd", learning_rate=0.1, momentum=0.9, kl_weight=0.5, proximal_mu=0.01
        ),
        "initial_seed": 11,
    }
    return TrainRequest(**{**fields, **changes})


def update(**changes):
    release = Release(sampling_probability=0.1, noise_multiplier=1.1, steps=5)
    fields = {
        "site": "site-1",
        "run_id": "run",
        "round": 3,
        "base_hash": "ab" * 32,
        "update_hash": "cd" * 32,
        "claim": Claim(site="site-1", unit="patient", delta=1e-5, kind="dp", releases=(release,)),
        "delta": some_weights(),
    }
    return Update(**{**fields, **changes})


def test_a_request_survives():
    decoded, weights = decode_request(encode_request(request(), some_weights()))
    assert decoded == request()
    assert {name: value.tobytes() for name, value in weights.items()} == {
        name: value.tobytes() for name, value in some_weights().items()
    }


def test_an_update_survives():
    decoded = decode_reply(encode_update(update()))
    assert isinstance(decoded, Update)
    assert (decoded.site, decoded.round, decoded.claim) == ("site-1", 3, update().claim)
    assert decoded.delta["b.weight"].tobytes() == some_weights()["b.weight"].tobytes()


def test_a_failure_and_a_description_survive():
    failure = Failure(site="site-1", code=FailureCode.BUDGET)
    assert decode_reply(encode_failure(failure)) == failure
    assert decode_reply(encode_description(Description(site="site-1"))) == Description(site="site-1")


def _edited(content, record, **fields):
    body = json.loads(content.config_records[record]["json"])
    content[record] = ConfigRecord({"json": json.dumps({**body, **fields})})
    return content


@pytest.mark.filterwarnings("ignore::privacy.unsafe.UnsafeWarning")
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"version": 99}, "version"),
        ({"round": -1}, "round"),
        ({"round": True}, "round"),
        ({"round": "3"}, "round"),
        ({"run_id": ""}, "run_id"),
        ({"sharing": "everything"}, "sharing"),
        ({"plan": {"kind": "patient-dp"}}, "plan"),
        ({"plan": None}, "plan"),
        ({"model": {}}, "model"),
        ({"learning": {"learning_rate": -1}}, "learning_rate"),
        ({"learning": {"speed": 1}}, "learning"),
        ({"extra": 1}, "fields"),
        ({"initial_seed": None}, "initial_seed"),
        ({"learning": {"schedule": "step"}}, "schedule must be one of constant"),
        ({"learning": {"schedule": "cosine"}}, "total_steps must be filled in for a schedule"),
        ({"learning": {"warmup_steps": 1}}, "total_steps must be filled in for a schedule"),
        ({"learning": {"warmup_steps": 2.0}}, "warmup_steps must be an integer"),
        ({"learning": {"final_share": 0}}, "final_share must be a number"),
        ({"learning": {"first_step": -1}}, "first_step must be an integer"),
        ({"learning": {"total_steps": True}}, "total_steps must be an integer"),
        ({"learning": {"moment_floor": 2}}, "moment_floor must be a number"),
        ({"learning": {"optimiser": "lamb"}}, "optimiser must be one of"),
        (
            {
                "plan": {"kind": "none", "steps": 1, "batch_patients": 1},
                "learning": {"optimiser": "adam-corrected"},
            },
            "adam-corrected corrects for noise",
        ),
        (
            {
                "plan": {**request().plan.to_dict(), "mechanism": "banded", "bands": 2},
                "learning": {"optimiser": "adam-corrected"},
            },
            "the same noise in every step, and banded noise is not",
        ),
        (
            {"plan": {**request().plan.to_dict(), "mechanism": "banded"}},
            "bands with mechanism banded must be an integer",
        ),
        ({"learning": {"precision": "fp8"}}, "precision must be one of float32, bf16"),
        (
            {
                "plan": {"kind": "none", "steps": 1, "batch_patients": 1},
                "learning": {"precision": "bf16"},
            },
            "precision: is of private steps",
        ),
        ({"learning": {"augmentations": 65}}, "augmentations must be an integer from 0 to 64"),
        ({"learning": {"max_gain": 1.0}}, "max_gain must be a number"),
        ({"learning": {"flip": "yes"}}, "flip must be true or false"),
        ({"learning": {"trainable": "heads"}}, "trainable must be one of all, decoder"),
        ({"learning": {"subspace": -1}}, "subspace must be an integer from 0 to 1024"),
        ({"learning": {"subspace": 2}}, "basis_hash: is given with a subspace"),
        ({"basis_hash": "ab"}, "basis_hash: is given with a subspace"),
        ({"basis_hash": None}, "basis_hash: a text"),
        (
            {
                "plan": {"kind": "none", "steps": 1, "batch_patients": 1},
                "learning": {"subspace": 2},
                "basis_hash": "ab",
            },
            "subspace: saves noise, and the plan has none",
        ),
        (
            {
                "plan": {**request().plan.to_dict(), "grad_engine": "opacus"},
                "learning": {"subspace": 2},
                "basis_hash": "ab",
            },
            "subspace: needs grad_engine vmap, got opacus",
        ),
        ({"learning": {"subspace": 2}, "basis_hash": "ab"}, "exactly the records of arrays basis, weights"),
        ({"sharing": "encoder", "learning": {"trainable": "decoder"}}, "trainable: nothing of it is shared"),
    ],
    ids=str,
)
def test_a_request_that_is_not_exact_is_refused_by_name(fields, named):
    content = _edited(encode_request(request(), some_weights()), "request", **fields)
    with pytest.raises(ContractError, match=named if named != "learning" else "speed|learning"):
        decode_request(content)


@pytest.mark.parametrize(
    "fields", [{"site": 3}, {"claim": "{}"}, {"kind": "gift"}, {"round": 1.5}, {"extra": 0}], ids=str
)
def test_a_reply_that_is_not_exact_is_refused(fields):
    with pytest.raises(ContractError):
        decode_reply(_edited(encode_update(update()), "reply", **fields))


def test_a_message_without_json_is_refused():
    with pytest.raises(ContractError, match="JSON object"):
        decode_reply(RecordDict({"reply": ConfigRecord({"json": "[1]"})}))
    with pytest.raises(ContractError, match="JSON object"):
        decode_reply(RecordDict({}))


def request_in_a_subspace():
    asked = request(learning=LearningPlan(subspace=2), basis_hash="cd" * 32)
    content = encode_request(asked, some_weights())
    content["basis"] = encode_weights({"a": np.float32([[1.0], [2.0]])})
    return asked, content


def test_the_directions_of_a_subspace_survive():
    asked, content = request_in_a_subspace()
    decoded, weights = decode_request(content)
    assert decoded == asked
    assert set(weights) == set(some_weights())
    assert decode_arrays(content, "basis")["a"].tolist() == [[1.0], [2.0]]


def test_directions_that_nobody_asked_for_or_that_are_not_float32_are_refused():
    content = encode_request(request(), some_weights())
    content["basis"] = encode_weights({"a": np.float32([[1.0]])})
    with pytest.raises(ContractError, match="exactly the records of arrays weights are"):
        decode_request(content)
    _, content = request_in_a_subspace()
    content["basis"] = ArrayRecord([np.ones(3)])
    with pytest.raises(ContractError, match="basis: every array must be float32"):
        decode_arrays(content, "basis")
    with pytest.raises(ContractError, match="more: a record of arrays is needed"):
        decode_arrays(content, "more")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.bool_])
def test_only_float32_is_accepted(dtype):
    content = encode_update(update())
    content["weights"] = ArrayRecord([np.ones(3, dtype)])
    with pytest.raises(ContractError, match="float32"):
        decode_reply(content)


def test_arrays_that_cannot_be_read_are_refused():
    content = encode_update(update())
    for array in content["weights"].values():
        array.data = b"\x93NUMPY\x01\x00garbage"
    with pytest.raises(ContractError, match="cannot be read"):
        decode_reply(content)


def test_a_second_record_of_arrays_is_refused():
    content = encode_update(update())
    content["more"] = ArrayRecord([np.ones(3, np.float32)])
    with pytest.raises(ContractError, match="exactly one"):
        decode_reply(content)


def test_a_failure_code_outside_the_vocabulary_is_refused():
    content = _edited(encode_failure(Failure(site="s", code=FailureCode.BUDGET)), "reply", code="because")
    with pytest.raises(ContractError):
        decode_reply(content)
