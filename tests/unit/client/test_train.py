"""One round of local training: what the options of the learning plan do to the change that leaves."""

import dataclasses

import numpy as np
import pytest
import torch

from client.contract import ContractError, LearningPlan, TrainRequest
from client.train import train_round, training_only
from privacy.noise import SeededRandomness
from privacy.plan import PrivacyPlan
from privacy.unsafe import NoPrivacy
from tests.support.private_toys import make_cohort
from vae.models import build
from vae.spec import ModelSpec
from vae.weights import to_numpy

TABLE = ModelSpec(family="vae", input_shape=(6,), latent_size=2, channels=(8,))
COHORT = make_cohort((6,), (1, 2, 3, 1, 2, 1, 1, 2))
PLAN = PrivacyPlan(
    sampling_probability=0.5,
    steps=4,
    noise_multiplier=1.0,
    max_grad_norm=1.0,
    divisor=4.0,
    delta=1e-3,
    randomness="seeded",
)
UNSAFE = pytest.mark.filterwarnings("ignore::privacy.unsafe.UnsafeWarning")


def round_of(learning, *, plan=PLAN, spec=TABLE, cohort=COHORT, sharing="all", seed=1):
    """Return (round, base weights, model) of one round."""
    model = build(spec, seed=0)
    base = to_numpy(model, model.shared_names("all"))
    shared = model.shared_names(sharing)
    done = train_round(
        model,
        cohort,
        {name: value for name, value in base.items() if name in shared},
        {name: value for name, value in base.items() if name not in shared},
        sharing=sharing,
        plan=plan,
        learning=learning,
        randomness=SeededRandomness(seed, "train"),
    )
    return done, base, model


@pytest.mark.parametrize("which", ["decoder", "encoder", "biases", "last"])
def test_what_is_frozen_does_not_change_by_a_bit_and_travels_all_the_same(which):
    done, _, model = round_of(LearningPlan(trainable=which, proximal_mu=0.1))
    trained = model.trainable_names(which)
    assert set(done.delta) == model.shared_names("all")
    for name, change in done.delta.items():
        if name in trained:
            assert change.any(), name
        else:
            assert change.tobytes() == np.zeros_like(change).tobytes(), name
    assert all(parameter.requires_grad for parameter in model.parameters())


@UNSAFE
def test_without_privacy_likewise():
    done, _, model = round_of(LearningPlan(trainable="last"), plan=NoPrivacy(steps=3, batch_patients=4))
    moved = {name for name, change in done.delta.items() if change.any()}
    assert moved == model.trainable_names("last")


def test_the_norm_of_the_noise_grows_with_the_root_of_what_is_trained():
    """SGD, next to no gradient: the change is noise of sigma C / divisor in each trained coordinate."""
    plan = dataclasses.replace(PLAN, steps=1, noise_multiplier=100.0)
    for which in ("all", "decoder", "biases"):
        done, _, model = round_of(
            LearningPlan(optimiser="sgd", learning_rate=0.01, trainable=which), plan=plan
        )
        names = model.trainable_names(which)
        count = sum(parameter.numel() for name, parameter in model.named_parameters() if name in names)
        norm = np.sqrt(
            sum(float(np.square(change, dtype=np.float64).sum()) for change in done.delta.values())
        )
        assert norm == pytest.approx(0.01 * 100.0 / 4.0 * np.sqrt(count), rel=4 / np.sqrt(2 * count) + 0.01)


def test_what_costs_privacy_does_not_depend_on_what_is_trained():
    assert round_of(LearningPlan(trainable="last"))[0].release == PLAN.release()


def test_parameters_are_as_they_were_after_an_error_too():
    model = build(TABLE, seed=0)
    model.encoder.layers[0].bias.requires_grad_(False)

    def fail():
        with training_only(model, "encoder"):
            trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            assert trained == model.trainable_names("encoder") - {"encoder.layers.0.bias"}
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["encoder.layers.0.bias"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"precision": "bf8"}, "precision must be one of float32, bf16"),
        ({"trainable": "heads"}, "trainable must be one of"),
        ({"trainable": None}, "trainable"),
        ({"schedule": "step", "final_share": 7}, "schedule must.*final_share must"),
    ],
    ids=str,
)
def test_a_learning_plan_out_of_range_is_refused_by_name(fields, named):
    with pytest.raises(ContractError, match=named):
        LearningPlan(**fields)


def test_the_rate_of_a_round_is_that_of_its_global_steps():
    """SGD of next to nothing but noise: steps are proportional to rates, so a round at the end moves less."""
    plan = dataclasses.replace(PLAN, steps=2, noise_multiplier=1000.0)
    learning = LearningPlan(
        optimiser="sgd", learning_rate=0.01, schedule="linear", final_share=0.1, total_steps=10
    )

    def change(**fields):
        done, _, _ = round_of(dataclasses.replace(learning, **fields), plan=plan)
        return done.delta["encoder.layers.0.bias"]

    # Shares 1, 0.9 in the first round and 0.2, 0.1 in the last; noise n1, n2 is the same in both.
    rates = np.array([[1.0, 0.9], [0.2, 0.1]])
    noise = np.linalg.solve(rates, np.stack([change(first_step=0), change(first_step=8)]))
    np.testing.assert_allclose(change(first_step=4), 0.6 * noise[0] + 0.5 * noise[1], rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(change(schedule="constant"), noise[0] + noise[1], rtol=1e-2, atol=1e-3)


def test_a_schedule_without_the_steps_of_the_run_is_refused():
    with pytest.raises(ContractError, match="total_steps must be filled in"):
        round_of(LearningPlan(schedule="cosine"))


IMAGE = ModelSpec(family="vae", input_shape=(1, 8, 8), latent_size=2, channels=(4,))
IMAGES = make_cohort((1, 8, 8), (1, 2, 1, 3, 2, 1))


@UNSAFE
@pytest.mark.parametrize("private", [True, False])
def test_versions_of_records_reach_training(private):
    plan = PLAN if private else NoPrivacy(steps=2, batch_patients=3)
    options = {"plan": plan, "spec": IMAGE, "cohort": IMAGES}
    plain, _, _ = round_of(LearningPlan(), **options)
    versions = LearningPlan(augmentations=2, max_shift=1, max_gain=0.1)
    first, again = (round_of(versions, **options)[0] for _ in range(2))
    assert all(first.delta[name].tobytes() == again.delta[name].tobytes() for name in first.delta)
    assert any((first.delta[name] != plain.delta[name]).any() for name in first.delta)
    assert first.release == plain.release


def test_versions_of_a_table_are_refused():
    with pytest.raises(ContractError, match="augmentations: are of images, and the model is of tables"):
        TrainRequest(
            run_id="r",
            round=1,
            base_hash="b",
            model=TABLE,
            sharing="all",
            plan=PLAN,
            learning=LearningPlan(augmentations=1),
        )


def test_the_bits_of_a_round_are_a_function_of_the_seed():
    first, second, other = (round_of(LearningPlan(trainable="biases"), seed=seed)[0] for seed in (1, 1, 2))
    assert all(first.delta[name].tobytes() == second.delta[name].tobytes() for name in first.delta)
    assert any((first.delta[name] != other.delta[name]).any() for name in first.delta)


def test_torch_s_generator_is_left_alone():
    before = torch.get_rng_state()
    round_of(LearningPlan())
    assert torch.equal(before, torch.get_rng_state())
