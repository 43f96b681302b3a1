"""Every shipped configuration loads, is explained, and goes with the models and data it names."""

import functools
from pathlib import Path

import pytest

from deploy.config import load_experiment
from deploy.documents import load_yaml
from deploy.studies.definition import load_study
from vae.models import build

FOLDER = Path(__file__).resolve().parents[2] / "deploy/configs/simulate"
FILES = sorted(FOLDER.glob("*.yaml"))


def test_the_promised_files_are_there():
    assert {file.stem for file in FILES} == {"default", "abide", "phantom3d", "smoke", "capped"}


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request):
    return request.param


def test_it_loads_under_its_own_name(file):
    assert load_experiment(file).name == file.stem


def test_it_compares_all_arms_with_one_way_to_set_the_noise(file):
    experiment = load_experiment(file)
    assert set(experiment.arms) == {"mean", "local", "federated", "federated-dp", "centralised"}
    assert experiment.privacy is not None
    assert (experiment.privacy.epsilon is None) != (experiment.privacy.noise_multiplier is None)
    assert experiment.privacy.unit == "patient"


def test_its_delta_is_below_one_over_the_patients_of_a_site(file):
    experiment = load_experiment(file)
    patients = 184 if experiment.data.kind == "abide" else experiment.data.patients_per_site
    assert experiment.privacy.delta < 1 / patients


def test_its_divisor_is_near_the_expected_sample(file):
    experiment = load_experiment(file)
    patients = 40 if experiment.data.kind == "abide" else experiment.data.patients_per_site
    assert experiment.privacy.divisor == pytest.approx(
        experiment.privacy.sampling_probability * patients, rel=0.05
    )


def test_it_points_editors_to_the_schema(file):
    first = file.read_text(encoding="utf-8").splitlines()[0]
    schema = first.removeprefix("# yaml-language-server: $schema=")
    assert (file.parent / schema).resolve() == FOLDER.parent / "schema.json"


def test_it_names_no_key_at_random(file):
    """The resolved file has more keys, never fewer: each key of the file is one of them, with its value."""
    given, resolved = load_yaml(file), load_experiment(file).model_dump(mode="json")
    for section, value in given.items():
        for key, item in value.items() if isinstance(value, dict) else ():
            assert resolved[section][key] == item
        if not isinstance(value, dict):
            assert resolved[section] == value


def test_its_model_can_be_built(file):
    experiment = load_experiment(file)
    data = experiment.data
    if data.kind == "phantom":
        shape = (len(data.channels), *data.to_spec().image_shape)
    else:
        shape = (data.features,) if data.kind == "toy" else (62,)
    model = build(experiment.model_spec(shape), seed=0)
    assert model.dp_support.supported, model.dp_support.reason


STUDIES = sorted(path for path in (FOLDER.parent / "studies").glob("*.yaml") if "-base" not in path.stem)


_load = functools.cache(load_study)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_experiment_of_a_study_is_valid_and_its_aims_are_written_down(path):
    plan = _load(path)
    assert plan.study.name == path.stem
    assert len(plan.study.seeds) >= 3
    assert plan.study.gap.aims
    assert len(plan.runs) > 9


def test_no_founder_scanner_or_seed_is_on_both_sides_of_the_study_of_usefulness():
    """The rule that refuses it is tested elsewhere; here that the shipped study does not rest on its loophole."""
    for made in _load(FOLDER.parent / "studies" / "utility.yaml").runs.values():
        if made.public is None:
            continue
        ours = {*made.data.founder_subset, *(made.data.held_out_founders or ())}
        theirs = {*made.public.data.founder_subset, *made.public.data.held_out_founders}
        assert not ours & theirs
        assert made.public.data.scanner_offset >= made.data.sites
        assert made.public.data.seed != made.data.seed
