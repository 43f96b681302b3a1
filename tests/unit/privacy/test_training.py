"""The private loop against a replay by hand, its constancy, and the plain loop beside it."""

from __future__ import annotations

import copy
import hashlib
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from privacy import bookkeeping
from privacy.errors import PlanError
from privacy.noise import SeededRandomness, SystemRandomness, grid_spacing, round_to_grid
from privacy.optimiser import Schedule
from privacy.plan import GradEngine, PrivacyPlan
from privacy.training import NoisedOptimiser, Training, train_private, train_unsafe
from privacy.unsafe import NoPrivacy, UnsafeWarning
from tests.support.private_toys import (
    LATENT,
    SHAPES,
    RawGradient,
    flatten,
    make_cohort,
    make_module,
    reference_gradients,
    reference_sum,
    weights_of,
)
from vae.data.cohort import Batch, Cohort

RECORDS = (1, 3, 2, 1, 5, 2, 1, 4)
SGD = NoisedOptimiser(learning_rate=0.05)

engines = pytest.mark.parametrize("engine", ["vmap", "opacus", "bookkeeping"])


def make_plan(**changes: object) -> PrivacyPlan:
    fields: dict[str, object] = {
        "sampling_probability": 0.4,
        "steps": 6,
        "noise_multiplier": 0.8,
        "max_grad_norm": 1.5,
        "divisor": 3.0,
        "delta": 1e-3,
        "randomness": "seeded",
    }
    return PrivacyPlan(**{**fields, **changes})  # type: ignore[arg-type]


def run(module: nn.Module, cohort: Cohort, plan: PrivacyPlan, **changes: object) -> Training:
    arguments: dict[str, object] = {
        "optimiser": SGD,
        "randomness": SeededRandomness(5, "site-1", 1),
        "kl_weight": 0.6,
        "latent_size": LATENT,
    }
    return train_private(module, cohort, plan=plan, **{**arguments, **changes})  # type: ignore[arg-type]


def replay(
    module: nn.Module, cohort: Cohort, plan: PrivacyPlan, *, learning_rate: float, mu: float = 0.0
) -> torch.Tensor:
    """Return the weights after DP-SGD written out by the definition, with a loop over patients."""
    source = SeededRandomness(5, "site-1", 1)
    sampling, noise = source.stream("sampling"), source.stream("noise")
    records, latent = source.stream("records").generator(), source.stream("latent").generator()
    spacing = grid_spacing(
        noise_multiplier=plan.noise_multiplier, max_grad_norm=plan.max_grad_norm, divisor=plan.divisor
    )
    weights = nn.utils.parameters_to_vector(module.parameters()).detach()
    base = weights.clone()
    for _ in range(plan.steps):
        chosen = np.flatnonzero(sampling.uniform(cohort.num_patients) < plan.sampling_probability)
        batch = cohort.batch(chosen, max_records=plan.max_records_per_patient, rng=records)
        draws = torch.from_numpy(latent.standard_normal((batch.num_records, LATENT), dtype=np.float32))
        total = np.zeros(len(weights))
        if len(chosen):
            total = reference_sum(reference_gradients(module, batch, draws, 0.6), plan.max_grad_norm).numpy()
        noisy = total + plan.noise_multiplier * plan.max_grad_norm * noise.normal(len(weights))
        step = torch.from_numpy(round_to_grid(noisy / plan.divisor, spacing)).to(weights.dtype)
        weights = weights - learning_rate * (step + mu * (weights - base))
        nn.utils.vector_to_parameters(weights, module.parameters())
    return weights.to(torch.float64)


@engines
@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_equals_the_definition_step_by_step(engine: GradEngine, name: str, mu: float):
    cohort, plan = (
        make_cohort(SHAPES[name], RECORDS),
        make_plan(grad_engine=engine, max_records_per_patient=3),
    )
    module = make_module(name).double()
    expected = replay(copy.deepcopy(module), cohort, plan, learning_rate=0.05, mu=mu)
    run(module, cohort, plan, proximal_mu=mu)
    # Rounding to the grid can turn a last bit into one spacing; the double weights hide nothing else.
    torch.testing.assert_close(weights_of(module), expected, rtol=1e-9, atol=1e-9)


def test_the_training_reports_the_release_of_the_plan():
    plan = make_plan()
    done = run(make_module("table"), make_cohort((6,), RECORDS), plan)
    assert done.release == plan.release()
    assert done.steps_done == plan.steps
    assert done.num_nonfinite == 0


@engines
def test_equal_seeds_give_equal_bits_and_other_labels_do_not(engine: GradEngine):
    cohort, plan = make_cohort((1, 8, 8), RECORDS), make_plan(grad_engine=engine)
    results = []
    for source in (SeededRandomness(5, "a", 1), SeededRandomness(5, "a", 1), SeededRandomness(5, "a", 2)):
        module = make_module("image")
        run(module, cohort, plan, randomness=source)
        results.append(weights_of(module))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("engine", ["vmap", "bookkeeping"])
def test_results_are_equal_in_another_process(engine: GradEngine, monkeypatch: pytest.MonkeyPatch):
    code = f"""
import hashlib
from privacy import bookkeeping
from privacy.noise import SeededRandomness
from tests.support.private_toys import make_cohort, make_module, weights_of
from tests.unit.privacy.test_training import RECORDS, make_plan, run
import torch
torch.set_num_threads(1)
torch.manual_seed(99)  # somebody else's seed must not matter
bookkeeping._SMALL_WORK = 0  # as for a large model: methods are chosen
module = make_module("image")
run(module, make_cohort((1, 8, 8), RECORDS), make_plan(grad_engine="{engine}"))
print(hashlib.sha256(weights_of(module).numpy().tobytes()).hexdigest())
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    monkeypatch.setattr(bookkeeping, "_SMALL_WORK", 0)
    monkeypatch.setattr(bookkeeping, "_seconds", None)  # whoever times fails
    module = make_module("image")
    run(module, make_cohort((1, 8, 8), RECORDS), make_plan(grad_engine=engine))
    assert done.stdout.strip() == hashlib.sha256(weights_of(module).numpy().tobytes()).hexdigest()


def test_system_randomness_never_gives_the_same_twice():
    results = []
    for _ in range(2):
        module = make_module("table")
        run(module, make_cohort((6,), RECORDS), make_plan(randomness="os"), randomness=SystemRandomness())
        results.append(weights_of(module))
    assert not torch.equal(results[0], results[1])


@pytest.mark.parametrize(("planned", "given"), [("os", SeededRandomness(1)), ("seeded", SystemRandomness())])
def test_the_randomness_has_to_be_of_the_plans_kind(planned: str, given: object):
    module = make_module("table")
    before = weights_of(module)
    with pytest.raises(PlanError, match=f"randomness is '{planned}', but '(os|seeded)' was given"):
        run(module, make_cohort((6,), RECORDS), make_plan(randomness=planned), randomness=given)
    assert torch.equal(weights_of(module), before)


@engines
def test_the_global_generator_is_neither_used_nor_changed(engine: GradEngine):
    cohort, plan, results = make_cohort((6,), RECORDS), make_plan(grad_engine=engine), []
    with torch.random.fork_rng():
        for seed in (1, 2):
            module = make_module("table")
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            run(module, cohort, plan)
            assert torch.equal(torch.get_rng_state(), state)
            results.append(weights_of(module))
    assert torch.equal(results[0], results[1])


@engines
def test_empty_samples_are_steps_of_noise_alone(engine: GradEngine):
    # q so small that nobody is ever drawn; ConvTranspose would crash on an empty batch, so the module is not called.
    cohort, steps = make_cohort((1, 8, 8), RECORDS), 5
    plan = make_plan(sampling_probability=1e-12, steps=steps, grad_engine=engine)
    module = make_module("image")
    before = weights_of(module)
    seen: list[int] = []
    done = run(module, cohort, plan, on_step=lambda step, loss: seen.append(step))
    assert done.steps_done == steps
    assert done.release == plan.release()
    assert seen == []  # an empty sample has no loss to log, and no NaN either
    noise = SeededRandomness(5, "site-1", 1).stream("noise").normal(steps * len(before)).reshape(steps, -1)
    expected = before - 0.05 * torch.from_numpy(noise.sum(0) * 0.8 * 1.5 / 3.0)
    spacing = grid_spacing(noise_multiplier=0.8, max_grad_norm=1.5, divisor=3.0)
    torch.testing.assert_close(weights_of(module), expected, rtol=0.0, atol=0.05 * steps * spacing)


def test_some_empty_samples_among_others_are_steps_too():
    sizes: list[int] = []

    class Counting:
        num_patients = 3
        cohort = make_cohort((6,), (1, 1, 1))

        def batch(self, patients: object, **options: object) -> Batch:
            batch = self.cohort.batch(patients, **options)
            sizes.append(batch.num_patients)
            return batch

    done = run(make_module("table"), Counting(), make_plan(sampling_probability=0.2, steps=40))
    assert len(sizes) == done.steps_done == 40
    assert 0 < sizes.count(0) < 40


def test_zero_steps_change_nothing_and_cost_nothing():
    module = make_module("table")
    before = weights_of(module)
    done = run(module, make_cohort((6,), RECORDS), make_plan(steps=0))
    assert torch.equal(weights_of(module), before)
    assert done.release is not None
    assert done.release.steps == 0


@engines
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_hostile_records_do_not_stop_or_poison_training(engine: GradEngine, bad: float):
    cohort = make_cohort((6,), RECORDS)
    cohort.values[0] = bad
    module = make_module("table")
    done = run(module, cohort, make_plan(sampling_probability=1.0, grad_engine=engine))
    assert torch.isfinite(weights_of(module)).all()
    assert done.steps_done == 6
    assert done.num_nonfinite == 6  # one patient, each step: the square of 1e30 overflows float32


def test_a_patient_moves_the_weights_by_at_most_c_over_divisor_a_step():
    # One step from equal weights with equal noise: with and without patient 0, whose gradient is huge.
    size, plan = 50, make_plan(sampling_probability=1.0, steps=1, max_grad_norm=0.5, divisor=2.0)
    results = []
    for scale in (0.0, 1e20):  # a zero record has a zero gradient: as if the patient were absent
        cohort = make_cohort((size,), (2, 1, 1), covariates=0)
        cohort.values[:2] = scale
        module = RawGradient(size).double()
        with torch.no_grad():
            module.layer.weight.zero_()
        run(module, cohort, plan, optimiser=NoisedOptimiser(learning_rate=1.0))
        results.append(weights_of(module))
    moved = float(torch.linalg.vector_norm(results[1] - results[0]))
    spacing = grid_spacing(noise_multiplier=0.8, max_grad_norm=0.5, divisor=2.0)
    assert moved <= 0.5 / 2.0 + spacing * math.sqrt(size)
    assert moved > 0.2  # the patient did count


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_physical_batches_do_not_change_the_result(rows: int):
    cohort, plan = make_cohort((1, 8, 8), RECORDS), make_plan()
    modules = [make_module("image").double() for _ in range(2)]
    run(modules[0], cohort, plan)
    run(modules[1], cohort, plan, max_physical_records=rows)
    torch.testing.assert_close(weights_of(modules[0]), weights_of(modules[1]), rtol=1e-9, atol=1e-9)


def test_both_engines_train_alike():
    cohort = make_cohort((1, 8, 8), RECORDS)
    modules = [make_module("image").double() for _ in range(2)]
    for module, engine in zip(modules, ("vmap", "opacus"), strict=True):
        run(module, cohort, make_plan(grad_engine=engine))
    torch.testing.assert_close(weights_of(modules[0]), weights_of(modules[1]), rtol=1e-9, atol=1e-9)


def test_the_cap_on_records_is_the_plans():
    seen: list[int] = []

    class Watched:
        cohort = make_cohort((6,), (9, 9, 9))
        num_patients = 3

        def batch(self, patients: object, **options: object) -> Batch:
            batch = self.cohort.batch(patients, **options)
            seen.extend(torch.bincount(batch.patient).tolist())
            return batch

    run(make_module("table"), Watched(), make_plan(sampling_probability=1.0, max_records_per_patient=4))
    assert seen == [4] * 18


def test_the_log_sees_the_mean_loss_of_the_sampled_patients():
    cohort, plan = make_cohort((6,), RECORDS), make_plan(sampling_probability=1.0, steps=1)
    module, logged = make_module("table").double(), []
    batch = cohort.everything()
    draws = SeededRandomness(5, "site-1", 1).stream("latent").generator()
    noise = torch.from_numpy(draws.standard_normal((batch.num_records, LATENT), dtype=np.float32)).double()
    losses = module(batch.values.double(), batch.covariates.double(), noise, 0.6).detach()
    means = [float(losses[batch.patient == patient].mean()) for patient in range(len(RECORDS))]
    run(module, cohort, plan, on_step=lambda step, loss: logged.append((step, loss)))
    assert logged == [(0, pytest.approx(np.mean(means)))]


def test_the_mode_of_every_layer_is_restored():
    module = make_module("image").eval()
    module.decoder.train()
    before = [part.training for part in module.modules()]
    run(module, make_cohort((1, 8, 8), RECORDS), make_plan())
    assert [part.training for part in module.modules()] == before
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_mode_is_restored_after_an_error():
    module = make_module("table").eval()
    with pytest.raises(RuntimeError):
        run(module, make_cohort((7,), RECORDS), make_plan(sampling_probability=1.0))
    assert not any(part.training for part in module.modules())


def test_frozen_parameters_stay():
    module = make_module("image")
    module.posterior.requires_grad_(False)
    before = module.posterior.weight.clone()
    run(module, make_cohort((1, 8, 8), RECORDS), make_plan())
    assert torch.equal(module.posterior.weight, before)


def test_private_facts_do_not_show_in_the_representation():
    done = run(make_module("table"), make_cohort((6,), RECORDS), make_plan())
    assert "num_nonfinite" not in repr(done)


@pytest.mark.parametrize("mu", [-0.1, math.nan, math.inf])
def test_a_bad_proximal_weight_is_refused(mu: float):
    with pytest.raises(ValueError, match="proximal_mu must be finite and >= 0"):
        run(make_module("table"), make_cohort((6,), RECORDS), make_plan(), proximal_mu=mu)


def test_the_proximal_term_is_outside_the_clip_and_pulls_to_the_base():
    # Noise is negligible and no patient is ever drawn: only the pull acts. w_1 = w_0 - 0.05 noise; then back by mu.
    plan = make_plan(sampling_probability=1e-12, noise_multiplier=1e-9, steps=3)
    module = RawGradient(4).double()
    before = weights_of(module)
    run(module, make_cohort((4,), (1,), covariates=0), plan, proximal_mu=100.0)
    torch.testing.assert_close(weights_of(module), before, rtol=0.0, atol=1e-7)


def by_hand_sgd(gradients: torch.Tensor, rate: float) -> torch.Tensor:
    velocity, moved = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0])
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient
        moved = moved - rate * velocity
    return moved


def by_hand_adam(gradients: torch.Tensor, rate: float) -> torch.Tensor:
    first = second = moved = torch.zeros_like(gradients[0])
    for step, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        moved = moved - rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return moved


def by_hand_corrected(gradients: torch.Tensor, rate: float) -> torch.Tensor:
    """DP-AdamBC for noise of sigma C / divisor = 0.8 x 1.5 / 3, and a floor of a tenth of its variance."""
    first = second = moved = torch.zeros_like(gradients[0])
    variance = (0.8 * 1.5 / 3.0) ** 2
    for step, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        signal = (second / (1 - 0.999**step) - variance).clamp(min=0.1 * variance)
        moved = moved - rate * (first / (1 - 0.9**step)) / signal.sqrt()
    return moved


@pytest.mark.parametrize(
    ("optimiser", "by_hand"),
    [
        (NoisedOptimiser(kind="sgd", learning_rate=0.1, momentum=0.9), by_hand_sgd),
        (NoisedOptimiser(kind="adam", learning_rate=0.1), by_hand_adam),
        (NoisedOptimiser(kind="adam-corrected", learning_rate=0.1), by_hand_corrected),
    ],
    ids=["sgd", "adam", "adam-corrected"],
)
def test_optimisers_see_the_noised_gradients_alone(
    optimiser: NoisedOptimiser, by_hand: Callable[[torch.Tensor, float], torch.Tensor]
):
    # Nobody is drawn, so the gradients are the noise, known in advance; starting from zero weights.
    plan, module = make_plan(sampling_probability=1e-12), RawGradient(8).double()
    with torch.no_grad():
        module.layer.weight.zero_()
    run(module, make_cohort((8,), (1,), covariates=0), plan, optimiser=optimiser)
    noise = SeededRandomness(5, "site-1", 1).stream("noise").normal(6 * 8).reshape(6, 8)
    spacing = grid_spacing(noise_multiplier=0.8, max_grad_norm=1.5, divisor=3.0)
    gradients = torch.from_numpy(round_to_grid(noise * 0.8 * 1.5 / 3.0, spacing))
    torch.testing.assert_close(weights_of(module), by_hand(gradients, 0.1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "lamb"}, "kind must be one of sgd, adam, adam-corrected"),
        ({"learning_rate": 0.0}, "learning_rate must be a number"),
        ({"learning_rate": math.nan}, "learning_rate must be a number"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1\.0"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be in \[0, 1\)"),
        ({"epsilon": 0.0}, "epsilon must be a number"),
        (
            {"kind": "x", "learning_rate": -1.0, "momentum": -1.0, "epsilon": 2.0},
            "kind.*learning.*epsilon.*momentum",
        ),
    ],
)
def test_optimisers_are_validated(changes: dict[str, object], message: str):
    with pytest.raises(PlanError, match=message):
        NoisedOptimiser(**{"learning_rate": 0.1, **changes})  # type: ignore[arg-type]


def no_privacy(steps: int = 6, batch_patients: int = 3) -> NoPrivacy:
    with pytest.warns(UnsafeWarning):
        return NoPrivacy(steps=steps, batch_patients=batch_patients)


def run_unsafe(module: nn.Module, cohort: Cohort, plan: NoPrivacy, **changes: object) -> Training:
    arguments: dict[str, object] = {
        "optimiser": SGD,
        "randomness": SeededRandomness(5, "site-1", 1),
        "kl_weight": 0.6,
        "latent_size": LATENT,
    }
    with pytest.warns(UnsafeWarning):
        return train_unsafe(module, cohort, plan=plan, **{**arguments, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_plain_training_equals_a_plain_loop(name: str, mu: float):
    cohort, module = make_cohort(SHAPES[name], RECORDS), make_module(name).double()
    mine = copy.deepcopy(module)
    source = SeededRandomness(5, "site-1", 1)
    order, latent = source.stream("sampling").generator(), source.stream("latent").generator()
    queue: list[np.ndarray] = []
    weights = nn.utils.parameters_to_vector(mine.parameters()).detach()
    base = weights.clone()
    for _ in range(6):
        if not queue:
            epoch = order.permutation(len(RECORDS))
            queue = [epoch[start : start + 3] for start in range(0, len(RECORDS), 3)]
        batch = cohort.batch(queue.pop(0))
        draws = torch.from_numpy(latent.standard_normal((batch.num_records, LATENT), dtype=np.float32))
        mean = reference_gradients(mine, batch, draws, 0.6).mean(0)
        weights = weights - 0.001 * (mean + mu * (weights - base))
        nn.utils.vector_to_parameters(weights, mine.parameters())
    gentle = NoisedOptimiser(learning_rate=0.001)
    done = run_unsafe(module, cohort, no_privacy(), optimiser=gentle, proximal_mu=mu, max_physical_records=4)
    torch.testing.assert_close(weights_of(module), weights, rtol=1e-9, atol=1e-11)
    assert (done.release, done.steps_done, done.num_nonfinite) == (None, 6, 0)


def test_a_plain_step_that_is_left_out_takes_its_learning_rate_with_it():
    """Two patients, one at a time; the gradient of one is not finite. The other's steps are those of their places."""
    cohort = make_cohort((1,), (1, 1), covariates=0)
    cohort.values[:, 0] = (1.0, math.inf)
    schedule = Schedule(kind="linear", final_share=0.25, total_steps=4)  # shares 1, 0.75, 0.5, 0.25
    optimiser = NoisedOptimiser(learning_rate=1.0, schedule=schedule)
    module = RawGradient(1).double()
    nn.init.zeros_(module.layer.weight)
    done = run_unsafe(module, cohort, no_privacy(steps=4, batch_patients=1), optimiser=optimiser)
    assert done.num_nonfinite == 2
    order = SeededRandomness(5, "site-1", 1).stream("sampling").generator()
    places = [int(patient) for _ in range(2) for patient in order.permutation(2)]
    expected = -sum(schedule.share(step) for step, patient in enumerate(places) if patient == 0)
    assert float(weights_of(module)) == pytest.approx(expected)


def test_plain_training_visits_every_patient_once_an_epoch():
    visits: list[int] = []

    class Watched:
        cohort = make_cohort((6,), (1,) * 7)
        num_patients = 7

        def batch(self, patients: np.ndarray, **options: object) -> Batch:
            visits.extend(patients.tolist())
            return self.cohort.batch(patients, **options)

    run_unsafe(make_module("table"), Watched(), no_privacy(steps=9, batch_patients=3))
    assert sorted(visits[:7]) == sorted(visits[7:14]) == sorted(visits[14:]) == list(range(7))


def test_plain_training_leaves_out_what_is_not_finite_and_says_so():
    cohort, logged = make_cohort((6,), (1, 1, 1)), []
    cohort.values[0] = np.nan
    module = make_module("table")
    done = run_unsafe(
        module, cohort, no_privacy(steps=6, batch_patients=1), on_step=lambda step, loss: logged.append(loss)
    )
    assert torch.isfinite(weights_of(module)).all()
    assert done.num_nonfinite == 2
    assert sum(map(math.isnan, logged)) == 2


def test_plain_training_is_seeded_too_and_learns():
    cohort, results = make_cohort((6,), RECORDS), []
    for _ in range(2):
        module, losses = make_module("table"), []
        optimiser = NoisedOptimiser(kind="adam", learning_rate=0.02)
        run_unsafe(
            module,
            cohort,
            no_privacy(steps=200, batch_patients=8),
            optimiser=optimiser,
            on_step=lambda step, loss, losses=losses: losses.append(loss),
        )
        results.append(weights_of(module))
        assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:20])
    assert torch.equal(results[0], results[1])


def test_plain_training_needs_a_patient():
    class Nobody:
        num_patients = 0

    with pytest.raises(ValueError, match="at least one patient"):
        run_unsafe(make_module("table"), Nobody(), no_privacy())


def test_private_training_learns_when_there_are_many_patients():
    # 4,000 patients of one mean: DP-SGD at sigma 1 finds it, so noise and divisor are of the right size.
    cohort = make_cohort((6,), [1] * 4000)
    cohort.values[:] = cohort.values * 0.1 + 2.0
    module, losses = make_module("table"), []
    plan = make_plan(
        sampling_probability=0.05, steps=150, noise_multiplier=1.0, max_grad_norm=1.0, divisor=200.0
    )
    run(
        module,
        cohort,
        plan,
        optimiser=NoisedOptimiser(kind="sgd", learning_rate=0.3, momentum=0.5),
        on_step=lambda step, loss: losses.append(loss),
    )
    assert np.mean(losses[-10:]) < 0.25 * np.mean(losses[:5])


def test_gradients_of_a_step_are_on_the_public_grid():
    plan, module = make_plan(steps=1, sampling_probability=1.0), RawGradient(30).double()
    with torch.no_grad():
        module.layer.weight.zero_()
    run(module, make_cohort((30,), RECORDS, covariates=0), plan, optimiser=NoisedOptimiser(learning_rate=1.0))
    spacing = grid_spacing(noise_multiplier=0.8, max_grad_norm=1.5, divisor=3.0)
    multiples = weights_of(module) / spacing
    assert torch.equal(multiples, multiples.round())
    assert flatten({"w": multiples}).unique().numel() > 20
