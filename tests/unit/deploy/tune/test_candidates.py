"""A candidate in an experiment: what it fills in, what it leaves, and what is missing where tuning cannot be."""

import pytest

from deploy.config import Experiment, load_experiment
from deploy.errors import ConfigError
from deploy.tune.candidates import (
    Candidate,
    Patients,
    filled,
    patients_of,
    require_tunable,
    settings,
    without_privacy,
)
from tests.support.experiments import experiment

PUBLIC = {"data": {"kind": "toy", "sites": 2, "patients_per_site": 20, "features": 5, "seed": 9}}
PRIVACY = {"noise_multiplier": None, "epsilon": 8.0}
MADE = experiment(public=PUBLIC, privacy=PRIVACY)
CHOICE = Candidate(
    sampling_probability=0.2,
    local_steps=4,
    max_grad_norm=0.3,
    learning_rate=0.02,
    optimiser="adam-corrected",
    trainable="decoder",
)


def alike(count):
    return Patients(per_site=dict.fromkeys(MADE.site_names, float(count)), origin="by --patients")


def test_what_is_missing_is_named_all_at_once():
    with pytest.raises(ConfigError) as error:
        require_tunable(experiment())
    assert [problem.path for problem in error.value.problems] == ["public", "privacy.epsilon"]
    with pytest.raises(ConfigError, match=r"privacy\.epsilon: is required by --tune"):
        require_tunable(experiment(public=PUBLIC, privacy=None, arms=["mean"]))
    records = {**PRIVACY, "unit": "record", "max_records_per_patient": 1}
    with pytest.raises(ConfigError, match=r"privacy\.unit = record: must be `patient`"):
        require_tunable(experiment(public=PUBLIC, privacy=records))
    in_a_subspace = {**PRIVACY, "subspace": 4, "grad_engine": "vmap"}
    with pytest.raises(
        ConfigError, match=r"privacy\.subspace = 4: must be 0 for --tune.*; tune without, then set it"
    ):
        require_tunable(experiment(public=PUBLIC, privacy=in_a_subspace))
    assert require_tunable(MADE) == MADE.privacy


def test_with_bands_a_step_takes_from_one_part_of_the_patients(tmp_path):
    banded = experiment(public=PUBLIC, privacy={**PRIVACY, "mechanism": "banded", "bands": 2})
    implied = patients_of(banded, None)
    assert implied.per_site["site-1"] == pytest.approx(2 * 5 / 0.4)
    assert implied.origin.endswith("x privacy.bands")
    made = filled(banded, Candidate.of(banded.privacy), implied)
    assert made.privacy.divisor == pytest.approx(5.0)
    plain = without_privacy(banded, Candidate.of(banded.privacy), implied)
    assert plain.training.batch_patients == 5


def test_patients_are_as_given_or_as_the_divisor_says():
    assert patients_of(MADE, 30) == Patients(
        per_site={"site-1": 30.0, "site-2": 30.0, "site-3": 30.0}, origin="by --patients"
    )
    implied = patients_of(
        experiment(public=PUBLIC, privacy={**PRIVACY, "site_divisors": {"site-2": 8.0}}), None
    )
    # 5 / 0.4 and 8 / 0.4
    assert dict(implied.per_site) == pytest.approx({"site-1": 12.5, "site-2": 20.0, "site-3": 12.5})
    assert implied.fewest == 12.5
    assert "divisor" in implied.origin


def test_fewer_than_two_patients_are_refused():
    with pytest.raises(ConfigError, match=r"= 1\.25: must be 2 or more"):
        patients_of(experiment(public=PUBLIC, privacy={**PRIVACY, "divisor": 0.5}), None)


def test_a_candidate_fills_in_its_fields_and_the_divisor_and_nothing_else():
    made = filled(MADE, CHOICE, alike(30), weight_average=0.8)
    assert Candidate.of(made.privacy) == CHOICE
    assert made.privacy.divisor == pytest.approx(6.0)  # 0.2 x 30
    assert made.federation.weight_average == 0.8
    assert set(settings(MADE, made)) == {
        "privacy.sampling_probability", "privacy.local_steps", "privacy.max_grad_norm", "privacy.learning_rate",
        "privacy.optimiser", "privacy.trainable", "privacy.divisor", "federation.weight_average",
    }  # fmt: skip
    back = filled(made, Candidate.of(MADE.privacy), alike(12.5))
    assert back == MADE


def test_sites_of_different_sizes_keep_divisors_of_their_own():
    sizes = Patients(per_site={"site-1": 30.0, "site-2": 60.0, "site-3": 30.0}, origin="")
    made = filled(MADE, CHOICE, sizes)
    assert made.privacy.divisor is None
    assert made.privacy.site_divisors == pytest.approx({"site-1": 6.0, "site-2": 12.0, "site-3": 6.0})


def test_the_yardstick_without_privacy_has_the_steps_and_rate_of_the_candidate():
    scheduled = experiment(public=PUBLIC, privacy={**PRIVACY, "schedule": "cosine", "warmup_steps": 2})
    made = without_privacy(scheduled, CHOICE, alike(30))
    training = made.training
    assert (training.optimiser, training.learning_rate, training.trainable) == ("adam", 0.02, "decoder")
    assert (training.local_steps, training.batch_patients) == (4, 6)
    assert (training.schedule, training.warmup_steps) == ("cosine", 2)
    assert made.model_copy(update={"training": scheduled.training}) == scheduled


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adam-corrected"])
def test_options_of_another_optimiser_are_set_back(optimiser, tmp_path):
    privacy = {**PRIVACY, "optimiser": "sgd", "momentum": 0.5}
    if optimiser == "sgd":
        privacy = {**PRIVACY, "optimiser": "adam-corrected", "moment_floor": 0.5}
    asked = experiment(public=PUBLIC, privacy=privacy)
    chosen = Candidate(**{**CHOICE.to_dict(), "optimiser": optimiser})
    made = filled(asked, chosen, alike(30))
    path = tmp_path / "tuned.yaml"
    path.write_text(made.resolved_yaml())
    assert load_experiment(path) == made
    assert isinstance(made, Experiment)
