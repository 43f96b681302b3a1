"""The linear baselines of a simulation: what each site releases, what it costs, and where the frame comes from."""

import math

import numpy as np
import pytest

from deploy.simulation.assemble import assemble
from deploy.simulation.linear import frame_of, linear_baselines, private_model
from deploy.simulation.public import public_cohort
from deploy.simulation.sites import prepare
from privacy.accounting import epsilons
from privacy.linear import LinearPlan
from server.report import document
from tests.support.experiments import experiment, run, setting
from vae.data.cohort import Cohort
from vae.tasks.linear import cosine_basis

MADE = experiment(
    data={"patients_per_site": 300, "features": 6, "seed": 2},
    public={"data": {"kind": "toy", "patients_per_site": 60, "features": 6, "seed": 9}, "steps": 0},
    privacy={"noise_multiplier": None, "epsilon": 8.0, "sampling_probability": 0.1, "divisor": 30.0},
    linear={"components": 3},
    arms=["mean", "linear", "linear-dp"],
)


def _error(reconstruct, sites):
    rows = np.concatenate([np.asarray(data.test.values) for data in sites.values()])
    return float(np.mean((reconstruct(rows, None) - rows) ** 2))


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    return prepare(MADE, tmp_path_factory.mktemp("cache"), workers=1)


def test_with_many_patients_the_private_model_is_nearly_the_pooled_one(sites, tmp_path):
    made = linear_baselines(MADE, sites, tmp_path)
    assert set(made) == {document.LINEAR, document.LINEAR_DP}
    plain, private = (_error(made[arm], sites) for arm in (document.LINEAR, document.LINEAR_DP))
    mean = np.concatenate([np.asarray(data.train.values) for data in sites.values()]).mean(axis=0)
    rows = np.concatenate([np.asarray(data.test.values) for data in sites.values()])
    assert abs(private / plain - 1) < 0.3
    assert max(plain, private) < 0.3 * float(np.mean((rows - mean) ** 2))


def test_less_budget_gives_a_worse_model(sites, tmp_path):
    errors = []
    for epsilon in (8.0, 0.02):
        privacy = MADE.privacy.model_copy(update={"epsilon": epsilon})
        cohorts = {site: data.train for site, data in sites.items()}
        model = private_model(
            MADE.model_copy(update={"privacy": privacy}), cohorts, public_cohort(MADE, tmp_path, workers=1)
        )
        errors.append(_error(model.reconstruct, sites))
    assert errors[1] > 2 * errors[0]


def test_each_site_spends_the_epsilon_of_the_private_arm(sites, tmp_path, monkeypatch):
    plans = []
    real = LinearPlan.__post_init__
    monkeypatch.setattr(LinearPlan, "__post_init__", lambda plan: plans.append(plan) or real(plan))
    linear_baselines(MADE, sites, tmp_path)
    assert len(plans) == 3
    for plan in plans:
        assert 7.9 < epsilons(plan.releases(), MADE.privacy.delta).pld <= 8.0 * (1 + 2e-3)
        assert plan.num_patients == pytest.approx(300)


def test_the_frame_is_of_public_data_alone(sites, tmp_path):
    public = public_cohort(MADE, tmp_path, workers=1)
    like = next(iter(sites.values())).train
    frame = frame_of(MADE, like, public)
    rows = np.asarray(public.values, np.float64)
    np.testing.assert_allclose(frame.centre, rows.mean(axis=0))
    apart = np.linalg.norm(rows - frame.centre, axis=1)
    assert frame.mean_norm == pytest.approx(np.quantile(apart, 0.95))


def test_without_public_data_images_are_seen_as_smooth_cosines():
    images = Cohort.from_records(name="x", patients=["a"], values=np.zeros((1, 1, 8, 8), np.float32))
    made = MADE.model_copy(
        update={
            "linear": MADE.linear.model_copy(update={"coordinates": 9, "mean_norm": 2.0, "spread_norm": 1.0})
        }
    )
    frame = frame_of(made, images, None)
    np.testing.assert_allclose(frame.basis, cosine_basis((1, 8, 8), 9))
    assert (frame.mean_norm, frame.spread_norm) == (2.0, 1.0)
    assert set(frame.centre) == {0.0}
    with pytest.raises(ValueError, match="mean_norm"):
        frame_of(MADE, images, None)


def test_the_report_has_the_linear_arms_and_says_what_they_cost(tmp_path):
    made = MADE.model_copy(
        update={
            "arms": ("mean", "linear", "linear-dp", "federated-dp"),
            "federation": MADE.federation.model_copy(update={"rounds": 1}),
        }
    )
    report = assemble(setting(made, tmp_path), run(made, tmp_path), wall_s=1.0)
    assert report.arms[2:4] == (document.LINEAR, document.LINEAR_DP)
    assert any(
        (row.arm_a, row.arm_b) == (document.FEDERATED_DP, document.LINEAR_DP) for row in report.differences
    )
    assert any("no ledger counts it" in sentence for sentence in report.privacy.not_covered)
    values = {row.arm: row.value for row in report.results if row.metric == "mse"}
    assert all(math.isfinite(value) for value in values.values())
    assert max(values[document.LINEAR], values[document.LINEAR_DP]) < values[document.MEAN]


def test_the_hash_leaves_the_linear_baselines_out():
    assert (
        MADE.model_copy(update={"linear": MADE.linear.model_copy(update={"components": 5})}).hash()
        == MADE.hash()
    )
