"""A site that runs out of memory trains the same round with fewer records at a time: same plan, price and result."""

import dataclasses
import logging

import numpy as np
import pytest
import torch

import privacy.clipping
import privacy.training
from client.contract import FailureCode, LearningPlan
from client.errors import SiteError
from client.memory import PhysicalBatch
from client.site import Models
from client.train import local_losses, train_round
from privacy.noise import SeededRandomness
from privacy.unsafe import NoPrivacy
from server.federation import initial_weights
from tests.support.private_toys import make_cohort
from tests.support.site_ledgers import open_ledger
from tests.unit.client.test_site import DATA, PLAN, SPEC, _Events, _request, _site
from vae.models import build
from vae.weights import to_numpy

ERRORS = [torch.OutOfMemoryError, MemoryError]


@pytest.fixture
def weights():
    return initial_weights(SPEC, "all", 0)


@pytest.fixture
def fits(monkeypatch):
    """Return what makes memory end when gradients of more than some patients are there at once."""

    def limit(patients, error=torch.OutOfMemoryError):
        add = privacy.clipping.Accumulator.add

        def checked(self, gradients, losses):
            if len(losses) > patients:
                raise error("no memory")
            add(self, gradients, losses)

        monkeypatch.setattr(privacy.clipping.Accumulator, "add", checked)

    return limit


@pytest.fixture
def ends_once(monkeypatch):
    """Return what makes memory end once, at some step (from 0), when its gradients are summed."""

    def at(step, error=torch.OutOfMemoryError):
        steps = []
        noised_mean = privacy.training.noised_mean

        def counted(*arguments):
            steps.append(1)
            if len(steps) == step + 1:
                raise error("no memory")
            return noised_mean(*arguments)

        monkeypatch.setattr(privacy.training, "noised_mean", counted)
        return steps

    return at


def _models(weights, records=64):
    """Return models, checked, of which so many records are computed at once from the start."""
    models = Models("cpu")
    models.batch = PhysicalBatch(records)
    models.get(_request(weights), PLAN)
    return models


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_fault_at_any_step_changes_neither_result_nor_price(tmp_path, weights, ends_once, step, error):
    whole = _site(tmp_path / "whole").train(_request(weights), weights)
    events, steps = _Events(), ends_once(step, error)
    update = _site(tmp_path / "again", events=events).train(_request(weights), weights)
    assert len(steps) == (step + 1) + PLAN.steps, "from the beginning again"
    assert events == ["reserve", "open", "train", "commit"]
    assert update.claim == whole.claim
    assert update.claim.releases == (PLAN.release(),)
    assert update.update_hash == whole.update_hash, "the batch fits into half as well, so bits are equal"
    assert len(open_ledger(tmp_path / "again", DATA.train.patients).entries()) == 3


def test_the_result_is_that_of_the_smaller_batch_from_the_start(tmp_path, weights, fits):
    whole = _site(tmp_path / "whole").train(_request(weights), weights)
    small = _site(tmp_path / "small", models=_models(weights, 2)).train(_request(weights), weights)
    models = _models(weights)
    fits(2)
    update = _site(tmp_path / "again", models=models).train(_request(weights), weights)
    assert models.batch.records == 2
    assert update.update_hash == small.update_hash
    for name, value in whole.delta.items():
        np.testing.assert_allclose(update.delta[name], value, rtol=1e-4, atol=1e-6)


def test_the_smaller_batch_is_kept_for_later_rounds_and_logged_once(tmp_path, weights, fits, caplog):
    site = _site(tmp_path, models=_models(weights))
    fits(2)
    with caplog.at_level(logging.WARNING, "client.memory"):
        site.train(_request(weights), weights)
        first = [record.args for record in caplog.records]
        site.train(_request(weights, round_=2), weights)
    assert first == [(64, 32), (32, 16), (16, 8), (8, 4), (4, 2)]
    assert [record.args for record in caplog.records] == first


def test_without_memory_for_one_record_it_fails_by_code_and_stays_reserved(tmp_path, weights, fits):
    site = _site(tmp_path, models=_models(weights))
    fits(0)
    with pytest.raises(SiteError, match="does not suffice for one record") as raised:
        site.train(_request(weights), weights)
    assert raised.value.code is FailureCode.OUT_OF_MEMORY
    state = open_ledger(tmp_path, DATA.train.patients).state()
    assert [release.steps for release in state.releases("c0")] == [PLAN.steps]
    assert len(state.reservations) == 1
    assert not list(tmp_path.glob("*/update.safetensors"))


def test_what_was_reserved_pays_for_the_round_once_there_is_memory_again(tmp_path, weights, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("client.site.train_round", _no_memory)
        with pytest.raises(SiteError):
            _site(tmp_path).train(_request(weights), weights)
    update = _site(tmp_path).train(_request(weights), weights)
    assert update.claim.releases == (PLAN.release(),)


def _no_memory(*arguments, **options):
    raise MemoryError


def test_every_attempt_draws_the_same_sample_and_noise_and_every_round_another(
    tmp_path, weights, monkeypatch
):
    drawn = []

    def train(*arguments, randomness, physical_records, **options):
        drawn.append([randomness.stream(purpose).words(4).tolist() for purpose in ("sampling", "noise")])
        if physical_records > 16:
            raise torch.OutOfMemoryError("no memory")
        return train_round(*arguments, randomness=randomness, physical_records=physical_records, **options)

    monkeypatch.setattr("client.site.train_round", train)
    plan = dataclasses.replace(PLAN, randomness="os")
    site = _site(tmp_path, os=True)
    for round_ in (1, 2):
        site.train(_request(weights, plan=plan, round_=round_), weights)
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3]
    assert len(drawn) == 4


class _EndsOnce(torch.autograd.Function):
    """The identity, whose third backward pass runs out of memory."""

    generate_vmap_rule = True
    passes = 0

    @staticmethod
    def forward(value):
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        _EndsOnce.passes += 1
        if _EndsOnce.passes == 3:
            raise torch.OutOfMemoryError("no memory")
        return gradient.clone()


@pytest.mark.parametrize("engine", ["vmap", "opacus", "bookkeeping"])
def test_a_fault_amid_a_backward_pass_leaves_nothing_in_the_model(engine, monkeypatch):
    """What an engine left of the decoder's gradients would be summed once more: twice the clip."""
    model = build(SPEC, seed=0)
    base = to_numpy(model, model.shared_names("all"))
    cohort = make_cohort(SPEC.input_shape, (1, 2, 1, 1, 3, 1))

    def train(records):
        done = train_round(
            model,
            cohort,
            base,
            {},
            sharing="all",
            plan=dataclasses.replace(PLAN, grad_engine=engine),
            learning=LearningPlan(),
            randomness=SeededRandomness(1),
            physical_records=records,
        )
        return done.delta

    expected = train(2)
    encode = model.encoder.forward
    monkeypatch.setattr(_EndsOnce, "passes", 0)
    monkeypatch.setattr(model.encoder, "forward", lambda *rows: _EndsOnce.apply(encode(*rows)))
    batch = PhysicalBatch(4)
    done = batch.fit(train)
    assert batch.records == 2
    for name, value in expected.items():
        np.testing.assert_allclose(done[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore::privacy.unsafe.UnsafeWarning")
def test_without_privacy_batches_are_smaller_too(tmp_path, weights, monkeypatch):
    seen, chunks = [], privacy.training.patient_chunks

    def look(batch, noise, max_rows, *, like):
        seen.append(max_rows)
        if max_rows > 64:
            raise MemoryError
        return chunks(batch, noise, max_rows, like=like)

    monkeypatch.setattr(privacy.training, "patient_chunks", look)
    plan = NoPrivacy(steps=2, batch_patients=8)
    update = _site(tmp_path).train(_request(weights, plan=plan), weights)
    assert seen == [256, 128, 64, 64]
    assert update.claim.kind == "none"


def test_losses_of_the_diary_take_no_more_memory_than_a_round(tmp_path, weights, monkeypatch):
    model, cohort = build(SPEC, seed=0), make_cohort((5,), (1, 2, 3, 1, 2, 1))
    whole = local_losses(model, cohort, kl_weight=1.0)
    seen, loss_of = [], type(model).per_sample_loss

    def look(self, values, *arguments, **options):
        seen.append(len(values))
        return loss_of(self, values, *arguments, **options)

    monkeypatch.setattr(type(model), "per_sample_loss", look)
    small = local_losses(model, cohort, kl_weight=1.0, physical_records=1)
    assert seen == [4, 4, 2]
    assert small == pytest.approx(whole, rel=1e-6)

    def ends(*arguments, physical_records, **options):
        if physical_records > 32:
            raise MemoryError
        return {"loss": 1.5}

    monkeypatch.setattr("client.site.local_losses", ends)
    _site(tmp_path).train(_request(weights), weights)
    assert '"loss": 1.5' in (tmp_path / "diary.jsonl").read_text()
