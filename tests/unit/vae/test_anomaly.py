"""Small sites whose every number can be worked out by hand, and the real table through the whole pipeline."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.support.sites import BRAIN, LESION, SIDE, healed, identity, image_site, table_site
from vae.data.cohort import Cohort, SiteData
from vae.tasks.anomaly import Difference, compare, evaluate, everywhere, predict_mean, score, summarise
from vae.tasks.image import brain_mask, score_image
from vae.tasks.score import LARGEST, AnomalySettings, reconstruct_all, residual_norm


@pytest.fixture(scope="module")
def images():
    return {"north": image_site("north", seed=1), "south": image_site("south", seed=2, level=0.8)}


@pytest.fixture(scope="module")
def tables():
    return {"east": table_site("east", seed=3), "west": table_site("west", seed=4, shift=4.0)}


def by_metric(results):
    return {result.metric: result for result in results}


# --- reconstruction and residual statistics ----------------------------------------------------------------


def test_residual_norm_worked_example():
    values = np.array([[1.0, 0.0], [3.0, 0.0]], np.float32)
    cohort = Cohort.from_records(name="r", patients=["a", "b"], values=values)
    norm = residual_norm(lambda x, _: np.zeros_like(x), cohort)
    # means 2 and 0; sums of squares 2 and 0, average variance 1; (2 + 4) / (1 + 4) and (0 + 4) / (1 + 4)
    assert np.allclose(norm.mean, [2.0, 0.0])
    assert np.allclose(norm.scale**2, [1.2, 0.8])
    assert np.allclose(norm.zmap(np.array([[2.0, np.sqrt(0.8)]])), [[0.0, 1.0]])


def test_residual_norm_of_one_record_and_of_a_perfect_model_is_finite():
    cohort = Cohort.from_records(name="r", patients=["a"], values=np.ones((1, 3), np.float32))
    assert np.isfinite(residual_norm(identity, cohort).zmap(np.zeros((1, 3), np.float32))).all()


def test_model_that_diverged_looks_bad_and_does_not_stop_the_report(tables):
    def diverged(values, covariates):
        out = values.copy()
        out[0], out[1] = np.nan, -np.inf
        return out

    out = reconstruct_all(diverged, tables["east"].test)
    assert np.isfinite(out).all()
    assert out[0, 0] == LARGEST
    assert out[1, 0] == -LARGEST
    found = by_metric(evaluate("diverged", everywhere(diverged, tables), tables, seed=0, num_bootstrap=20))
    assert found["mse"].value > 1e9
    assert all(np.isfinite(result.value) for result in found.values())


def test_wrong_shape_is_refused(tables):
    with pytest.raises(ValueError, match=r"must return \(40, 6\), got \(40, 5\)"):
        evaluate("bad", everywhere(lambda x, _: x[:, :5], tables), tables, seed=0)


def test_covariates_reach_the_model_with_their_own_rows():
    rng = np.random.default_rng(0)
    covariates = rng.random((150, 1)).astype(np.float32)
    cohort = Cohort.from_records(
        name="c",
        patients=[f"{p:03d}" for p in range(150)],
        values=np.repeat(covariates, 2, axis=1),
        covariates=covariates,
        covariate_names=("age",),
    )
    assert np.array_equal(reconstruct_all(lambda x, c: np.repeat(c, 2, axis=1), cohort), cohort.values)


def test_predict_mean_pools_records_not_sites():
    few = Cohort.from_records(name="a", patients=["1"], values=np.array([[4.0]], np.float32))
    many = Cohort.from_records(name="b", patients=["1", "2", "2"], values=np.zeros((3, 1), np.float32))
    reconstruct = predict_mean([few, many])
    assert reconstruct(np.full((5, 1), 9.0, np.float32), np.zeros((5, 0), np.float32)).tolist() == [[1.0]] * 5
    with pytest.raises(ValueError, match="at least one training cohort"):
        predict_mean([])


# --- tables ------------------------------------------------------------------------------------------------


def test_table_scores_worked_example():
    train = Cohort.from_records(name="t", patients=["a"], values=np.zeros((1, 2), np.float32))
    test = Cohort.from_records(
        name="t",
        patients=["a", "b"],
        values=np.array([[1.0, 1.0], [3.0, 4.0]], np.float32),
        labels={"anomaly": np.array([0.0, 1.0], np.float32)},
    )
    scores = score("zero", everywhere(predict_mean([train]), ["t"]), {"t": SiteData(train=train, test=test)})
    assert scores.values["mse"].tolist() == [1.0, 12.5]  # (9 + 16) / 2
    assert "zmap" not in scores.values  # no reference, no Z-map
    found = by_metric(summarise(scores, seed=0, num_bootstrap=50))
    assert found["mse"].value == 1.0  # the normal record alone
    assert found["auroc_residual"].value == 1.0
    assert found["auroc_residual"].num_patients == 2
    assert "auroc_residual_within_site" not in found  # one site


def test_zmap_of_a_table_is_the_mean_of_absolute_z(tables):
    data = tables["east"]
    scores = score("mean", everywhere(predict_mean([data.train]), ["east"]), {"east": data})
    mean = data.train.values.mean(axis=0)
    norm = residual_norm(predict_mean([data.train]), data.reference)
    expected = np.abs((data.test.values - mean - norm.mean) / norm.scale).mean(axis=1)
    assert np.allclose(scores.values["zmap"], expected, rtol=1e-5)


def test_sites_may_have_models_of_their_own(tables):
    local = {name: predict_mean([data.train]) for name, data in tables.items()}
    pooled = everywhere(predict_mean(data.train for data in tables.values()), tables)
    own = by_metric(evaluate("local (own site)", local, tables, seed=1, num_bootstrap=100))
    one = by_metric(evaluate("predict the mean", pooled, tables, seed=1, num_bootstrap=100))
    # Sites 4 apart: their common mean is 2 off each, which adds 2^2 to every squared error.
    assert one["mse"].value - own["mse"].value == pytest.approx(4.0, abs=0.5)
    assert own["mse"].num_patients == 60
    alone = evaluate("own", {"west": local["west"]}, {"west": tables["west"]}, seed=1, num_bootstrap=100)
    assert by_metric(alone)["mse"].num_patients == 30


def test_site_without_a_model_is_refused(tables):
    with pytest.raises(ValueError, match="arm local: no model for west"):
        score("local", {"east": identity}, tables)


def test_site_without_rejected_scans_still_counts_for_the_error(tables):
    quiet = tables["west"].test
    only_normal = dataclasses.replace(tables["west"], test=quiet.where(quiet.labels["anomaly"] == 0))
    sites = {"east": tables["east"], "west": only_normal}
    found = by_metric(evaluate("mean", everywhere(identity, sites), sites, seed=0, num_bootstrap=20))
    assert found["mse"].num_patients == 60
    assert found["auroc_zmap_within_site"].num_records == 70


# --- images ------------------------------------------------------------------------------------------------


def test_healthiness_of_truth_simulation_and_reconstruction(images):
    found = by_metric(evaluate("healed", everywhere(healed, images), images, seed=0, num_bootstrap=100))
    # A flat brain has healthiness 1, minus 40 % inside the lesion 0.6; the highest degree alone is shown.
    assert found["healthiness_truth"].value == pytest.approx(1.0, abs=0.01)
    assert found["healthiness_simulated"].value == pytest.approx(0.6, abs=0.01)
    assert found["healthiness_reconstruction"].value == pytest.approx(1.0, abs=0.01)
    assert found["healthiness_truth"].num_records == 16
    copied = by_metric(evaluate("copy", everywhere(identity, images), images, seed=0, num_bootstrap=100))
    assert copied["healthiness_reconstruction"].value == pytest.approx(0.6, abs=0.01)


def test_mean_image_looks_healthy_and_reconstructs_badly(images):
    """Why healthiness is never shown alone."""
    mean = everywhere(predict_mean(data.train for data in images.values()), images)
    lazy = by_metric(evaluate("predict the mean", mean, images, seed=0, num_bootstrap=100))
    good = by_metric(evaluate("healed", everywhere(healed, images), images, seed=0, num_bootstrap=100))
    assert lazy["healthiness_reconstruction"].value == pytest.approx(1.0, abs=0.01)
    assert lazy["mse"].value > 5 * good["mse"].value
    assert lazy["auroc_residual_10"].value < good["auroc_residual_10"].value


def test_image_rows_are_complete_and_in_order(images):
    found = evaluate("healed", everywhere(healed, images), images, seed=0, num_bootstrap=50)
    names = [result.metric for result in found]
    assert names == [
        *("mse", "mse_brain", "ssim", "ssim_brain"),
        *("healthiness_truth", "healthiness_simulated", "healthiness_reconstruction"),
        *("auroc_residual", "auroc_residual_within_site", "auroc_residual_10", "auroc_residual_40"),
        *("auroc_zmap", "auroc_zmap_within_site", "auroc_zmap_10", "auroc_zmap_40"),
        *("dice_10", "dice_40"),
    ]
    assert {result.task for result in found} == {"reconstruction", "pseudo-healthy", "anomaly"}
    for result in found:
        assert result.ci95 is not None
        assert result.ci95[0] <= result.value <= result.ci95[1]


def test_error_inside_the_brain_is_larger_than_over_the_whole_image(images):
    found = by_metric(evaluate("healed", everywhere(healed, images), images, seed=0, num_bootstrap=20))
    # Outside the brain there is nothing to err on: 12 x 12 of 16 x 16 voxels carry all of it.
    assert found["mse_brain"].value == pytest.approx(found["mse"].value * 256 / 144)
    assert found["mse"].num_records == 16  # healthy records alone


def test_direction_of_the_anomaly_matters(images):
    def auroc(direction):
        settings = AnomalySettings(direction=direction)
        rows = evaluate("h", everywhere(healed, images), images, seed=0, num_bootstrap=10, settings=settings)
        return by_metric(rows)["auroc_zmap_40"].value

    assert auroc("auto") == auroc("low") == 1.0  # 40 % off is seen
    assert auroc("high") < 0.9  # looking for the bright finds noise alone
    assert auroc("both") > 0.95


def test_dice_finds_the_lesion_of_a_good_model(images):
    good = by_metric(evaluate("healed", everywhere(healed, images), images, seed=0, num_bootstrap=10))
    blind = by_metric(evaluate("copy", everywhere(identity, images), images, seed=0, num_bootstrap=10))
    assert good["dice_40"].value > 0.9
    assert good["dice_10"].value < good["dice_40"].value
    assert blind["dice_40"].value < 0.1


def test_healthy_scan_of_the_same_visit_is_the_truth():
    """A patient of two visits, dark and bright: each simulated scan is compared with its own visit's."""
    flat = BRAIN.astype(np.float32)
    tilted = flat + LESION  # healthiness 2
    values = np.stack([flat, tilted, flat * (1 - 0.5 * LESION), tilted * (1 - 0.5 * LESION)])[:, None]
    test = Cohort.from_records(
        name="v",
        patients=["p"] * 4,
        values=values.astype(np.float32),
        covariates=np.array([[60.0], [70.0], [60.0], [70.0]], np.float32),
        covariate_names=("age",),
        labels={"anomaly": np.array([0, 0, 1, 1], np.float32), "lesion": np.stack([LESION] * 4)},
    )
    found = score_image(SiteData(train=test, test=test), test.values, None, AnomalySettings())
    assert found["healthiness_truth"][2:].tolist() == [1.0, 2.0]
    assert found["healthiness_simulated"][2:].tolist() == [0.5, 1.0]
    assert np.isnan(found["healthiness_truth"][:2]).all()


def test_brain_mask_from_labels_or_from_the_average_scan(images):
    data = images["north"]
    assert np.array_equal(brain_mask(data), BRAIN)
    given = np.broadcast_to(LESION, (data.test.num_records, SIDE, SIDE))
    marked = dataclasses.replace(data.test, labels=data.test.labels | {"brain": given})
    assert np.array_equal(brain_mask(dataclasses.replace(data, test=marked)), LESION)


@pytest.mark.parametrize(
    "values", [{"top_share": 0.0}, {"top_share": 1.5}, {"voxel_fpr": 0.0}, {"voxel_fpr": 1.0}]
)
def test_bad_settings_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        AnomalySettings(**values)


# --- comparisons -------------------------------------------------------------------------------------------


def test_compare_is_paired_and_antisymmetric(tables):
    local = score("local", {name: predict_mean([data.train]) for name, data in tables.items()}, tables)
    pooled = score("mean", everywhere(predict_mean(d.train for d in tables.values()), tables), tables)
    forth = {d.metric: d for d in compare(local, pooled, seed=1, num_bootstrap=300)}
    back = {d.metric: d for d in compare(pooled, local, seed=1, num_bootstrap=300)}
    rows = {arm.arm: by_metric(summarise(arm, seed=1, num_bootstrap=300)) for arm in (local, pooled)}
    for name, difference in forth.items():
        assert difference.value == pytest.approx(rows["local"][name].value - rows["mean"][name].value)
        assert difference.value == -back[name].value
        assert difference.ci95 == pytest.approx((-back[name].ci95[1], -back[name].ci95[0]))
    assert forth["mse"].is_clear
    assert forth["mse"].value < 0
    assert (forth["mse"].arm, forth["mse"].baseline) == ("local", "mean")


def test_arm_compared_with_itself_differs_by_nothing(tables):
    scores = score("a", everywhere(identity, tables), tables)
    for difference in compare(scores, scores, seed=0, num_bootstrap=50):
        assert difference.value == 0.0
        assert difference.ci95 == (0.0, 0.0)
        assert not difference.is_clear


def test_pairing_sees_what_two_intervals_hide(tables):
    """An arm a little worse on every patient: intervals overlap, the paired difference leaves zero out."""
    base = everywhere(predict_mean(data.train for data in tables.values()), tables)
    first = score("a", base, tables)
    worse = dataclasses.replace(first, arm="b", values=first.values | {"mse": first.values["mse"] * 1.02})
    one, other = (by_metric(summarise(arm, seed=0))["mse"] for arm in (first, worse))
    assert one.ci95[1] > other.ci95[0]
    assert {d.metric: d for d in compare(worse, first, seed=0)}["mse"].is_clear


def test_compare_refuses_other_patients(tables):
    both = score("a", everywhere(identity, tables), tables)
    east = score("b", everywhere(identity, ["east"]), {"east": tables["east"]})
    with pytest.raises(ValueError, match="a and b were scored on different test records"):
        compare(both, east, seed=0)


def test_undefined_interval_is_not_clear():
    row = Difference(arm="a", baseline="b", task="anomaly", metric="m", value=1.0, ci95=None)
    assert not row.is_clear


def test_volumes_are_scored_like_images():
    sites = {"deep": image_site("deep", seed=6, shape=(SIDE, SIDE, 12))}
    mean = everywhere(predict_mean([sites["deep"].train]), sites)
    found = by_metric(evaluate("mean", mean, sites, seed=0, num_bootstrap=20))
    assert found["auroc_zmap_40"].value > 0.9
    assert 0.0 < found["ssim"].value < 1.0
