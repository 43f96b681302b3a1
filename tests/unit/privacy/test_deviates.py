"""Noise made ahead or on a device: the deviates of the CPU's stream, on the CPU's grid."""

import threading

import numpy as np
import pytest
import torch

from privacy import training
from privacy.deviates import (
    AheadStream,
    DeviceStream,
    noised_on_device,
    normal_of_words,
    release_into,
    words_of,
)
from privacy.noise import KeyStream, SeededRandomness
from privacy.plan import GradEngine, PrivacyPlan
from privacy.training import noised_mean
from tests.support.private_toys import LATENT, SHAPES, make_cohort, make_module, weights_of

KEY = bytes(range(32))
PLAN = PrivacyPlan(
    sampling_probability=0.1, steps=1, noise_multiplier=1.3, max_grad_norm=0.7, divisor=6.0, delta=1e-5
)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def as_words(*values: int) -> torch.Tensor:
    return torch.from_numpy(np.array(values, dtype="<u8").view("<i8"))


def test_words_are_those_of_the_stream_however_they_are_asked_for():
    whole, again = words_of(KeyStream(KEY), 1000), KeyStream(KEY)
    assert torch.equal(whole, torch.cat([words_of(again, count) for count in (1, 0, 999)]))


@pytest.mark.parametrize("count", [1, 2, 1001])
def test_words_made_ahead_are_those_of_the_stream(device: str, count: int):
    with DeviceStream(KeyStream(KEY), torch.device(device)) as ahead:
        made = [ahead.words(count) for _ in range(6)]
    assert all(words.device.type == device for words in made)
    assert torch.equal(torch.cat(made).cpu(), words_of(KeyStream(KEY), 6 * count))


def test_words_made_ahead_are_made_for_one_number_of_coordinates():
    with DeviceStream(KeyStream(KEY), torch.device("cpu")) as ahead:
        ahead.words(5)
        with pytest.raises(ValueError, match="made ahead for 5 coordinates, not 6"):
            ahead.words(6)


def test_what_fails_while_words_are_made_is_told(monkeypatch: pytest.MonkeyPatch):
    stream = KeyStream(KEY)
    with DeviceStream(stream, torch.device("cpu")) as ahead:
        monkeypatch.setattr(stream, "write_words", None)
        with pytest.raises(TypeError):
            ahead.words(5)


def test_its_deviates_are_those_of_the_stream(device: str):
    words = words_of(KeyStream(KEY), 100_000).to(device)
    expected = KeyStream(KEY).normal(100_000)
    np.testing.assert_allclose(normal_of_words(words).cpu().numpy(), expected, rtol=1e-12, atol=1e-15)


def test_the_extreme_words_have_finite_deviates(device: str):
    found = normal_of_words(as_words(0, 1, 2**64 - 1, 2**64 - 2, 2**63, 2**63 - 1).to(device)).cpu()
    assert torch.isfinite(found).all()
    assert found[0].item() == pytest.approx(9.155293773)
    assert found[1].item() == pytest.approx(-9.155293773)
    assert abs(found[2].item()) < 1e-15  # the largest magnitude word is the median


def test_what_is_released_is_what_the_cpu_releases(device: str):
    generator = torch.Generator().manual_seed(3)
    clipped = {
        "weight": torch.randn(30, 7, generator=generator, dtype=torch.float64),
        "bias": torch.randn(7, generator=generator, dtype=torch.float64),
    }
    expected = noised_mean(clipped, PLAN, KeyStream(KEY))
    spacing = 2.0**-13
    found = noised_on_device(
        {name: tensor.to(device) for name, tensor in clipped.items()},
        KeyStream(KEY),
        scale=PLAN.noise_multiplier * PLAN.max_grad_norm,
        divisor=PLAN.divisor,
        spacing=spacing,
    )
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert tensor.device.type == device
        assert tensor.shape == clipped[name].shape
        assert torch.equal(tensor.cpu() / spacing, (tensor.cpu() / spacing).round())
        assert (tensor.cpu() - expected[name]).abs().max() <= spacing  # a tie may fall to the other side


def test_training_takes_the_same_noise_made_ahead_or_not():
    clipped = {"weight": torch.zeros(1000, dtype=torch.float64)}
    with DeviceStream(KeyStream(KEY), torch.device("cpu")) as ahead:
        found = [noised_mean(clipped, PLAN, ahead)["weight"] for _ in range(3)]
    stream = KeyStream(KEY)
    for tensor in found:
        expected = noised_mean(clipped, PLAN, stream)["weight"]
        assert (tensor - expected).abs().max() <= 2.0**-13


# --- made ahead on a CPU ------------------------------------------------------------------------------------


def test_deviates_made_ahead_are_those_of_the_stream_to_the_bit():
    with AheadStream(KeyStream(KEY), count=70_001, steps=3) as ahead:
        made = [ahead.normal(70_001) for _ in range(3)]
    assert np.array_equal(np.concatenate(made), KeyStream(KEY).normal(3 * 70_001))


def test_as_many_deviates_are_made_as_were_announced_and_no_word_more():
    stream = KeyStream(KEY)
    with AheadStream(stream, count=1000, steps=2) as ahead:
        ahead.normal(1000)
        with pytest.raises(ValueError, match="made ahead for 1000 coordinates, not 999"):
            ahead.normal(999)
        ahead.normal(1000)
        with pytest.raises(ValueError, match="all announced steps are used"):
            ahead.normal(1000)
    after = KeyStream(KEY)
    after.normal(2000)
    assert np.array_equal(stream.normal(10), after.normal(10))


def test_what_fails_in_the_thread_is_told_and_no_thread_is_left(monkeypatch: pytest.MonkeyPatch):
    stream = KeyStream(KEY)
    monkeypatch.setattr(stream, "normal", lambda count: 1 / 0)
    with pytest.raises(ZeroDivisionError), AheadStream(stream, count=5, steps=2) as ahead:
        ahead.normal(5)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("noise")]


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap"])
def test_training_gives_the_same_bits_with_noise_made_ahead_or_not(
    monkeypatch: pytest.MonkeyPatch, engine: GradEngine
):
    plan = PrivacyPlan(
        sampling_probability=0.5,
        steps=3,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        divisor=2.0,
        delta=1e-3,
        randomness="seeded",
        grad_engine=engine,
    )
    weights, ahead = [], []
    monkeypatch.setattr(
        training, "AheadStream", lambda *given, **named: ahead.append(1) or AheadStream(*given, **named)
    )
    for worth in (0, 10**9):
        monkeypatch.setattr(training, "_WORTH_A_THREAD", worth)
        module = make_module("image")
        training.train_private(
            module,
            make_cohort(SHAPES["image"], (1, 2, 1, 3)),
            plan=plan,
            optimiser=training.NoisedOptimiser(learning_rate=0.1),
            randomness=SeededRandomness(3, "ahead"),
            kl_weight=1.0,
            latent_size=LATENT,
        )
        weights.append(weights_of(module))
    assert len(ahead) == 1
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], weights_of(make_module("image")))


def test_the_sum_is_noised_piece_by_piece_to_the_bit():
    total = np.random.default_rng(0).normal(size=40_001)
    deviates, before = KeyStream(KEY).normal(40_001), total.copy()
    expected = np.rint((total + 1.3 * deviates) / 7.0 / 2.0**-12) * 2.0**-12
    release_into(deviates, total, scale=1.3, divisor=7.0, spacing=2.0**-12)
    assert np.array_equal(deviates, expected)
    assert np.array_equal(total, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gradients_on_a_gpu_are_noised_there():
    clipped = {"weight": torch.zeros(1000, dtype=torch.float64, device="cuda")}
    released = noised_mean(clipped, PLAN, KeyStream(KEY))["weight"]
    assert released.is_cuda
    expected = noised_mean({"weight": torch.zeros(1000, dtype=torch.float64)}, PLAN, KeyStream(KEY))["weight"]
    assert (released.cpu() - expected).abs().max() <= 2.0**-13
