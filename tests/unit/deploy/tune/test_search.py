"""The search on errors that are known: it finds the bowl's bottom, keeps to its trials, and tries nothing invalid."""

import math
from dataclasses import replace

import pytest

from deploy.tune.candidates import Candidate
from deploy.tune.search import SATURATED, TOLERANCE, Limits, best_of, explore, good_default, with_optimiser

LIMITS = Limits(rounds=10, warmup_steps=0, patients=56.0)
START = Candidate(
    sampling_probability=0.25,
    local_steps=8,
    max_grad_norm=1.0,
    learning_rate=1e-3,
    optimiser="adam",
    trainable="all",
)


def noise(candidate):
    """Return noise that falls with q, but saturates: sigma grows with q and the square root of the steps."""
    share, steps = candidate.sampling_probability, candidate.local_steps
    return candidate.max_grad_norm * math.sqrt(steps * (1e-4 + 1e-6 / share**2))


def bowl(**bottom):
    """Return an error that is least at some values, a square of the logarithm each."""

    def error(candidate):
        numbers = [name for name in bottom if not isinstance(bottom[name], str)]
        words = [name for name in bottom if isinstance(bottom[name], str)]
        squares = sum(math.log(getattr(candidate, name) / bottom[name]) ** 2 for name in numbers)
        return squares + sum(getattr(candidate, name) != bottom[name] for name in words)

    return error


def test_the_bottom_of_a_bowl_is_found_up_to_the_fine_steps():
    bottom = {"learning_rate": 1e-2, "local_steps": 20, "max_grad_norm": 0.2, "trainable": "decoder"}
    found = explore((START,), bowl(**bottom), noise, LIMITS, trials=60)
    (best,) = best_of(found)
    assert best.learning_rate == pytest.approx(1e-2, rel=0.7)
    assert best.local_steps == pytest.approx(20, rel=0.4)
    assert best.max_grad_norm == pytest.approx(0.2, rel=0.7)
    assert best.trainable == "decoder"
    assert best.optimiser == "adam"


@pytest.mark.parametrize("trials", [1, 2, 7, 24])
def test_there_are_never_more_trials_than_asked_for(trials):
    calls = []
    error = bowl(learning_rate=1.0, local_steps=200)

    def score(candidate):
        calls.append(candidate)
        return error(candidate)

    found = explore((START, good_default(LIMITS)), score, noise, LIMITS, trials=trials)
    assert len(calls) == len(set(calls)) == len(found) == trials
    assert calls[0] == START


def test_everything_that_is_tried_is_valid():
    limits = Limits(rounds=2, warmup_steps=9, patients=10.0)
    start = replace(START, local_steps=6)
    for rate in (1e-6, 1e2):
        for steps in (1, 500):
            error = bowl(learning_rate=rate, local_steps=steps, sampling_probability=1e-3)
            found = explore((start,), error, noise, limits, trials=60)
            assert all(limits.allow(candidate) for candidate in found)
            assert all(each.local_steps * 2 > 9 and each.sampling_probability >= 0.1 for each in found)


def test_with_bands_each_part_comes_up_and_a_step_takes_a_patient_of_its_part():
    limits = replace(LIMITS, bands=4)
    error = bowl(local_steps=1, sampling_probability=1e-3, optimiser="adam-corrected")
    found = explore((good_default(limits),), error, noise, limits, trials=60)
    assert all(limits.allow(candidate) for candidate in found)
    assert min(each.local_steps for each in found) >= 4
    assert min(each.sampling_probability for each in found) * 56 >= 4
    assert {each.optimiser for each in found} == {"sgd", "adam"}


def test_a_larger_sampling_probability_is_tried_until_its_returns_end():
    found = explore(
        (replace(START, sampling_probability=0.02),), bowl(sampling_probability=1.0), noise, LIMITS, trials=60
    )
    largest = max(candidate.sampling_probability for candidate in found)
    assert 0.02 < largest < 1
    one = replace(START, sampling_probability=largest)
    assert noise(replace(one, sampling_probability=1.4 * largest)) > SATURATED * noise(one)


def test_another_optimiser_takes_steps_of_about_the_same_length():
    found = explore((START,), bowl(optimiser="sgd"), noise, LIMITS, trials=60)
    first = next(candidate for candidate in found if candidate.optimiser == "sgd")
    before = list(found)[list(found).index(first) - 1]
    assert first.learning_rate * noise(first) == pytest.approx(before.learning_rate, rel=0.06)
    clipped = next(each for each in found if each.optimiser == "sgd" and each.max_grad_norm != 1.0)
    assert clipped.learning_rate * clipped.max_grad_norm == pytest.approx(first.learning_rate, rel=0.1)


def test_a_direction_that_hardly_helps_is_left_before_its_steps_grow_long():
    """An error that falls with every doubling of the steps, by less than the tolerance or by more."""

    def longest(gain):
        def error(each):
            return 1.0 - gain * math.log2(each.local_steps)

        found = explore((START,), error, noise, LIMITS, trials=12)
        return max(candidate.local_steps for candidate in found)

    assert longest(TOLERANCE / 4) == 16  # tried once, and not gone on from
    assert longest(8 * TOLERANCE) > 1000


def test_there_and_back_again_is_the_same_rate():
    there = with_optimiser(START, "sgd", noise)
    assert there.learning_rate == pytest.approx(START.learning_rate / noise(START), rel=0.05)
    assert with_optimiser(there, "adam", noise).learning_rate == pytest.approx(START.learning_rate, rel=0.05)
    assert with_optimiser(START, "adam-corrected", noise).learning_rate == START.learning_rate


def test_a_failed_trial_is_never_the_best():
    found = explore(
        (START,), lambda each: math.inf if each.learning_rate > 1e-3 else 1.0, noise, LIMITS, trials=12
    )
    assert best_of(found)[0] == START


def test_the_default_is_valid_for_small_and_large_sites():
    for patients in (2.0, 8.0, 56.0, 5000.0):
        for warmup in (0, 300):
            limits = Limits(rounds=10, warmup_steps=warmup, patients=patients)
            assert limits.allow(good_default(limits))
    assert good_default(replace(LIMITS, patients=5000.0)).sampling_probability == 0.1
    assert good_default(replace(LIMITS, patients=56.0)).sampling_probability == 0.14
