"""Attacks that a run makes on itself: made once, kept, and never more than they show."""

import json

import numpy as np
import pytest

from deploy.simulation import evidence
from deploy.simulation.evidence import FILES, RELEASED_NAME, few_steps, measure
from deploy.simulation.sites import open_site
from privacy.accounting import PldAccountant, Release
from server.federation import initial_weights
from server.report.evidence import attack_rows
from tests.support.experiments import experiment, run
from vae.data.cohort import Cohort
from vae.weights import hash_weights, to_numpy

MADE = experiment(
    arms=["local", "federated-dp"],
    audit={"canaries": 500},
    data={"patients_per_site": 24, "features": 4},
    privacy={"sampling_probability": 0.1, "local_steps": 15, "divisor": 2.4},
)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked")
    trained = run(MADE, folder / "run")
    arms = {arm.name: arm for arm in trained.arms}
    return measure(MADE, trained.spec, trained.sites, arms, folder), folder, trained, arms


def test_every_attack_is_made_and_kept(attacked):
    facts, folder, _, _ = attacked
    assert None not in (facts.gradient, facts.control, facts.black_box, facts.membership, facts.memorisation)
    assert {path.name for path in folder.glob("*.json")} == {*FILES.values(), RELEASED_NAME}
    assert not any(row.result == "not provided" for row in attack_rows(facts))


def test_the_claim_of_right_noise_stands_and_its_steps_are_those_of_the_whole_run(attacked):
    facts = attacked[0]
    assert not facts.gradient.violated
    assert facts.gradient.steps == MADE.privacy.local_steps * MADE.federation.rounds
    whole = Release(sampling_probability=0.1, noise_multiplier=1.0, steps=30)
    assert facts.gradient.claimed_pld == pytest.approx(PldAccountant().epsilon([whole], 1e-3))
    assert facts.gradient.shown <= facts.gradient.claimed_pld <= facts.gradient.claimed_rdp


def test_missing_noise_is_found_out(attacked):
    facts = attacked[0]
    assert facts.control.violated
    assert facts.control.auc > 0.95


def test_both_sides_of_the_membership_attack_are_counted(attacked):
    facts, _, trained, _ = attacked
    assert facts.membership.num_members == sum(data.train.num_patients for data in trained.sites.values())
    assert facts.membership.num_references == 2
    assert facts.memorisation.expected == 0.5


def test_what_was_made_is_not_made_again(attacked, monkeypatch):
    facts, folder, trained, arms = attacked
    monkeypatch.setattr(evidence, "audit_training", lambda *a, **b: pytest.fail("made again"))
    assert measure(MADE, trained.spec, trained.sites, arms, folder) == facts


def test_files_are_strict_json(attacked):
    for path in attacked[1].glob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)


def test_few_steps_claim_no_more_than_canaries_can_refute():
    release = Release(sampling_probability=0.25, noise_multiplier=1.0, steps=500)
    few = few_steps(release, 1e-3)
    assert 1 <= few.steps < 500
    spent = [
        PldAccountant(interval=1e-3).epsilon(
            [Release(sampling_probability=0.25, noise_multiplier=1.0, steps=steps)], 1e-3
        )
        for steps in (few.steps, few.steps + 1)
    ]
    assert spent[0] <= evidence.CONTROL_EPSILON < spent[1]


def test_nobody_held_out_is_said_not_guessed():
    labels = {"anomaly": np.ones(3, np.float32)}
    ill = Cohort.from_records(
        name="x", patients=["a", "b", "c"], values=np.zeros((3, 2), np.float32), labels=labels
    )
    assert evidence._normal(ill) is None


def test_the_job_that_is_attacked_learns_as_the_arm_does():
    learning = {
        "schedule": "cosine",
        "optimiser": "adam-corrected",
        "trainable": "decoder",
        "learning_rate": 0.02,
    }
    made = experiment(audit={"canaries": 500, "max_steps": 3}, privacy=learning)
    spec = made.model_spec((5,))
    data = open_site(made, "site-1", None)
    job = evidence._Job(made, spec, {"site-1": data}, initial_weights(spec, "all", 77))
    optimiser = job._training()["optimiser"]
    assert (optimiser.kind, optimiser.learning_rate) == ("adam-corrected", 0.02)
    assert [optimiser.schedule.share(step) for step in (0, 1, 2)] == pytest.approx([1.0, 0.55, 0.1])
    model = job._model()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == model.trainable_names("decoder")
    start = to_numpy(model, [name for name, _ in model.named_parameters()])
    assert hash_weights(start) == hash_weights(initial_weights(spec, "all", 77))
