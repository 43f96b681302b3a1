"""Every arm through the same tasks, the baselines beside them, and pictures of the arm that the report is about."""

import json

import numpy as np
import pytest

from deploy.simulation.judge import (
    OWN,
    Arm,
    LatentLog,
    judge,
    latent_use,
    model_of,
    pictures,
    reconstructor,
)
from server.federation import initial_weights
from server.report.document import CENTRALISED, FEDERATED, FEDERATED_DP, MEAN, SITE_MEAN, LatentUse
from tests.support.sites import image_site, table_site
from vae.spec import ModelSpec
from vae.tasks.anomaly import compare, everywhere, predict_mean, score
from vae.tasks.score import AnomalySettings

TABLE = ModelSpec(family="vae", input_shape=(6,), latent_size=2, channels=(4,))
IMAGE = ModelSpec(family="vae", input_shape=(1, 16, 16), latent_size=3, channels=(4, 8))
VOLUME = ModelSpec(family="vae", input_shape=(1, 16, 16, 16), latent_size=2, channels=(4, 8))
TABLES = {"north": table_site("north", seed=1), "south": table_site("south", seed=2, shift=3.0)}
IMAGES = {"north": image_site("north", seed=1), "south": image_site("south", seed=2, level=0.4)}


def _arm(name, spec=TABLE, seed=0, sites=TABLES):
    return Arm(name=name, weights=dict.fromkeys(sites, initial_weights(spec, "all", seed)))


def _judge(arms, spec=TABLE, sites=TABLES, **options):
    return judge(arms, spec, sites, **{"seed": 1, "num_bootstrap": 100, **options})


def _value(judgement, arm, metric):
    (row,) = [row for row in judgement.results if (row.arm, row.metric) == (arm, metric)]
    return row.value


def test_every_arm_and_both_baselines_have_every_metric_with_its_interval():
    found = _judge([_arm(FEDERATED), _arm(FEDERATED_DP, seed=1)])
    rows = {(row.arm, row.metric) for row in found.results}
    assert {arm for arm, _ in rows} == {MEAN, SITE_MEAN, FEDERATED, FEDERATED_DP}
    assert len(rows) == len(found.results)
    assert len({metric for _, metric in rows}) * 4 == len(rows)
    assert all(row.ci95 is not None and row.ci95[0] <= row.value <= row.ci95[1] for row in found.results)


def test_the_sites_own_mean_is_the_stronger_baseline_where_sites_differ():
    found = _judge([])
    pooled = np.concatenate([data.train.values for data in TABLES.values()]).mean(axis=0, dtype=np.float64)
    normal = {name: data.test.values[data.test.labels["anomaly"] == 0] for name, data in TABLES.items()}
    expected = np.concatenate([np.square(values - pooled).mean(axis=1) for values in normal.values()]).mean()
    assert _value(found, MEAN, "mse") == pytest.approx(expected, rel=1e-5)
    own = np.concatenate(
        [
            np.square(values - TABLES[name].train.values.mean(axis=0)).mean(axis=1)
            for name, values in normal.items()
        ]
    )
    assert _value(found, SITE_MEAN, "mse") == pytest.approx(own.mean(), rel=1e-5)
    assert own.mean() < 0.5 * expected  # the sites lie 3 standard deviations apart


def test_without_the_arm_mean_there_is_no_baseline():
    found = _judge([_arm(FEDERATED)], with_mean=False)
    assert {row.arm for row in found.results} == {FEDERATED}
    assert found.differences == ()


def test_the_verdicts_pairs_are_compared_on_the_same_patients():
    arms = [_arm(OWN, seed=3), _arm(FEDERATED), _arm(FEDERATED_DP, seed=1), _arm(CENTRALISED, seed=2)]
    found = _judge(arms)
    pairs = {(row.arm_a, row.arm_b) for row in found.differences}
    assert pairs == {
        *((arm, mean) for arm in (FEDERATED, FEDERATED_DP, CENTRALISED) for mean in (MEAN, SITE_MEAN)),
        (FEDERATED_DP, FEDERATED),
        (FEDERATED, OWN),
        (FEDERATED_DP, OWN),
        (CENTRALISED, FEDERATED),
    }
    for row in found.differences:
        if row.metric == "mse":
            expected = _value(found, row.arm_a, "mse") - _value(found, row.arm_b, "mse")
            assert row.value == pytest.approx(expected, abs=1e-6)


def test_a_site_is_judged_by_its_own_model():
    one, two = initial_weights(TABLE, "all", 1), initial_weights(TABLE, "all", 2)
    mixed = _judge([Arm(name=OWN, weights={"north": one, "south": two})], with_mean=False)
    same = _judge([Arm(name=OWN, weights={"north": one, "south": one})], with_mean=False)
    assert _value(mixed, OWN, "mse") != _value(same, OWN, "mse")
    alone = {
        name: _judge([Arm(name=OWN, weights={name: weights})], sites={name: TABLES[name]}, with_mean=False)
        for name, weights in (("north", one), ("south", two))
    }
    halves = [_value(alone[name], OWN, "mse") for name in alone]
    assert _value(mixed, OWN, "mse") == pytest.approx(np.mean(halves), rel=1e-5)  # sites of equal size


def test_the_direction_of_the_anomaly_reaches_the_scores():
    low, both = (
        _judge([], IMAGE, IMAGES, settings=AnomalySettings(direction=way)) for way in ("low", "both")
    )
    for arm in (MEAN, SITE_MEAN):
        zmaps = [row.metric for row in low.results if row.arm == arm and "zmap" in row.metric]
        assert zmaps
        assert any(_value(low, arm, metric) != _value(both, arm, metric) for metric in zmaps)


def test_reconstruction_takes_no_draw_from_the_posterior():
    model = model_of(TABLE, initial_weights(TABLE, "all", 0))
    values = TABLES["north"].test.values
    none = np.zeros((len(values), 0), np.float32)
    first, again = reconstructor(model)(values, none), reconstructor(model)(values, none)
    assert first.shape == values.shape
    assert (first == again).all()


def test_a_model_has_the_weights_it_is_given():
    weights = initial_weights(TABLE, "all", 7)
    parameters = dict(model_of(TABLE, weights).named_parameters())
    assert set(parameters) == set(weights)
    assert all((parameters[name].detach().numpy() == weights[name]).all() for name in weights)
    assert not model_of(TABLE, weights).training


def test_latents_are_counted_over_all_sites():
    use = latent_use(TABLE, initial_weights(TABLE, "all", 0), TABLES, 4)
    assert (use.round, len(use.kl_per_latent)) == (4, 2)
    assert all(np.isfinite(use.kl_per_latent))
    assert 0 <= use.active_units <= 2


def test_use_of_latents_is_kept_between_runs_and_a_repeated_round_counts_once(tmp_path):
    log = LatentLog(tmp_path / "arms" / "latents.jsonl")
    assert log.read() == ()
    for round_, active in ((2, 1), (1, 0), (2, 3)):
        log.write(LatentUse(round=round_, kl_per_latent=(0.1, 0.2), active_units=active))
    with (tmp_path / "arms" / "latents.jsonl").open("a") as file:
        file.write(json.dumps({"round": 3})[:-1])
    assert log.read() == (
        LatentUse(round=1, kl_per_latent=(0.1, 0.2), active_units=0),
        LatentUse(round=2, kl_per_latent=(0.1, 0.2), active_units=3),
    )


def test_pictures_of_images():
    shown = pictures(IMAGE, _arm(FEDERATED, IMAGE, sites=IMAGES), IMAGES, num=4)
    assert shown is not None
    assert shown.original.shape == shown.reconstruction.shape == shown.residual.shape
    assert len(shown.labels) == len(shown.original)
    assert {label.split(",")[0] for label in shown.labels} == {"north", "south"}
    assert shown.traversals.shape == (3, 7, 16, 16)  # there are only three latents
    assert shown.traversal_values == (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
    assert shown.samples.shape == (8, 16, 16)
    again = pictures(IMAGE, _arm(FEDERATED, IMAGE, sites=IMAGES), IMAGES, num=4)
    assert (again.samples == shown.samples).all()


def test_pictures_of_volumes_are_slices():
    sites = {"north": image_site("north", seed=1, patients=2, shape=(16, 16, 16))}
    shown = pictures(VOLUME, _arm(FEDERATED, VOLUME, sites=sites), sites, num=2)
    assert shown.samples.shape == (8, 16, 16)
    assert shown.traversals.shape == (2, 7, 16, 16)


def test_there_are_no_pictures_of_tables_nor_where_none_are_asked_for():
    assert pictures(TABLE, _arm(FEDERATED), TABLES, num=4) is None
    assert pictures(IMAGE, _arm(FEDERATED, IMAGE, sites=IMAGES), IMAGES, num=0) is None


def test_differences_are_those_of_the_task():
    found = _judge([_arm(FEDERATED)])
    mean = score(MEAN, everywhere(predict_mean([data.train for data in TABLES.values()]), TABLES), TABLES)
    model = reconstructor(model_of(TABLE, initial_weights(TABLE, "all", 0)))
    expected = compare(score(FEDERATED, everywhere(model, TABLES), TABLES), mean, seed=1, num_bootstrap=100)
    rows = [row for row in found.differences if row.arm_b == MEAN]
    assert [(row.metric, row.value, row.ci95) for row in rows] == [
        (row.metric, row.value, row.ci95) for row in expected
    ]


def test_pictures_are_drawn_with_the_front_of_the_head_at_the_top():
    from deploy.simulation.judge import _upright

    plane = np.zeros((3, 4), np.float32)  # [X, Y]: right, then anterior
    plane[2, 3] = 1.0  # right and anterior
    drawn = _upright([plane[None]])[0]
    assert drawn.shape == (4, 3)
    assert drawn[0, 2] == 1.0
