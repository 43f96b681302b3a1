"""Directions that came with a request are used if they are the request's, fit and are orthonormal; else refused."""

import dataclasses

import numpy as np
import pytest

from client.app import make_app
from client.contract import (
    BASIS,
    ContractError,
    Failure,
    FailureCode,
    LearningPlan,
    decode_reply,
    encode_request,
    encode_weights,
)
from client.site import Models
from client.subspace import check_basis
from client.train import train_round
from privacy.noise import SeededRandomness
from tests.support.subspaces import orthonormal
from tests.unit.client.test_app import _context, _message
from tests.unit.client.test_site import DATA, PLAN, SPEC, _Events, _request, _site
from tests.unit.client.test_train import round_of
from vae.models import build
from vae.models.protocol import Vae
from vae.weights import hash_weights, to_numpy

K = 3
MODEL: Vae = build(SPEC, seed=0)


def basis_of(which="all", k=K, spec_model=MODEL):
    names = spec_model.trainable_names(which)
    shapes = {name: tuple(p.shape) for name, p in spec_model.named_parameters() if name in names}
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    parts = np.split(orthonormal(k, sum(sizes)).astype(np.float32), np.cumsum(sizes)[:-1], axis=1)
    return {name: part.reshape(k, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def in_subspace(weights, basis, *, hashed=None, **learning):
    asked = _request(weights)
    plan = LearningPlan(learning_rate=0.05, subspace=K, **learning)
    return dataclasses.replace(asked, learning=plan, basis_hash=hashed or hash_weights(basis))


@pytest.fixture
def weights():
    return to_numpy(MODEL, MODEL.shared_names("all"))


@pytest.mark.parametrize(
    "learning",
    [
        {},
        {"trainable": "decoder"},
        {"trainable": "biases", "optimiser": "adam-corrected"},
        {"proximal_mu": 0.3, "optimiser": "sgd", "momentum": 0.5},
        {"schedule": "cosine", "warmup_steps": 1, "total_steps": 6},
    ],
    ids=str,
)
def test_an_update_lies_in_the_span_and_costs_what_it_costs(tmp_path, weights, learning):
    basis = basis_of(learning.get("trainable", "all"))
    update = _site(tmp_path).train(in_subspace(weights, basis, **learning), weights, basis)
    moved = np.concatenate([update.delta[name].ravel() for name in basis]).astype(np.float64)
    matrix = np.concatenate([each.reshape(K, -1) for each in basis.values()], axis=1).astype(np.float64)
    assert np.linalg.norm(moved) > 1e-3
    assert np.linalg.norm(moved - moved @ matrix.T @ matrix) < 1e-5 * np.linalg.norm(moved) + 1e-6
    assert all(not each.any() for name, each in update.delta.items() if name not in basis)
    assert update.claim.releases == (PLAN.release(),)


def _spoilt(kind, basis):
    """Return directions with one fault."""
    first = sorted(basis)[0]
    changed = {name: each.copy() for name, each in basis.items()}
    if kind == "other":
        changed[first] = -changed[first]
    elif kind == "renamed":
        changed["x"] = changed.pop(first)
    elif kind == "fewer":
        changed = {name: each[:2] for name, each in changed.items()}
    elif kind == "shape":
        changed[first] = changed[first].reshape(K, -1, 1, 1)
    elif kind == "nan":
        changed[first].flat[0] = np.nan
    elif kind == "long":
        changed = {name: each * np.float32(1.001) for name, each in changed.items()}
    elif kind == "twice":
        changed = {name: each[[0, 1, 1]] for name, each in changed.items()}
    return changed


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("renamed", "basis: needs directions of exactly the parameters"),
        ("fewer", r"basis: every array must be \[subspace"),
        ("shape", r"basis: every array must be \[subspace"),
        ("nan", "basis: every direction must be finite"),
        ("long", "basis: directions must be orthonormal"),
        ("twice", "basis: directions must be orthonormal"),
    ],
)
def test_directions_that_cannot_be_used_are_refused_before_anything_is_spent(tmp_path, weights, kind, named):
    events, basis = _Events(), _spoilt(kind, basis_of())
    with pytest.raises(ContractError, match=named):
        _site(tmp_path, events=events).train(in_subspace(weights, basis), weights, basis)
    assert events == []


def test_directions_of_another_request_are_refused_before_anything_is_spent(tmp_path, weights):
    events, basis = _Events(), basis_of()
    for sent in (_spoilt("other", basis), {}, None):
        with pytest.raises(ContractError, match="basis"):
            _site(tmp_path, events=events).train(in_subspace(weights, basis), weights, sent)
    with pytest.raises(ContractError, match="basis: needs directions of exactly"):
        _site(tmp_path, events=events).train(_request(weights), weights, basis)
    assert events == []


def test_directions_are_of_what_is_trained_alone(weights):
    basis = basis_of("all")
    request = in_subspace(weights, basis, trainable="decoder")
    with pytest.raises(ContractError, match="exactly the parameters that are trained"):
        check_basis(request, Models("cpu").get(request, PLAN), basis)


def test_no_more_directions_than_trained_parameters(weights):
    count = sum(parameter.numel() for parameter in MODEL.parameters())
    basis = {name: np.zeros((count + 1, *p.shape), np.float32) for name, p in MODEL.named_parameters()}
    request = in_subspace(weights, basis)
    request = dataclasses.replace(request, learning=LearningPlan(subspace=count + 1))
    with pytest.raises(ContractError, match="subspace: more directions than trained parameters"):
        check_basis(request, MODEL, basis)


def test_the_relay_hands_directions_over_and_answers_a_refusal_with_a_code(tmp_path, weights, caplog):
    basis = basis_of()
    content = encode_request(in_subspace(weights, basis), weights)
    app = make_app(lambda context: _site(tmp_path))
    without = decode_reply(app(_message("train", content), _context()).content)
    assert without == Failure(site="site-1", code=FailureCode.BAD_REQUEST)
    content[BASIS] = encode_weights(_spoilt("other", basis))
    wrong = decode_reply(app(_message("train", content), _context()).content)
    assert wrong == Failure(site="site-1", code=FailureCode.BAD_REQUEST)
    content[BASIS] = encode_weights(basis)
    update = decode_reply(app(_message("train", content), _context()).content)
    assert update.claim.releases == (PLAN.release(),)


def test_a_round_takes_directions_and_their_number_together():
    with pytest.raises(ValueError, match="go together"):
        round_of(LearningPlan(subspace=2))
    with pytest.raises(ValueError, match="go together"):
        train_round(
            build(SPEC, seed=0),
            DATA.train,
            to_numpy(MODEL, MODEL.shared_names("all")),
            {},
            sharing="all",
            plan=PLAN,
            learning=LearningPlan(),
            basis=basis_of(),
            randomness=SeededRandomness(1, "train"),
        )


def test_versions_of_images_go_with_a_subspace():
    from tests.support.private_toys import make_cohort
    from vae.spec import ModelSpec

    spec = ModelSpec(family="vae", input_shape=(1, 8, 8), latent_size=2, channels=(4,))
    model = build(spec, seed=0)
    base = to_numpy(model, model.shared_names("all"))
    done = train_round(
        model,
        make_cohort((1, 8, 8), (1, 2, 1), covariates=0),
        base,
        {},
        sharing="all",
        plan=PLAN,
        learning=LearningPlan(subspace=K, augmentations=2, max_shift=1, flip=True),
        basis=basis_of(spec_model=model),
        randomness=SeededRandomness(1, "train"),
    )
    assert done.release == PLAN.release()
    assert any(change.any() for change in done.delta.values())
