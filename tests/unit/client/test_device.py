"""Where a site computes: the choice, with GPUs that are not there; and what a real one does, where there is one."""

import dataclasses

import pytest
import torch

from client.contract import FailureCode, LearningPlan, TrainRequest
from client.device import choose_device, gpu_of_worker, num_gpus
from client.errors import SiteError
from client.site import Models
from client.train import device_of, local_losses, train_round
from privacy.noise import SeededRandomness
from privacy.plan import PrivacyPlan
from tests.support.private_toys import make_cohort
from vae.models import build
from vae.spec import ModelSpec
from vae.weights import to_numpy

SPEC = ModelSpec(family="vae", input_shape=(1, 8, 8), latent_size=2, channels=(4,))
PLAN = PrivacyPlan(
    sampling_probability=0.5,
    steps=3,
    noise_multiplier=1.0,
    max_grad_norm=1.0,
    divisor=4.0,
    delta=1e-3,
    randomness="seeded",
    grad_engine="bookkeeping",
)
REQUEST = TrainRequest(
    run_id="r", round=1, base_hash="b", model=SPEC, sharing="all", plan=PLAN, learning=LearningPlan()
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU on this machine")


@pytest.fixture
def gpus(monkeypatch):
    """Return what makes torch see some GPUs."""

    def see(count, current=0):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)

    return see


def test_without_a_gpu_the_cpu_computes(gpus):
    gpus(0)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(SiteError, match="torch sees no GPU here; use auto or cpu") as caught:
        choose_device("cuda")
    assert caught.value.code is FailureCode.INTERNAL


def test_a_gpu_is_taken_unless_the_cpu_is_wanted(gpus):
    gpus(4, current=2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 2)
    assert choose_device("cpu") == torch.device("cpu")
    assert (num_gpus("auto"), num_gpus("cuda"), num_gpus("cpu")) == (4, 4, 0)


def test_workers_are_shared_out_among_gpus_one_after_another():
    assert [gpu_of_worker(worker, 3) for worker in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [gpu_of_worker(worker, 1) for worker in range(3)] == [0, 0, 0]
    assert gpu_of_worker(5, 0) is None


def test_a_model_is_moved_once_and_stays_resident(monkeypatch):
    monkeypatch.setattr("client.site.choose_device", lambda wanted: torch.device("meta"))
    models = Models("auto")
    model = models.get(REQUEST, PLAN)
    assert device_of(model).type == "meta"
    monkeypatch.setattr("client.site.choose_device", lambda wanted: pytest.fail("moved again"))
    assert models.get(REQUEST, PLAN) is model


def test_what_is_trained_is_checked_for_each_choice():
    models = Models("cpu")
    last = dataclasses.replace(REQUEST, learning=LearningPlan(trainable="last"))
    assert models.get(REQUEST, PLAN) is not models.get(last, PLAN)
    assert all(parameter.requires_grad for parameter in models.get(last, PLAN).parameters())


def test_the_guard_sees_the_model_with_what_is_frozen(monkeypatch):
    seen = []

    def look(model, *rest, **options):
        seen.append({name for name, parameter in model.named_parameters() if parameter.requires_grad})

    monkeypatch.setattr("client.site.check_model", look)
    last = dataclasses.replace(REQUEST, learning=LearningPlan(trainable="last"))
    model = Models("cpu").get(last, PLAN)
    assert seen == [model.trainable_names("last")]


def _round(device, **learning):
    model = build(SPEC, seed=0)
    base = to_numpy(model, model.shared_names("all"))
    model.to(device)
    cohort = make_cohort(SPEC.input_shape, (1, 2, 3, 1, 2))
    done = train_round(
        model,
        cohort,
        base,
        {},
        sharing="all",
        plan=PLAN,
        learning=LearningPlan(optimiser="sgd", **learning),
        randomness=SeededRandomness(1),
    )
    return done, local_losses(model, cohort, kl_weight=1.0)


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_round_on_a_gpu_is_that_on_the_cpu_up_to_rounding(precision):
    (there, losses), (here, expected) = _round("cuda", precision=precision), _round("cpu")
    tolerance = 1e-4 if precision == "float32" else 3e-2
    for name, change in here.delta.items():
        scale = float(abs(change).max())
        assert abs(there.delta[name] - change).max() <= tolerance * scale, name
    assert losses == pytest.approx(expected, rel=tolerance)


@needs_gpu
def test_a_resident_model_lies_on_the_gpu():
    assert device_of(Models("auto").get(REQUEST, PLAN)).type == "cuda"
    assert device_of(Models("cpu").get(REQUEST, PLAN)).type == "cpu"
