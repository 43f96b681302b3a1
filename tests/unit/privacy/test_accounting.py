"""Releases, their merging, the pair of epsilons, calibration."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest

from privacy import accounting, backends
from privacy.accounting import (
    CURVE_INTERVAL,
    EpsilonPair,
    PldAccountant,
    RdpAccountant,
    Release,
    calibrate_noise,
    check_pair,
    delta_is_sensible,
    epsilons,
    merge_releases,
)
from privacy.errors import AccountingError, PlanError, PrivacyError
from privacy.releases import charged_as


def release(steps: int = 10, q: float = 0.1, noise: float = 1.0) -> Release:
    return Release(sampling_probability=q, noise_multiplier=noise, steps=steps)


@pytest.mark.parametrize("q", [0.0, -0.1, 1.0001, math.nan, math.inf, "0.1", None, True])
def test_release_refuses_a_sampling_probability_out_of_range(q: object):
    with pytest.raises(PlanError, match=r"sampling_probability must be a number in \(0, 1\], got"):
        Release(sampling_probability=q, noise_multiplier=1.0, steps=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan, math.inf, "1", False])
def test_release_refuses_a_noise_multiplier_out_of_range(noise: object):
    with pytest.raises(PlanError, match="noise_multiplier must be a finite number > 0, got"):
        Release(sampling_probability=0.1, noise_multiplier=noise, steps=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [-1, 1.0, "3", True, None])
def test_release_refuses_steps_that_are_not_a_count(steps: object):
    with pytest.raises(PlanError, match="steps must be an integer from 0 to 1000000, got"):
        Release(sampling_probability=0.1, noise_multiplier=1.0, steps=steps)  # type: ignore[arg-type]


def test_release_reports_every_problem_at_once():
    with pytest.raises(PlanError) as caught:
        Release(
            sampling_probability=2.0,
            noise_multiplier=-1.0,
            steps=-1,
            sampler="shuffle",  # type: ignore[arg-type]
            neighbouring="replace",  # type: ignore[arg-type]
        )
    assert len(caught.value.problems) == 5
    assert isinstance(caught.value, PrivacyError)


def test_release_is_frozen_hashable_and_round_trips():
    one = release()
    assert Release.from_dict(one.to_dict()) == one
    assert hash(Release.from_dict(one.to_dict())) == hash(one)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.steps = 3  # type: ignore[misc]


def test_release_is_read_strictly():
    document = release().to_dict()
    del document["steps"]
    document["step"] = 3
    with pytest.raises(PlanError) as caught:
        Release.from_dict(document)
    assert caught.value.problems == ("steps is missing", "'step' is unknown (did you mean 'steps'?)")
    with pytest.raises(PlanError, match="must be a mapping"):
        Release.from_dict([1, 2])


def test_merging_joins_equal_neighbours_only_and_keeps_the_order():
    a, b = release(10), release(5, noise=2.0)
    assert merge_releases([a, a, b, a]) == (release(20), b, a)


def test_merging_drops_empty_releases_and_keeps_the_total():
    a, b = release(10), release(0, noise=2.0)
    assert merge_releases([b, a, b, a, b]) == (release(20),)
    assert merge_releases([]) == ()


def with_(one: Release, **changes: object) -> Release:
    return dataclasses.replace(one, **changes)  # type: ignore[arg-type]


def test_merging_keeps_relations_and_samplers_apart():
    a = release(10)
    others = [with_(a, neighbouring="replace_one"), with_(a, sampler="unamplified")]
    assert merge_releases([a, others[0], others[1], a]) == (a, *others, a)


def test_merging_never_hides_an_epoch():
    # 2.5 epochs a round, each round begins one: 3 + 3 full releases, and not ceil(5) = 5.
    one = with_(release(25), sampler="shuffled")
    assert merge_releases([one, one]) == (one, one)
    assert sum(charged_as(part).steps for part in merge_releases([one, one])) == 6


def test_merging_never_makes_a_release_too_long_to_exist():
    longest = release(1_000_000)
    assert merge_releases([longest, release(1), longest]) == (longest, release(1), longest)
    assert merge_releases([release(999_999), release(1)]) == (longest,)


@pytest.mark.parametrize(
    ("steps", "q", "epochs"),
    [
        (10, 0.1, 1),  # 10 * 0.1 is 1.0
        (11, 0.1, 2),
        (3, 0.1, 1),  # an epoch begun is an epoch
        (0, 0.1, 0),
        (100, 0.07, 7),  # 100 * 0.07 is 7.000000000000001
        (3, 1 / 3, 1),
        (49, 1 / 49, 1),  # 49 * (1 / 49) is 0.9999999999999999
        (50, 1 / 49, 2),
        (2250, 0.04, 90),
        (2251, 0.04, 91),
        (7, 1.0, 7),
        (1_000_000, 1e-6, 1),
        (1_000_000, math.nextafter(1e-6, 1), 2),  # that float is above 1e-6
        (1_000_000, 5e-324, 1),
    ],
)
def test_a_shuffled_release_is_charged_an_epoch_of_everybody_each(steps: int, q: float, epochs: int):
    assert charged_as(with_(release(steps, q, 2.0), sampler="shuffled")) == (1.0, 2.0, epochs, "add_remove")


def test_every_number_of_batches_is_charged_exactly():
    # Against counting: `epochs` epochs of `batches` steps, and one step more begins another.
    for batches in range(1, 2000):
        for epochs in (1, 3):
            whole = with_(release(batches * epochs, 1 / batches), sampler="shuffled")
            more = with_(whole, steps=whole.steps + 1)
            assert (charged_as(whole).steps, charged_as(more).steps) == (epochs, epochs + 1)
    # The float product alone charges a step too many or too few for some of them.
    assert any(math.ceil(batches * 3 * (1 / batches)) != 3 for batches in range(1, 2000)) or any(
        math.ceil(steps * 0.07) != -(-steps * 7 // 100) for steps in range(1, 1000)
    )


def test_without_amplification_everybody_is_in_every_step():
    assert charged_as(with_(release(45, 0.04, 1.5), sampler="unamplified")) == (1.0, 1.5, 45, "add_remove")


@pytest.mark.parametrize("neighbouring", ["add_remove", "replace_one"])
def test_what_samplers_cost_is_in_the_order_of_what_they_prove(neighbouring: str):
    one = with_(release(40, 0.05, 2.0), neighbouring=neighbouring)
    poisson, shuffled, unamplified = (
        epsilons([with_(one, sampler=sampler)], 1e-5, interval=CURVE_INTERVAL).pld
        for sampler in ("poisson", "shuffled", "unamplified")
    )
    assert poisson < shuffled < unamplified


@pytest.mark.parametrize("accountant", [RdpAccountant(), PldAccountant()])
def test_a_history_that_mixes_relations_is_refused(accountant: RdpAccountant | PldAccountant):
    a, b = release(10), with_(release(10, noise=5.0), neighbouring="replace_one")
    with pytest.raises(PlanError, match="this one mixes add_remove and replace_one; keep them apart"):
        accountant.epsilon([a, b], 1e-5)
    assert accountant.epsilon([a, with_(b, steps=0)], 1e-5) == accountant.epsilon([a], 1e-5)


def test_an_old_release_without_the_new_values_is_read_as_before():
    old = {
        "sampling_probability": 0.1,
        "noise_multiplier": 1.0,
        "steps": 10,
        "sampler": "poisson",
        "neighbouring": "add_remove",
    }
    assert Release.from_dict(old) == release()
    assert release().to_dict() == old


def test_merging_twice_changes_nothing():
    once = merge_releases([release(3), release(4), release(1, q=0.5), release(1)])
    assert merge_releases(once) == once


def test_the_pair_has_both_figures_and_the_tighter_one_is_smaller():
    pair = epsilons([release(100)], 1e-5)
    assert pair.rdp == RdpAccountant().epsilon([release(100)], 1e-5)
    assert pair.pld == PldAccountant().epsilon([release(100)], 1e-5)
    assert 0 < pair.pld < pair.rdp


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_that_is_no_probability_is_refused(delta: float):
    with pytest.raises(PlanError, match=r"^accounting: delta must be a number in \(0, 1\), got"):
        epsilons([release()], delta)


def test_the_pair_of_nothing_is_zero():
    assert epsilons([], 1e-5) == EpsilonPair(rdp=0.0, pld=0.0)


@pytest.mark.parametrize(
    ("rdp", "pld"), [(5.0, 5.2), (1.0, 1.02), (0.0, 0.1), (5.0, math.nan), (5.0, math.inf)]
)
def test_accountants_that_disagree_stop_everything(rdp: float, pld: float):
    text = "the tighter bound; do not release anything, and check the versions of opacus and dp-accounting$"
    with pytest.raises(AccountingError, match=f"^the accountants disagree: PLD .*, though it is {text}"):
        check_pair(EpsilonPair(rdp=rdp, pld=pld))


@pytest.mark.parametrize(("rdp", "pld"), [(5.0, 4.0), (5.0, 5.0), (0.0, 0.005), (100.0, 100.5)])
def test_discretisation_is_no_disagreement(rdp: float, pld: float):
    check_pair(EpsilonPair(rdp=rdp, pld=pld))


def test_a_broken_accountant_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accounting, "rdp_epsilon", lambda groups, delta: 0.1)
    with pytest.raises(AccountingError, match=r"exceeds RDP 0\.1000"):
        epsilons([release(100)], 1e-5)


@pytest.mark.parametrize("steps", [1, 7, 400])
@pytest.mark.parametrize("q", [0.003, 0.1, 1.0])
@pytest.mark.parametrize("noise", [0.6, 1.5, 6.0])
@pytest.mark.parametrize("neighbouring", ["add_remove", "replace_one"])
def test_pld_never_exceeds_rdp(steps: int, q: float, noise: float, neighbouring: str):
    one = with_(release(steps, q, noise), neighbouring=neighbouring)
    pair = epsilons([one], 1e-5, interval=CURVE_INTERVAL)
    assert pair.pld <= pair.rdp + 1e-2


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
@pytest.mark.parametrize(("target", "q", "steps"), [(1.0, 0.04, 500), (8.0, 0.1, 300), (3.0, 1.0, 20)])
def test_calibration_meets_the_target_and_no_more(accountant: str, target: float, q: float, steps: int):
    noise = calibrate_noise(
        epsilon=target, delta=1e-5, sampling_probability=q, steps=steps, accountant=accountant, tolerance=1e-2
    )
    reader = RdpAccountant() if accountant == "rdp" else PldAccountant()
    assert 0.99 * target <= reader.epsilon([release(steps, q, noise)], 1e-5) <= target


def test_calibration_inverts_the_golden_figures():
    noise = calibrate_noise(epsilon=6.769, delta=1e-5, sampling_probability=0.04, steps=2250)
    assert noise == pytest.approx(1.5, rel=2e-3)
    noise = calibrate_noise(
        epsilon=7.330, delta=1e-5, sampling_probability=0.04, steps=2250, accountant="rdp"
    )
    assert noise == pytest.approx(1.5, rel=2e-3)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_calibration_for_replace_one_meets_the_target_of_that_relation(accountant: str):
    arguments = {"epsilon": 4.0, "delta": 1e-5, "sampling_probability": 0.05, "steps": 300, "tolerance": 1e-2}
    noise = calibrate_noise(**arguments, accountant=accountant, neighbouring="replace_one")
    reader = RdpAccountant() if accountant == "rdp" else PldAccountant()
    of = with_(release(300, 0.05, noise), neighbouring="replace_one")
    assert 3.96 <= reader.epsilon([of], 1e-5) <= 4.0
    assert noise > calibrate_noise(**arguments, accountant=accountant)


def test_calibration_needs_less_noise_by_the_tighter_bound():
    arguments = {"epsilon": 4.0, "delta": 1e-5, "sampling_probability": 0.05, "steps": 300, "tolerance": 1e-2}
    assert calibrate_noise(**arguments) < calibrate_noise(**arguments, accountant="rdp")


def test_calibration_reports_every_problem_at_once():
    with pytest.raises(PlanError) as caught:
        calibrate_noise(
            epsilon=-1.0,
            delta=1.0,
            sampling_probability=0.1,
            steps=0,
            accountant="gdp",  # type: ignore[arg-type]
            neighbouring="both",  # type: ignore[arg-type]
            tolerance=0.0,
        )
    assert caught.value.problems == (
        "epsilon must be a finite number > 0, got -1.0",
        "tolerance must be a number in (0, 0.5], got 0.0",
        "delta must be a number in (0, 1), got 1.0",
        "steps must be an integer from 1 to 1000000, got 0",
        "accountant must be one of rdp, pld, got 'gdp'",
        "neighbouring must be one of add_remove, replace_one, got 'both'",
    )
    assert str(caught.value).startswith("calibration: epsilon must")
    with pytest.raises(PlanError, match="sampling_probability"):
        calibrate_noise(epsilon=1.0, delta=1e-5, sampling_probability=1.5, steps=1)


@pytest.mark.parametrize("change", [{"tolerance": 0.51}, {"steps": 1_000_001}, {"epsilon": math.inf}])
def test_calibration_refuses_what_is_just_out_of_range(change: dict[str, float]):
    arguments = {"epsilon": 1.0, "delta": 1e-5, "sampling_probability": 0.1, "steps": 1}
    with pytest.raises(PlanError, match=f"^calibration: {next(iter(change))} must be"):
        calibrate_noise(**{**arguments, **change})
    assert calibrate_noise(**arguments, tolerance=0.5) > 0


def test_calibration_to_what_a_round_figure_costs_finds_that_figure():
    # The search brackets from 10: a target met there, and not below its middle, has no change of sign to find.
    spent = RdpAccountant().epsilon([release(100, 0.1, 10.0)], 1e-5)
    arguments = {"delta": 1e-5, "sampling_probability": 0.1, "steps": 100, "accountant": "rdp"}
    assert calibrate_noise(epsilon=spent * 1.0001, **arguments) == 10.0


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("place", [1e-3, 0.1, 0.2, 3.0, 10.0, 1e4])
@pytest.mark.parametrize("width", [0.5, 0.9, 0.999])
def test_the_search_ends_within_the_target_wherever_that_lies(power: float, place: float, width: float):
    def spent(noise: float) -> float:
        return (place / noise) ** power

    noise = accounting._solve_noise(spent, 0.1, 10.0, (width, 1.0))
    assert width <= spent(noise) <= 1.0


@pytest.mark.parametrize("edge", [0.3, 0.7, 1.1, 2.3, 3.1, 5.7])
@pytest.mark.parametrize(("below", "above"), [(2.0, 0.5), (1.01, 0.2)])
def test_the_search_never_ends_above_the_target_even_at_a_cliff(edge: float, below: float, above: float):
    # The root finder ends where the excess is smaller, on either side by a tenth of ln(1 / 0.9), a step of 1 %.
    noise = accounting._solve_noise(lambda noise: below if noise < edge else above, 0.1, 10.0, (0.9, 1.0))
    assert edge <= noise <= 1.03 * edge


def test_calibration_says_when_no_noise_is_enough():
    with pytest.raises(PlanError, match=r"^calibration: no noise multiplier up to 200000 reaches the target"):
        accounting._solve_noise(lambda _: 2.0, 0.1, 1e5, (0.9, 1.0))
    with pytest.raises(
        PlanError, match=r"no noise multiplier up to \d+ reaches the target; allow more epsilon"
    ):
        calibrate_noise(epsilon=1e-9, delta=1e-12, sampling_probability=1.0, steps=10**6)


@pytest.mark.parametrize(
    ("delta", "patients", "sensible"),
    [
        (1e-5, 1000, True),
        (1e-3, 1000, False),
        (1e-3, 999, True),
        (0.01, 50, True),
        (0.1, 50, False),
        (0.0, 10, False),
    ],
)
def test_delta_has_to_be_below_one_over_the_public_number_of_patients(
    delta: float, patients: int, sensible: bool
):
    assert delta_is_sensible(delta, patients) is sensible


def test_importing_costs_neither_opacus_nor_dp_accounting():
    code = (
        "import sys; import privacy.accounting, privacy.plan, privacy.claim, privacy.unsafe; "
        "print([name for name in ('opacus', 'dp_accounting', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("q", "noise", "steps"), [(0.5, 0.1, 50), (1.0, 1e-3, 1_000_000), (0.5, 1.0, 1_000_000)]
)
def test_where_no_privacy_is_left_the_bounds_are_equal_and_cheap(q: float, noise: float, steps: int):
    pair = epsilons([release(steps, q, noise)], 1e-5)
    assert 500 < pair.pld == pair.rdp


@pytest.mark.parametrize(
    ("q", "noise", "steps"), [(1.0, 1e5, 1_000_000), (1.0, 100.0, 100), (0.01, 50.0, 1000)]
)
def test_large_noise_narrows_the_grid_so_that_rounding_does_not_dominate(q: float, noise: float, steps: int):
    # Without it PLD reports 0.0857 for the first case, above RDP's 0.0311.
    for neighbouring in ("add_remove", "replace_one"):
        pair = epsilons([with_(release(steps, q, noise), neighbouring=neighbouring)], 1e-5)
        assert pair.pld < pair.rdp


def test_a_wide_epsilon_has_a_wide_grid_and_stays_an_upper_bound():
    groups = (backends.Group(0.1, 0.3, 20),)
    wide, fine = (backends.pld_epsilon(groups, 1e-5, grid) for grid in (1e-4, 1e-5))
    assert fine <= wide <= fine * (1 + 1e-4)


@pytest.mark.parametrize("value", [10**400, 10**9])
def test_hostile_counts_are_refused_before_any_accounting(value: int):
    with pytest.raises(PlanError, match="steps must be an integer from 0 to 1000000, got 1000"):
        release(value)
    with pytest.raises(PlanError, match="noise_multiplier must be a finite number > 0, got 1000"):
        release(1, 0.1, 10**400)


@pytest.mark.parametrize("neighbouring", ["add_remove", "replace_one"])
@pytest.mark.parametrize(("q", "noise"), [(0.5, 1e-200), (1.0, 1e-200), (5e-324, 1.0), (5e-324, 1e-200)])
def test_parameters_at_the_end_of_floats_give_a_bound_or_infinity_not_a_crash(
    q: float, noise: float, neighbouring: str
):
    one = with_(release(3, q, noise), neighbouring=neighbouring)
    pair = epsilons([one], 1e-5, interval=CURVE_INTERVAL)
    assert 0 <= pair.pld <= pair.rdp + 1e-2 or math.isinf(pair.rdp)
    assert not math.isnan(pair.rdp)
