"""A site refuses before any side effect, pays before it opens data, and answers a repeated request from its store."""

import dataclasses

import numpy as np
import pytest

from client.contract import FailureCode, LearningPlan, TrainRequest
from client.errors import SiteError
from client.site import Site, local_weights
from privacy.errors import RefusalCode, RefusedError
from privacy.journal import SpendJournal
from privacy.noise import SeededRandomness, SystemRandomness
from privacy.plan import PrivacyPlan
from server.federation import initial_weights
from vae.data.toy import ToySpec, open_toy
from vae.spec import ModelSpec
from vae.weights import hash_weights

SPEC = ModelSpec(family="vae", input_shape=(5,), latent_size=2, channels=(6,))
PLAN = PrivacyPlan(
    sampling_probability=0.5,
    steps=3,
    noise_multiplier=1.0,
    max_grad_norm=1.0,
    divisor=4.0,
    delta=1e-3,
    randomness="seeded",
)
DATA = open_toy(ToySpec(sites=1, patients_per_site=8, features=5), site=0)


class _Events(list):
    """What happened, in order."""


class _Spending:
    """Notes when it is asked, beside a real journal."""

    def __init__(self, journal, events):
        self._journal, self._events = journal, events

    def reserve(self, key, release):
        self._journal.reserve(key, release)
        self._events.append("reserve")

    def commit(self, key, steps_done):
        self._journal.commit(key, steps_done)
        self._events.append("commit")

    def history(self):
        return self._journal.history()


def _site(tmp_path, *, events=None, decide=lambda request: request.plan, keep_updates=True, seed=1, os=False):
    events = _Events() if events is None else events

    def open_data():
        events.append("open")
        return DATA

    def randomness(request):
        events.append("train")
        return SystemRandomness() if os else SeededRandomness(seed, request.run_id, "site-1", request.round)

    return Site(
        "site-1",
        open_data=open_data,
        folder=tmp_path,
        decide=decide,
        randomness=randomness,
        spending=lambda run_id: _Spending(SpendJournal(tmp_path / "spent.jsonl"), events),
        keep_updates=keep_updates,
    )


def _request(weights, *, round_=1, plan=PLAN, sharing="all", model=SPEC, **changes):
    return TrainRequest(
        run_id="run",
        round=round_,
        base_hash=hash_weights(weights),
        model=model,
        sharing=sharing,
        plan=plan,
        learning=LearningPlan(learning_rate=0.01),
        **changes,
    )


@pytest.fixture
def weights():
    return initial_weights(SPEC, "all", 0)


def test_reserves_before_it_opens_data_and_commits_before_it_answers(tmp_path, weights):
    events = _Events()
    update = _site(tmp_path, events=events).train(_request(weights), weights)
    assert events == ["reserve", "open", "train", "commit"]
    assert [release.steps for release in update.claim.releases] == [3]
    assert (update.claim.kind, update.claim.unit, update.claim.delta) == ("seeded", "patient", 1e-3)
    assert update.update_hash == hash_weights(update.delta)
    assert set(update.delta) == set(weights)


def test_noise_of_the_operating_system_makes_a_dp_claim(tmp_path, weights):
    plan = dataclasses.replace(PLAN, randomness="os")
    assert _site(tmp_path, os=True).train(_request(weights, plan=plan), weights).claim.kind == "dp"


def test_a_repeated_request_is_answered_from_store_and_costs_nothing(tmp_path, weights):
    plan = dataclasses.replace(PLAN, randomness="os")
    first = _site(tmp_path, os=True).train(_request(weights, plan=plan), weights)
    events = _Events()
    again = _site(tmp_path, events=events, os=True).train(_request(weights, plan=plan), weights)
    assert events == []
    assert hash_weights(again.delta) == hash_weights(first.delta)
    assert again.claim == first.claim


def test_another_round_costs_again(tmp_path, weights):
    site = _site(tmp_path)
    site.train(_request(weights), weights)
    update = site.train(_request(weights, round_=2), weights)
    assert sum(release.steps for release in update.claim.releases) == 6


def test_weights_that_are_not_those_of_the_base_are_refused_before_anything(tmp_path, weights):
    events = _Events()
    other = {name: value + 1 for name, value in weights.items()}
    with pytest.raises(SiteError, match="base_hash") as refused:
        _site(tmp_path, events=events).train(_request(weights), other)
    assert refused.value.code is FailureCode.BAD_REQUEST
    assert events == []


def test_weights_of_another_model_are_refused_before_anything(tmp_path):
    events = _Events()
    other = initial_weights(dataclasses.replace(SPEC, channels=(7,)), "all", 0)
    with pytest.raises(SiteError, match="not those of the model"):
        _site(tmp_path, events=events).train(_request(other), other)
    assert events == []


def test_a_refusing_policy_is_asked_first(tmp_path, weights):
    events = _Events()

    def refuse(request):
        raise RefusedError(next(iter(RefusalCode)), "not here")

    with pytest.raises(RefusedError, match="not here"):
        _site(tmp_path, events=events, decide=refuse).train(_request(weights), weights)
    assert events == []
    assert not (tmp_path / "spent.jsonl").exists()


def test_a_tightened_plan_is_the_one_that_is_followed_and_claimed(tmp_path, weights):
    def tighten(request):
        return dataclasses.replace(request.plan, noise_multiplier=3.0)

    update = _site(tmp_path, decide=tighten).train(_request(weights), weights)
    assert [release.noise_multiplier for release in update.claim.releases] == [3.0]


def test_the_record_as_unit_is_claimed_as_such(tmp_path, weights):
    plan = dataclasses.replace(PLAN, unit="record", max_records_per_patient=1)
    assert _site(tmp_path).train(_request(weights, plan=plan), weights).claim.unit == "record"


@pytest.mark.parametrize("sharing", ["decoder", "encoder", "norm-local"])
def test_what_is_not_shared_stays_and_is_taken_up_in_the_next_round(sharing, tmp_path):
    shared = initial_weights(SPEC, sharing, 0)
    site = _site(tmp_path)
    first = _request(shared, sharing=sharing)
    update = site.train(first, shared)
    assert set(update.delta) == set(shared)
    own = local_weights(tmp_path, first, 1)
    fresh = local_weights(tmp_path, first, 0)
    assert set(own) | set(shared) == set(initial_weights(SPEC, "all", 0))
    assert not own or any((own[name] != fresh[name]).any() for name in own)
    repeated = site.train(_request(shared, sharing=sharing), shared)
    assert hash_weights(repeated.delta) == hash_weights(update.delta)


def test_equal_requests_give_equal_bits_without_a_store(tmp_path, weights):
    first = _site(tmp_path / "a", keep_updates=False)
    second = _site(tmp_path / "b", keep_updates=False)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    deltas = [site.train(_request(weights), weights).delta for site in (first, second)]
    assert hash_weights(deltas[0]) == hash_weights(deltas[1])
    (tmp_path / "c").mkdir()
    other = _site(tmp_path / "c", seed=2, keep_updates=False).train(_request(weights), weights).delta
    assert hash_weights(other) != hash_weights(deltas[0])


def test_the_diary_holds_losses_and_stays_in_the_folder(tmp_path, weights):
    import json

    _site(tmp_path).train(_request(weights), weights)
    (line,) = (tmp_path / "diary.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["round"] == 1
    assert np.isfinite([entry["loss"], entry["reconstruction"], entry["kl"], entry["wall_s"]]).all()
