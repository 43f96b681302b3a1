"""The public start: what it is trained on, that it is made once, and where a run begins with it."""

import dataclasses

import numpy as np
import pytest
import torch

from deploy.config import Experiment
from deploy.plans import federation_plan
from deploy.simulation import public
from deploy.simulation.public import public_cohort, warm_start
from deploy.simulation.sites import prepare
from server.federation import initial_weights
from server.report import document
from tests.support.experiments import experiment, run, setting
from tests.support.shared import shared_data
from vae.data.cohort import Cohort
from vae.errors import DataError, WeightsError
from vae.models import build
from vae.models.initialisation import centre_output
from vae.spec import ModelSpec
from vae.weights import hash_weights, load_into

pytestmark = pytest.mark.filterwarnings("ignore::privacy.unsafe.UnsafeWarning")  # arms that compare

OTHERS = {"kind": "toy", "sites": 2, "patients_per_site": 20, "features": 5, "seed": 9}
MADE = experiment(public={"data": OTHERS, "steps": 60, "learning_rate": 0.02}, privacy=None, arms=["mean"])
SPEC = MADE.model_spec((5,))


def _error(weights, cohort):
    """Return the mean squared error of decoded posterior means."""
    model = build(SPEC, seed=0)
    load_into(model, weights)
    values = torch.from_numpy(np.array(cohort.values))
    none = torch.zeros(len(values), 0)
    with torch.no_grad():
        return float(((model.decode(model.encode(values, none).mean, none) - values) ** 2).mean())


def test_all_public_sites_are_pooled_and_no_private_patient_is_among_them(tmp_path):
    cohort = public_cohort(MADE, tmp_path, workers=1)
    assert cohort.num_patients == 40
    private = prepare(MADE, tmp_path, workers=1)
    theirs = {row.tobytes() for data in private.values() for row in np.asarray(data.train.values)}
    assert not theirs & {row.tobytes() for row in np.asarray(cohort.values)}


def test_the_start_has_learnt_from_the_public_cohort(tmp_path):
    cohort = public_cohort(MADE, tmp_path, workers=1)
    trained = _error(warm_start(MADE, SPEC, tmp_path), cohort)
    assert trained < 0.8 * _error(initial_weights(SPEC, "all", MADE.seed), cohort)


def test_without_steps_only_the_bias_is_that_of_the_public_mean(tmp_path):
    made = MADE.model_copy(update={"public": MADE.public.model_copy(update={"steps": 0})})
    weights, plain = warm_start(made, SPEC, tmp_path), initial_weights(SPEC, "all", made.seed)
    changed = {name for name in plain if not np.array_equal(plain[name], weights[name])}
    assert changed == {"decoder.layers.1.bias"}
    mean = np.asarray(public_cohort(made, tmp_path, workers=1).values).mean(axis=0)
    np.testing.assert_allclose(weights["decoder.layers.1.bias"], mean, rtol=1e-5)


def test_the_start_is_made_once_and_again_where_anything_differs(tmp_path, monkeypatch):
    trained = []
    real = public.train_unsafe
    monkeypatch.setattr(public, "train_unsafe", lambda *a, **k: trained.append(1) or real(*a, **k))
    first = warm_start(MADE, SPEC, tmp_path)
    other_noise = experiment(public=MADE.public.model_dump(mode="json"), privacy={"noise_multiplier": 2.0})
    assert hash_weights(warm_start(other_noise, SPEC, tmp_path)) == hash_weights(first)
    assert len(trained) == 1
    for update in ({"seed": 4}, {"public": MADE.public.model_copy(update={"steps": 61})}):
        assert hash_weights(warm_start(MADE.model_copy(update=update), SPEC, tmp_path)) != hash_weights(first)
    assert len(trained) == 3


def test_a_start_of_other_data_under_the_same_name_is_not_taken(tmp_path, monkeypatch):
    first = warm_start(MADE, SPEC, tmp_path)
    monkeypatch.setattr(Cohort, "fingerprint", lambda _: "0" * 64)
    (path,) = (tmp_path / "public").glob("*.safetensors")
    before = path.stat().st_mtime_ns
    assert hash_weights(warm_start(MADE, SPEC, tmp_path)) == hash_weights(
        first
    )  # made anew, of the same data
    assert path.stat().st_mtime_ns > before


def test_public_records_of_another_shape_are_refused(tmp_path):
    made = experiment(public={"data": {**OTHERS, "features": 6}}, privacy=None, arms=["mean"])
    with pytest.raises(
        DataError, match=r"public.data: its records have shape \[6\], those of the sites \[5\]"
    ):
        warm_start(made, SPEC, tmp_path)


def test_public_covariates_fit_those_of_a_model_that_uses_them(tmp_path):
    spec = ModelSpec(family="cvae", input_shape=(5,), latent_size=2, channels=(6,), num_covariates=2)
    with pytest.raises(DataError, match="has 0 covariates, the sites 2"):
        warm_start(MADE, spec, tmp_path)


def test_a_founder_copied_under_another_name_is_found(tmp_path):
    labelmaps = shared_data("labelmaps")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder, name in ((ours, "anna"), (theirs, "bert")):
        folder.mkdir()
        (folder / f"{name}.nii.gz").symlink_to(labelmaps / "founder_01.nii.gz")
    phantom = {"kind": "phantom", "sites": 1, "patients_per_site": 2, "slab": 1, "size": 32, "voxel_mm": 6.0}
    made = Experiment.model_validate(
        {
            "data": {**phantom, "founders": str(ours), "seed": 1},
            "public": {"data": {**phantom, "founders": str(theirs), "seed": 2, "scanner_offset": 3}},
        }
    )
    with pytest.raises(DataError, match="founder bert is the same brain as the sites' founder anna"):
        public_cohort(made, tmp_path, workers=1)


def test_every_arm_starts_from_the_public_weights(tmp_path):
    made = experiment(
        public=MADE.public.model_dump(mode="json"),
        federation={"rounds": 1},
        training={"learning_rate": 1e-12},
        privacy={"learning_rate": 1e-12},
        arms=["warm-start", "local", "federated", "federated-dp", "centralised"],
    )
    trained = run(made, tmp_path)
    start = warm_start(made, trained.spec, setting(made, tmp_path).cache)
    assert trained.arms[0].name == document.WARM_START
    assert hash_weights(trained.arms[0].weights["site-1"]) == hash_weights(start)
    for arm in trained.arms:
        for weights in arm.weights.values():
            for name, value in weights.items():
                np.testing.assert_allclose(value, start[name], atol=1e-8, err_msg=f"{arm.name} {name}")


def test_a_plan_refuses_a_start_of_another_model():
    plan = federation_plan(MADE, SPEC, private=False, randomness="seeded")
    wrong = initial_weights(ModelSpec(family="vae", input_shape=(5,), latent_size=3, channels=(6,)), "all", 0)
    with pytest.raises(WeightsError):
        dataclasses.replace(plan, initial=wrong).start()


@pytest.mark.parametrize("output", ["linear", "sigmoid"])
def test_the_centred_decoder_gives_the_mean_of_each_channel(output):
    spec = ModelSpec(family="vae", input_shape=(2, 8, 8), latent_size=2, channels=(4,), output=output)
    model = build(spec, seed=0)
    centre_output(model, torch.tensor([0.2, 0.7]))
    for name, parameter in model.decoder.named_parameters():
        if name.endswith("weight") and "levels.0" in name:
            parameter.data.zero_()  # what is left is the bias
    with torch.no_grad():
        decoded = model.decode(torch.zeros(1, 2), torch.zeros(1, 0))
    np.testing.assert_allclose(decoded.mean(dim=(0, 2, 3)), [0.2, 0.7], atol=1e-5)
    with pytest.raises(ValueError, match=r"mean must be \[2\], got \[3\]"):
        centre_output(model, torch.zeros(3))
