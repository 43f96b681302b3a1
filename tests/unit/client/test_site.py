"""A site refuses before any side effect, pays before it opens data, and answers a repeated request from its store."""

import dataclasses

import numpy as np
import pytest

from client.contract import FailureCode, LearningPlan, TrainRequest
from client.errors import SiteError
from client.failure import code_of
from client.site import Models, Site, local_weights
from privacy.budget import LedgerSpending
from privacy.errors import RefusalCode, RefusedError
from privacy.noise import SeededRandomness, SystemRandomness
from privacy.plan import PrivacyPlan
from server.federation import initial_weights
from tests.support.site_ledgers import POLICY, open_ledger
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
    grad_engine="vmap",
)
DATA = open_toy(ToySpec(sites=1, patients_per_site=8, features=5), site=0)


class _Events(list):
    """What happened, in order."""


class _Spending(LedgerSpending):
    """Notes when it is asked, beside a real ledger."""

    def __init__(self, ledger, policy, events):
        super().__init__(ledger, policy)
        self._events = events

    def reserve(self, work, plan, *, model):
        known = super().reserve(work, plan, model=model)
        self._events.append("reserve")
        return known

    def commit(self, work, steps, update):
        super().commit(work, steps, update)
        self._events.append("commit")


def _site(
    tmp_path, *, events=None, decide=lambda request: request.plan, keep_updates=True, seed=1, os=False,
    epsilon=1e3, **changes,
):  # fmt: skip
    events = _Events() if events is None else events
    ledger = open_ledger(
        tmp_path, DATA.train.patients, epsilon=epsilon, delta=1e-3, seeded=not os, release=PLAN.release()
    )

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
        spending=lambda run_id: _Spending(ledger, POLICY, events),
        keep_updates=keep_updates,
        **changes,
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


def test_banded_noise_reserves_commits_and_claims_what_it_is_charged(tmp_path, weights):
    plan = dataclasses.replace(PLAN, mechanism="banded", bands=2)
    site = _site(tmp_path)
    update = site.train(_request(weights, plan=plan), weights)
    assert update.claim.releases == (plan.release(),)
    assert plan.release().steps == 2  # of three steps a patient can be in two at most
    (reserved, _), (committed, _) = open_ledger(tmp_path, DATA.train.patients).entries()[-2:]
    assert b"banded Gaussian noise (2 bands, 3 steps)" in reserved
    assert b'"steps":[2]' in committed


def test_noise_of_the_operating_system_makes_a_dp_claim(tmp_path, weights):
    plan = dataclasses.replace(PLAN, randomness="os")
    assert _site(tmp_path, os=True).train(_request(weights, plan=plan), weights).claim.kind == "dp"


def test_a_repeated_request_is_answered_from_store_and_costs_nothing(tmp_path, weights):
    plan = dataclasses.replace(PLAN, randomness="os")
    first = _site(tmp_path, os=True).train(_request(weights, plan=plan), weights)
    events = _Events()
    again = _site(tmp_path, events=events, os=True).train(_request(weights, plan=plan), weights)
    assert events == ["commit"], "which changes nothing"
    assert len(open_ledger(tmp_path, DATA.train.patients).entries()) == 3
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


def test_a_refusing_policy_is_asked_first_and_its_refusal_is_written_down(tmp_path, weights):
    events = _Events()

    def refuse(request):
        raise RefusedError(RefusalCode.POLICY_MODEL, "not here")

    request = _request(weights)
    with pytest.raises(RefusedError, match="not here"):
        _site(tmp_path, events=events, decide=refuse).train(request, weights)
    assert events == []
    state = open_ledger(tmp_path, DATA.train.patients).state()
    assert state.refused == {(request.work, "model-not-allowed")}
    assert not state.reservations


def test_when_the_cap_is_reached_it_refuses_by_name_before_data_are_opened(tmp_path, weights):
    events = _Events()
    site = _site(tmp_path, events=events, epsilon=8.0)
    allowed = 0

    def train_on():
        nonlocal allowed
        for round_ in range(1, 50):
            site.train(_request(weights, round_=round_), weights)
            allowed, events[:] = round_, []

    with pytest.raises(RefusedError, match=r"epsilon .* of 8 is spent") as refused:
        train_on()
    assert allowed >= 1
    assert refused.value.code is RefusalCode.BUDGET_EXHAUSTED
    assert code_of(refused.value) is FailureCode.BUDGET
    assert events == []


def test_a_second_study_starts_from_what_the_first_one_spent(tmp_path, weights):
    def rounds_until_refused(site, run_id):
        for round_ in range(1, 100):
            try:
                site.train(dataclasses.replace(_request(weights, round_=round_), run_id=run_id), weights)
            except RefusedError:
                return round_ - 1
        raise AssertionError("never refused")

    alone = rounds_until_refused(_site(tmp_path / "a", epsilon=12.0), "second")
    site = _site(tmp_path / "b", epsilon=12.0)
    for round_ in (1, 2):
        site.train(_request(weights, round_=round_), weights)
    assert rounds_until_refused(site, "second") == alone - 2 > 0


def test_a_crash_before_the_commit_stays_spent_and_is_not_paid_for_again(tmp_path, weights, monkeypatch):
    site = _site(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("client.site.train_round", _crash)
        with pytest.raises(KeyboardInterrupt):
            site.train(_request(weights), weights)
    spent = open_ledger(tmp_path, DATA.train.patients).state().releases("c0")
    assert [release.steps for release in spent] == [3]
    update = _site(tmp_path).train(_request(weights), weights)
    assert [release.steps for release in update.claim.releases] == [3]


def test_a_crash_between_store_and_commit_sends_the_stored_update_not_another(tmp_path, weights, monkeypatch):
    plan = dataclasses.replace(PLAN, randomness="os")
    with monkeypatch.context() as patch:
        patch.setattr(LedgerSpending, "commit", _crash)
        with pytest.raises(KeyboardInterrupt):
            _site(tmp_path, os=True).train(_request(weights, plan=plan), weights)
    events = _Events()
    update = _site(tmp_path, os=True, events=events).train(_request(weights, plan=plan), weights)
    assert events == ["commit"]
    (paid,) = open_ledger(tmp_path, DATA.train.patients).state().reservations.values()
    assert paid.update == update.update_hash


def test_a_committed_update_that_is_lost_is_never_made_again(tmp_path, weights):
    plan = dataclasses.replace(PLAN, randomness="os")
    _site(tmp_path, os=True).train(_request(weights, plan=plan), weights)
    (stored,) = tmp_path.glob("*/update.safetensors")
    stored.unlink()
    with pytest.raises(RefusedError, match="update-lost"):
        _site(tmp_path, os=True).train(_request(weights, plan=plan), weights)


def test_a_ledger_older_than_a_witnessed_head_signs_nothing(tmp_path, weights):
    site = _site(tmp_path)
    site.train(_request(weights), weights)
    older = (tmp_path / "ledger.sqlite").read_bytes()
    head = site.train(_request(weights, round_=2), weights).receipt.head
    (tmp_path / "ledger.sqlite").write_bytes(older)
    restored = _site(tmp_path)
    before = open_ledger(tmp_path, DATA.train.patients).head()
    with pytest.raises(RefusedError, match="ledger-rolled-back"):
        restored.train(_request(weights, round_=3, heads=(head,)), weights)
    assert open_ledger(tmp_path, DATA.train.patients).head() == before


def test_an_update_carries_a_receipt_that_a_witness_can_check(tmp_path, weights):
    site = _site(tmp_path)
    first = site.train(_request(weights), weights)
    second = site.train(_request(weights, round_=2, heads=(first.receipt.head,)), weights)
    asked = {"run": "run", "round_": 2, "base": second.base_hash, "update": second.update_hash}
    assert second.receipt.fault(**asked, known=first.receipt.head) is None
    assert second.receipt.fault(**{**asked, "round_": 1}, known=first.receipt.head) is not None


def test_only_patients_of_the_ledger_are_trained_on(tmp_path, weights, monkeypatch):
    few = DATA.train.patients[:5]
    open_ledger(tmp_path, few, seeded=True)
    seen = []
    monkeypatch.setattr(
        "client.site.train_round", lambda model, cohort, *rest, **more: seen.append(cohort) or _crash()
    )
    with pytest.raises(KeyboardInterrupt):
        _site(tmp_path).train(_request(weights), weights)
    assert seen[0].patients == few


def test_training_that_takes_too_long_is_ended_and_stays_spent(tmp_path, weights):
    with pytest.raises(TimeoutError):
        _site(tmp_path, max_runtime_s=1e-9).train(_request(weights), weights)
    spent = open_ledger(tmp_path, DATA.train.patients).state().releases("c0")
    assert [release.steps for release in spent] == [3]


def _crash(*arguments, **options):
    raise KeyboardInterrupt


def test_a_tightened_plan_is_the_one_that_is_followed_and_claimed(tmp_path, weights):
    def tighten(request):
        return dataclasses.replace(request.plan, noise_multiplier=3.0)

    update = _site(tmp_path, decide=tighten).train(_request(weights), weights)
    assert [release.noise_multiplier for release in update.claim.releases] == [3.0]


def test_a_plan_that_protects_single_records_is_refused_by_a_ledger_of_patients(tmp_path, weights):
    plan = dataclasses.replace(PLAN, unit="record", max_records_per_patient=1)
    with pytest.raises(RefusedError, match="unit-not-patient"):
        _site(tmp_path).train(_request(weights, plan=plan), weights)


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
    deltas = [site.train(_request(weights), weights).delta for site in (first, second)]
    assert hash_weights(deltas[0]) == hash_weights(deltas[1])
    other = _site(tmp_path / "c", seed=2, keep_updates=False).train(_request(weights), weights).delta
    assert hash_weights(other) != hash_weights(deltas[0])


def test_the_diary_holds_losses_and_stays_in_the_folder(tmp_path, weights):
    import json

    _site(tmp_path).train(_request(weights), weights)
    (line,) = (tmp_path / "diary.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["round"] == 1
    assert np.isfinite([entry["loss"], entry["reconstruction"], entry["kl"], entry["wall_s"]]).all()


def test_a_precision_for_gpus_is_refused_where_there_is_none_before_anything_is_spent(tmp_path, weights):
    events = _Events()
    learning = LearningPlan(learning_rate=0.01, precision="bf16")
    request = dataclasses.replace(_request(weights), learning=learning)
    site = _site(tmp_path, events=events, models=Models("cpu"))
    with pytest.raises(SiteError, match="precision bf16: is for a GPU") as caught:
        site.train(request, weights)
    assert caught.value.code is FailureCode.BAD_REQUEST
    assert events == []


def test_what_is_trained_reaches_the_update(tmp_path, weights):
    learning = LearningPlan(learning_rate=0.01, trainable="decoder")
    request = dataclasses.replace(_request(weights), learning=learning)
    update = _site(tmp_path).train(request, weights)
    assert set(update.delta) == set(weights)
    moved = {name for name, change in update.delta.items() if change.any()}
    assert moved == {name for name in weights if name.startswith(("decoder.", "log_scale."))}
