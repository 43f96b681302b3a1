"""Lower bounds from guesses: against closed forms, brute force, and the rate at which they are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from privacy import bounds
from privacy.bounds import Errors, Guesses, Profile

NAN, INF = math.nan, math.inf


def guesses(canaries: int, made: int, correct: int) -> Guesses:
    return Guesses(num_canaries=canaries, num_guesses=made, num_correct=correct)


# --- guesses ----------------------------------------------------------------------------------------------


def test_the_largest_magnitudes_are_guessed_first():
    scores = np.array([5.0, -4.0, 3.0, -2.0, 1.0, -0.5, 0.4, -0.3, 0.2, -0.1])
    included = np.array([True, True, True, False, False, False, True, True, False, True])
    found = bounds.make_guesses(scores, included, shares=(0.1, 0.2, 0.5, 1.0))
    assert [(each.num_canaries, each.num_guesses, each.num_correct) for each in found] == [
        (10, 1, 1),
        (10, 2, 1),
        (10, 5, 3),
        (10, 10, 5),
    ]


def test_a_score_that_is_no_number_is_no_evidence_and_a_share_is_at_least_one_guess():
    scores = np.array([NAN, 3.0, NAN])
    found = bounds.make_guesses(scores, np.array([True, True, True]), shares=(0.01, 1.0))
    assert [(each.num_guesses, each.num_correct) for each in found] == [(1, 1), (3, 1)]


def test_ties_go_by_number_and_zero_means_excluded():
    included = np.array([False, True, True, False])
    (found,) = bounds.make_guesses(np.zeros(4), included, shares=(0.5,))
    assert (found.num_guesses, found.num_correct) == (2, 1)


@pytest.mark.parametrize("numbers", [(2, 1, 2), (1, 2, 1), (2, 1, -1)])
def test_impossible_guesses_are_refused(numbers: tuple[int, int, int]):
    with pytest.raises(ValueError, match="guesses need 0 <= num_correct"):
        guesses(*numbers)


def test_errors_are_counted_at_each_threshold():
    scores = np.array([3.0, 0.5, -1.0, 2.0, 0.0, NAN])
    included = np.array([True, True, True, False, False, False])
    low, high = bounds.count_errors(scores, included, thresholds=(0.0, 2.0))
    assert low == Errors(num_included=3, num_excluded=3, num_missed=1, num_false=3)
    assert high == Errors(num_included=3, num_excluded=3, num_missed=2, num_false=1)


# --- one run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "correct", "epsilon"), [(10, 9, 0.0), (40, 31, 1.0), (7, 7, 3.0), (5, 0, 1.0)]
)
def test_without_delta_the_p_value_is_a_binomial_tail(made: int, correct: int, epsilon: float):
    accuracy = math.exp(epsilon) / (1 + math.exp(epsilon))
    tail = sum(
        math.comb(made, k) * accuracy**k * (1 - accuracy) ** (made - k) for k in range(correct, made + 1)
    )
    found = bounds.one_run_p_value(guesses(100, made, correct), epsilon=epsilon, delta=0.0)
    assert found == pytest.approx(tail, rel=1e-10)


def test_delta_adds_the_slack_of_the_theorem():
    made, correct, canaries, epsilon, delta = 20, 18, 50, 1.0, 1e-3
    accuracy = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [math.comb(made, k) * accuracy**k * (1 - accuracy) ** (made - k) for k in range(made + 1)]
    tail = sum(mass[correct:])
    slack = max(sum(mass[correct - i : correct]) / i for i in range(1, correct + 1))
    found = bounds.one_run_p_value(guesses(canaries, made, correct), epsilon=epsilon, delta=delta)
    assert found == pytest.approx(tail + 2 * canaries * delta * slack, rel=1e-10)
    assert bounds.one_run_p_value(guesses(canaries, made, correct), epsilon=epsilon, delta=0.9) == 1.0


def test_all_right_gives_the_bound_of_its_closed_form():
    # p^r = failure with p = e^eps / (1 + e^eps)
    for made in (20, 100):
        accuracy = 0.05 ** (1 / made)
        expected = math.log(accuracy / (1 - accuracy))
        found = bounds.one_run_bound(guesses(made, made, made), delta=0.0, failure=0.05)
        assert expected - 2e-3 <= found <= expected


def test_better_guesses_and_more_failure_never_give_less():
    values = [
        bounds.one_run_bound(guesses(100, 50, correct), delta=1e-5, failure=0.05) for correct in range(51)
    ]
    assert values == sorted(values)
    assert values[25] == 0.0
    assert values[50] > 2.0
    loose = bounds.one_run_bound(guesses(100, 50, 45), delta=1e-5, failure=0.2)
    assert loose > bounds.one_run_bound(guesses(100, 50, 45), delta=1e-5, failure=0.01)
    assert bounds.one_run_bound(guesses(100, 50, 50), delta=1e-2, failure=0.05) < values[50]


def test_a_certain_mechanism_has_a_finite_bound():
    found = bounds.one_run_bound(guesses(10**6, 10**6, 10**6), delta=0.0, failure=0.5)
    assert 10 < found < 20


# --- trade-off curves -------------------------------------------------------------------------------------


def test_a_profile_of_one_pair_is_the_curve_of_dong_roth_su():
    profile = Profile(epsilons=(1.0,), deltas=(0.1,))
    for y in np.linspace(0, 1, 41):
        expected = max(0.0, (y - 0.1) * math.exp(-1.0), 1 - 0.1 - math.e * (1 - y))
        assert profile(float(y)) == pytest.approx(expected, abs=1e-12)


def test_a_profile_is_the_strongest_of_its_pairs():
    pairs = Profile(epsilons=(0.5, 2.0), deltas=(0.3, 0.01))
    for y in (0.1, 0.5, 0.9, 1.0):
        one, two = (Profile(epsilons=(e,), deltas=(d,))(y) for e, d in ((0.5, 0.3), (2.0, 0.01)))
        assert pairs(y) == max(one, two)
    assert Profile(epsilons=(INF,), deltas=(0.0,))(0.9) == 0.0


def test_a_gaussian_curve_is_the_power_of_the_best_test():
    for y in (0.01, 0.3, 0.8, 1.0):
        expected = stats.norm.cdf(stats.norm.ppf(y) - 1.5)
        assert bounds.gaussian_curve(1.5)(y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("mu", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("delta", [1e-6, 1e-3])
def test_the_epsilon_of_a_gaussian_is_that_of_its_hockey_stick(mu: float, delta: float):
    epsilon = bounds.epsilon_of_mu(mu, delta=delta)

    def density(x: float) -> float:
        return float(max(0.0, stats.norm.pdf(x, mu) - math.exp(epsilon) * stats.norm.pdf(x)))

    crossing = mu / 2 + epsilon / mu
    found, _ = integrate.quad(density, crossing, crossing + 15, epsabs=1e-12)
    assert found == pytest.approx(delta, rel=1e-3)
    assert bounds.mu_of_epsilon(epsilon, delta=delta) == pytest.approx(mu, rel=1e-6)


def test_a_gaussian_of_nothing_has_no_epsilon():
    assert bounds.epsilon_of_mu(0.0, delta=1e-5) == 0.0
    assert bounds.epsilon_of_mu(1e-9, delta=1e-5) == 0.0
    assert bounds.epsilon_of_mu(-1.0, delta=1e-5) == 0.0


def test_the_curve_of_no_privacy_is_never_rejected_and_that_of_full_privacy_soon():
    nothing, everything = (lambda _: 0.0), (lambda y: y)
    for correct in range(0, 101, 10):
        assert not bounds.fdp_rejects(guesses(200, 100, correct), nothing, failure=0.05)
    # Under a curve that gives nothing away 100 guesses are fair coins: 59 or more come with probability 0.044.
    assert not bounds.fdp_rejects(guesses(200, 100, 55), everything, failure=0.05)
    assert bounds.fdp_rejects(guesses(200, 100, 62), everything, failure=0.05)
    assert not bounds.fdp_rejects(guesses(200, 100, 0), everything, failure=0.05)


@pytest.mark.parametrize("failure", [0.05, 0.01])
@pytest.mark.parametrize(("canaries", "made"), [(40, 40), (200, 100), (1000, 1000)])
@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_of_randomised_response_it_refutes_almost_all_that_can_be(
    canaries: int, made: int, epsilon: float, failure: float
):
    """Its guesses are right independently with probability e^eps / (1 + e^eps): the exact threshold is a binomial's."""
    curve = Profile(epsilons=(epsilon,), deltas=(0.0,))
    accuracy = math.exp(epsilon) / (1 + math.exp(epsilon))
    exact = next(v for v in range(made + 1) if stats.binom.sf(v - 1, made, accuracy) < failure)
    refuted = [
        bounds.fdp_rejects(guesses(canaries, made, v), curve, failure=failure) for v in range(made + 1)
    ]
    assert refuted == sorted(refuted)
    assert refuted.index(True) in (exact, exact + 1)


def test_curves_refute_what_the_one_run_bound_refutes_and_more():
    evidence = guesses(1000, 200, 190)
    by_theorem = bounds.one_run_bound(evidence, delta=1e-5, failure=0.05)
    by_curve = bounds.fdp_bound(evidence, bounds.approximate_family(1e-5), failure=0.05)
    by_gaussian = bounds.fdp_bound(evidence, bounds.gaussian_family(1e-5), failure=0.05)
    assert by_theorem > 2.0
    assert by_curve == pytest.approx(by_theorem, rel=0.1)
    assert by_gaussian > by_curve + 0.5


def test_more_correct_guesses_are_never_weaker_evidence():
    family = bounds.gaussian_family(1e-5)
    values = [
        bounds.fdp_bound(guesses(300, 100, correct), family, failure=0.05) for correct in range(50, 101, 5)
    ]
    assert values == sorted(values)
    assert values[0] == 0.0
    assert values[-1] > 3.0


# --- how often they are wrong -----------------------------------------------------------------------------


def test_bounds_of_a_known_mechanism_are_wrong_as_rarely_as_they_say():
    """Randomised response of epsilon 1 on 60 canaries: every bound beyond 1 is wrong; 10 % are allowed."""
    rng = np.random.default_rng(0)
    trials, canaries, failure = 2000, 60, 0.1
    truth = rng.binomial(canaries, math.e / (1 + math.e), size=trials)
    values = {
        correct: (
            bounds.one_run_bound(guesses(canaries, canaries, correct), delta=0.0, failure=failure),
            bounds.fdp_bound(
                guesses(canaries, canaries, correct), bounds.approximate_family(0.0), failure=failure
            ),
        )
        for correct in set(truth.tolist())
    }
    for which in (0, 1):
        wrong = np.mean([values[correct][which] > 1.0 for correct in truth.tolist()])
        assert wrong <= failure + 3 * math.sqrt(failure * (1 - failure) / trials)
    assert np.mean([values[correct][0] > 1.0 for correct in truth.tolist()]) > 0.02, "not merely never wrong"


def test_a_true_gaussian_claim_is_refuted_as_rarely_as_confidence_says():
    """Canaries in independent Gaussian noise of mu 1.5: the curve is exact, so a rejection is an error."""
    rng = np.random.default_rng(1)
    trials, canaries, mu, failure = 2000, 100, 1.5, 0.1
    curve = bounds.gaussian_curve(mu)
    rejected = 0
    for _ in range(trials):
        included = rng.random(canaries) < 0.5
        scores = mu * (included + rng.standard_normal(canaries) / mu) - mu / 2
        candidates = bounds.make_guesses(scores, included)
        rejected += any(
            bounds.fdp_rejects(one, curve, failure=failure / len(candidates)) for one in candidates
        )
    assert rejected / trials <= failure + 3 * math.sqrt(failure * (1 - failure) / trials)


def test_a_claim_of_half_the_truth_is_refuted():
    rng = np.random.default_rng(2)
    included = rng.random(2000) < 0.5
    scores = 3.0 * (included - 0.5) + rng.standard_normal(2000)
    candidates = bounds.make_guesses(3.0 * scores, included)
    half = bounds.gaussian_curve(1.5)
    assert any(bounds.fdp_rejects(one, half, failure=0.05 / 3) for one in candidates)


# --- rates ------------------------------------------------------------------------------------------------


def test_the_upper_end_of_a_rate_is_clopper_and_pearsons():
    assert bounds.upper_rate(0, 10, 0.05) == pytest.approx(1 - 0.05**0.1)
    assert bounds.upper_rate(10, 10, 0.05) == 1.0
    assert bounds.upper_rate(0, 0, 0.05) == 1.0
    end = bounds.upper_rate(3, 20, 0.05)
    assert stats.binom.cdf(3, 20, end) == pytest.approx(0.05)


def test_a_bound_from_rates_by_hand():
    errors = Errors(num_included=100, num_excluded=200, num_missed=10, num_false=4)
    missed, false = bounds.upper_rate(10, 100, 0.025), bounds.upper_rate(4, 200, 0.025)
    expected = max(math.log((1 - missed - 0.01) / false), math.log((1 - false - 0.01) / missed))
    assert bounds.clopper_pearson_bound(errors, delta=0.01, failure=0.05) == pytest.approx(expected)
    assert expected > 2.5
    mu = -stats.norm.ppf(false) - stats.norm.ppf(missed)
    found = bounds.gaussian_estimate(errors, delta=0.01, failure=0.05)
    assert found == pytest.approx(bounds.epsilon_of_mu(mu, delta=0.01))


def test_rates_of_nothing_bound_nothing():
    guessing = Errors(num_included=50, num_excluded=50, num_missed=25, num_false=25)
    nobody = Errors(num_included=0, num_excluded=50, num_missed=0, num_false=0)
    for errors in (guessing, nobody):
        assert bounds.clopper_pearson_bound(errors, delta=1e-5, failure=0.05) == 0.0
        assert bounds.gaussian_estimate(errors, delta=1e-5, failure=0.05) == 0.0


def test_the_best_candidate_pays_for_the_others():
    asked = []

    def bound(candidate: int, failure: float) -> float:
        asked.append((candidate, failure))
        return float(candidate)

    assert bounds.best_bound([2, 7, 5], bound, failure=0.3) == 7.0
    assert [candidate for candidate, _ in asked] == [2, 7, 5]
    assert all(failure == pytest.approx(0.1) for _, failure in asked)
