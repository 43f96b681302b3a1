"""Training in a subspace is training of theta: gradients are projections, weights stay in w0 + span(V)."""

import copy

import numpy as np
import pytest
import torch

from privacy.clipping import VmapEngine
from privacy.noise import SeededRandomness
from privacy.optimiser import NoisedOptimiser
from privacy.plan import PrivacyPlan
from privacy.subspace import ORTHONORMAL_WITHIN, distance_from_orthonormal, public_directions, within
from privacy.training import train_private
from tests.support.private_toys import (
    LATENT,
    SHAPES,
    RawGradient,
    flatten,
    latent_of,
    make_cohort,
    make_module,
    reference_gradients,
    reference_sum,
    weights_of,
)
from tests.support.subspaces import directions_for, orthonormal, stacked

RECORDS = (1, 3, 2, 1, 5, 2, 1, 4)
PLAN = PrivacyPlan(
    sampling_probability=0.5,
    steps=3,
    noise_multiplier=1.0,
    max_grad_norm=1.0,
    divisor=4.0,
    delta=1e-3,
    randomness="seeded",
)
kinds = pytest.mark.parametrize("kind", ["table", "image", "volume"])


def train(module, cohort, **changes):
    arguments = {
        "plan": PLAN,
        "optimiser": NoisedOptimiser(kind="adam", learning_rate=0.05),
        "randomness": SeededRandomness(3, "site"),
        "kl_weight": 1.0,
        "latent_size": LATENT,
    }
    return train_private(module, cohort, **{**arguments, **changes})


@kinds
@pytest.mark.parametrize("bound", [0.1, 1e3])
def test_gradients_of_theta_are_projections_clipped_in_k_dimensions(kind, bound):
    module = make_module(kind).double().train()
    batch = make_cohort(SHAPES[kind], RECORDS).batch(np.arange(len(RECORDS)))
    noise, directions = latent_of(batch), directions_for(module, 5)
    full = reference_gradients(module, batch, noise, 0.7)
    with within(module, directions) as space:
        assert [name for name, each in space.named_parameters() if each.requires_grad] == ["theta"]
        clipped = VmapEngine().clipped_sum(
            space, batch, latent_noise=noise, kl_weight=0.7, max_grad_norm=bound
        )
    expected = reference_sum(full @ stacked(directions).T, bound)
    torch.testing.assert_close(flatten(clipped.sum), expected, rtol=1e-9, atol=1e-9)


@kinds
def test_weights_move_within_the_span_alone(kind):
    module = make_module(kind).double()
    before, directions = weights_of(module), directions_for(module, 4)
    with within(module, directions) as space:
        train(space, make_cohort(SHAPES[kind], RECORDS))
        theta = space.theta.detach().clone()
    change, matrix = weights_of(module) - before, stacked(directions)
    torch.testing.assert_close(change, theta @ matrix, rtol=0, atol=1e-12)
    assert float(theta.norm()) == pytest.approx(float(change.norm()), rel=1e-9), "as |w - w0| for the pull"
    assert float((change - change @ matrix.T @ matrix).norm()) < 1e-12 < float(change.norm())


def test_all_directions_are_training_without_a_subspace():
    """V square: SGD on theta is SGD on the weights, step by step, with noise turned by V."""
    sgd = NoisedOptimiser(kind="sgd", learning_rate=0.1)
    quiet = PrivacyPlan.from_dict({**PLAN.to_dict(), "noise_multiplier": 1e-9})
    plain, turned = make_module("table").double(), make_module("table").double()
    cohort = make_cohort(SHAPES["table"], RECORDS)
    train(plain, cohort, plan=quiet, optimiser=sgd, proximal_mu=0.3)
    with within(turned, directions_for(turned, weights_of(turned).numel())) as space:
        train(space, cohort, plan=quiet, optimiser=sgd, proximal_mu=0.3)
    torch.testing.assert_close(weights_of(turned), weights_of(plain), rtol=1e-6, atol=1e-7)


def test_parameters_that_are_frozen_stay_and_have_no_directions():
    module = make_module("table")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith("decoder"))
    before = copy.deepcopy(module.state_dict())
    with within(module, directions_for(module, 3)) as space:
        train(space, make_cohort(SHAPES["table"], RECORDS))
    for name, parameter in module.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == parameter.requires_grad == name.startswith("decoder")


def test_after_an_error_nothing_has_moved():
    module = make_module("table")
    before = weights_of(module)

    def fail():
        with within(module, directions_for(module, 3)) as space:
            train(space, make_cohort(SHAPES["table"], RECORDS))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.equal(weights_of(module), before)
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adam-corrected"])
def test_equal_seeds_give_equal_bits_and_the_release_is_the_plans(optimiser):
    ends = []
    for _ in range(2):
        module = make_module("table")
        with within(module, directions_for(module, 3)) as space:
            done = train(
                space,
                make_cohort(SHAPES["table"], RECORDS),
                optimiser=NoisedOptimiser(kind=optimiser, learning_rate=0.01),
            )
        assert done.release == PLAN.release()
        ends.append(weights_of(module))
    assert torch.equal(*ends)


def test_weights_are_as_exact_under_autocast():
    module = make_module("table")
    with within(module, directions_for(module, 3)) as space:
        with torch.no_grad():
            space.theta.copy_(torch.tensor([0.123456, -1.234567, 3.456789]))
        exact = space.weights()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = space.weights()
        assert all(torch.equal(inside[name], each) for name, each in exact.items())


@pytest.mark.parametrize("spoil", ["missing", "extra", "shape", "uneven", "none"])
def test_directions_that_do_not_fit_are_refused(spoil):
    module = make_module("table")
    directions = directions_for(module, 3)
    first = next(iter(directions))
    if spoil == "missing":
        del directions[first]
    elif spoil == "extra":
        directions["other"] = torch.zeros(3, 2)
    elif spoil == "shape":
        directions[first] = directions[first].flatten(1)
    elif spoil == "uneven":
        directions[first] = directions[first][:2]
    else:
        directions = {name: each[:0] for name, each in directions.items()}
    with pytest.raises(ValueError, match="directions"), within(module, directions):
        pass
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_distance_from_orthonormal():
    matrix = orthonormal(7, 70_000).astype(np.float32)  # more than one block
    assert distance_from_orthonormal(matrix) < ORTHONORMAL_WITHIN / 100
    assert distance_from_orthonormal(1.0001 * matrix) > ORTHONORMAL_WITHIN
    assert distance_from_orthonormal(matrix[[0, 0]]) == pytest.approx(1.0, abs=1e-5)
    matrix[3, 69_999] = np.nan
    assert np.isnan(distance_from_orthonormal(matrix))


def test_public_directions_of_known_gradients():
    """Gradients are the records: x twice as often as y, z never. The first direction is x, the second y."""
    cohort = make_cohort((4,), (1,) * 6, covariates=0)
    values = np.zeros((6, 4), np.float32)
    values[:4, 0], values[4:, 2] = (5, -1, 2, 9), (3, 700)
    cohort.values[:] = values
    found = public_directions(RawGradient(4), cohort, 2, latent_size=1)["layer.weight"]
    np.testing.assert_allclose(found[:, 0].numpy(), [[1, 0, 0, 0], [0, 0, 1, 0]], atol=1e-6)
    with pytest.raises(ValueError, match="span 2 directions, 3 are asked for"):
        public_directions(RawGradient(4), cohort, 3, latent_size=1)


@kinds
def test_public_directions_hold_the_gradients_they_were_made_of(kind):
    """As many directions as patients with one record each: the span holds every gradient."""
    module = make_module(kind)
    before = weights_of(module)
    cohort = make_cohort(SHAPES[kind], (1,) * 9)
    found = public_directions(module, cohort, 9, latent_size=LATENT, seed=4)
    again = public_directions(module, cohort, 9, latent_size=LATENT, seed=4)
    matrix = stacked(found)
    assert torch.equal(matrix, stacked(again))
    assert distance_from_orthonormal(matrix.numpy()) < ORTHONORMAL_WITHIN / 100
    rng = np.random.Generator(np.random.Philox(key=4))
    for patient in range(9):
        batch = cohort.batch(np.array([patient]), max_records=4, rng=rng)
        noise = torch.from_numpy(rng.standard_normal((1, LATENT), dtype=np.float32))
        gradient = reference_gradients(module, batch, noise, 1.0)[0]
        assert float((matrix @ gradient).norm()) == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert torch.equal(weights_of(module), before)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_memory_is_bounded_by_the_patients_that_are_looked_at():
    class Counting:
        def __init__(self, cohort):
            self.cohort, self.asked = cohort, []

        @property
        def num_patients(self):
            return self.cohort.num_patients

        def batch(self, patients, **options):
            self.asked += patients.tolist()
            return self.cohort.batch(patients, **options)

    counting = Counting(make_cohort(SHAPES["table"], (1,) * 30))
    public_directions(make_module("table"), counting, 2, latent_size=LATENT, max_patients=5)
    assert counting.asked == [0, 7, 14, 21, 29]


def test_a_patient_without_a_gradient_counts_for_nothing():
    cohort = make_cohort((4,), (1,) * 3, covariates=0)
    cohort.values[:] = [[1, 0, 0, 0], [np.nan, 0, 0, 0], [0, 0, 0, 0]]
    found = public_directions(RawGradient(4), cohort, 1, latent_size=1)["layer.weight"]
    np.testing.assert_allclose(found[:, 0].numpy(), [[1, 0, 0, 0]], atol=1e-7)
    with pytest.raises(ValueError, match="k must be >= 1"):
        public_directions(RawGradient(4), cohort, 0, latent_size=1)
