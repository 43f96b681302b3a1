"""Tuning on real, tiny public data: what is opened, what is spent, what is chosen, and that it is the same again."""

import json
import math
from dataclasses import replace

import pytest

from client.site import Models
from deploy.config import load_experiment
from deploy.errors import ConfigError
from deploy.plans import federation_plan
from deploy.simulation import sites as simulated
from deploy.simulation import tuning
from deploy.simulation.public import public_sites, start_on
from deploy.simulation.run import train
from deploy.simulation.tuning import Effort, TrialFailedError, federate_here, tune
from deploy.tune.candidates import Candidate, without_privacy
from deploy.tune.search import Limits, good_default
from privacy.accounting import Release, epsilons
from privacy.noise import SeededRandomness
from tests.support.experiments import experiment, setting
from vae.data.cohort import concatenate
from vae.errors import DataError
from vae.weights import hash_weights

pytestmark = pytest.mark.filterwarnings(
    "ignore::privacy.unsafe.UnsafeWarning"
)  # the yardstick without privacy

PUBLIC = {
    "data": {"kind": "toy", "sites": 4, "patients_per_site": 60, "features": 5, "seed": 9},
    "steps": 60,
    "learning_rate": 0.02,
}
PRIVACY = {
    "noise_multiplier": None,
    "epsilon": 2.0,
    "local_steps": 8,
    "divisor": 8.0,
    "max_records_per_patient": 3,
}
"""q and steps are those of the default for 20 patients: calibration, of which there is one then, takes the time."""
MADE = experiment(public=PUBLIC, privacy=PRIVACY)
EFFORT = Effort(trials=3, seeds=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def done(cache):
    """A finished search, and what it said."""
    said = []
    return tune(MADE, EFFORT, cache=cache, note=said.append), said


def test_no_site_of_the_experiment_is_opened(done, cache, monkeypatch):
    opened = []

    def watched(made, site, folder, original=simulated.open_site):
        opened.append(made.data)
        if made.data == MADE.data:
            raise AssertionError("a site's data were opened")
        return original(made, site, folder)

    monkeypatch.setattr(simulated, "open_site", watched)
    tune(MADE, Effort(trials=1, seeds=1), cache=cache)
    assert opened
    assert set(map(repr, opened)) == {repr(MADE.public.data)}
    with pytest.raises(
        AssertionError, match="were opened"
    ):  # the same watch catches a run that does open them
        train(setting(MADE, cache / "out"))


def test_every_trial_spends_the_target_and_not_more(done):
    tuned, _ = done
    assert len(tuned.trials) == 3
    for trial in tuned.trials:
        one = trial.candidate
        release = Release(
            sampling_probability=one.sampling_probability,
            noise_multiplier=trial.noise_multiplier,
            steps=one.local_steps * MADE.federation.rounds,
        )
        assert trial.epsilon == epsilons([release], MADE.privacy.delta).pld
        assert 0.99 * 2.0 < trial.epsilon <= 2.0
        less = replace(release, noise_multiplier=0.98 * trial.noise_multiplier)
        assert epsilons([less], MADE.privacy.delta).pld > 2.0


def test_with_bands_the_noise_is_that_of_the_steps_that_are_charged(cache):
    asked = experiment(public=PUBLIC, privacy={**PRIVACY, "mechanism": "banded", "bands": 4, "divisor": 2.0})
    (trial,) = tune(asked, Effort(trials=1, seeds=1), cache=cache).trials
    release = Release(
        sampling_probability=asked.privacy.sampling_probability,
        noise_multiplier=trial.noise_multiplier,
        steps=2 * asked.federation.rounds,  # 8 steps in 4 bands: a patient is in two of a round
    )
    assert trial.epsilon == epsilons([release], asked.privacy.delta).pld
    assert 0.99 * 2.0 < trial.epsilon <= 2.0


def test_the_same_file_gives_the_same_choice(done, tmp_path):
    again = tune(MADE, EFFORT, cache=tmp_path)
    assert json.dumps(again.to_dict()) == json.dumps(done[0].to_dict())


def test_another_seed_gives_another_split_and_other_noise(done, cache):
    other = tune(MADE.model_copy(update={"seed": 4}), Effort(trials=1, seeds=1), cache=cache)
    assert other.start != done[0].start


def test_of_an_absurd_and_a_sensible_rate_the_sensible_one_is_chosen(cache):
    asked = experiment(public=PUBLIC, privacy={**PRIVACY, "learning_rate": 1e-9})
    tuned = tune(asked, Effort(trials=2, seeds=2), cache=cache)
    sensible = good_default(Limits(rounds=2, warmup_steps=0, patients=20.0))
    absurd = Candidate.of(asked.privacy)
    assert {trial.candidate for trial in tuned.trials} == {sensible, absurd}
    assert tuned.winner.candidate == sensible
    worse = tuned.trials[1]
    assert worse.score == pytest.approx(tuned.start, rel=1e-4)  # it goes nowhere: the public start
    assert tuned.winner.score < worse.score


def test_the_yardstick_of_a_choice_by_sgd_does_not_diverge(cache):
    """SGD's rate fits gradients of the clip's length: without a clip of 0.01 the same rate is far too long."""
    by_sgd = {**PRIVACY, "optimiser": "sgd", "learning_rate": 50.0, "max_grad_norm": 0.01}
    tuned = tune(experiment(public=PUBLIC, privacy=by_sgd), Effort(trials=1, seeds=1), cache=cache)
    assert tuned.winner.candidate.optimiser == "sgd"
    assert math.isfinite(tuned.noiseless)
    assert math.isinf(_by_sgd_without_a_clip(tuned, cache)), "or this test could not fail"


def _by_sgd_without_a_clip(tuned, cache):
    """Return the error of the choice's own rate on gradients that are not clipped."""
    bench = tuning._Bench.set_up(
        tuned.experiment, tuned.patients, EFFORT, cache=cache, workers=1, note=lambda _: None
    )
    return bench.plain(without_privacy(tuned.experiment, tuned.winner.candidate, tuned.patients))


def test_finalists_have_all_seeds_and_every_trial_is_told(done):
    tuned, said = done
    assert [len(trial.seeds) for trial in tuned.trials] == [2, 2, 2]
    assert sorted(tuned.trials, key=lambda trial: trial.score) == list(tuned.trials)
    assert sum(line.startswith("trial ") for line in said) == 3 + 3
    assert said[0] == "public start: 120 patients, 60 steps"
    assert "trial 6/6: " in said[-1]
    assert "left" in said[3]


def test_the_chosen_experiment_asks_for_what_was_measured(done, tmp_path):
    tuned, _ = done
    path = tmp_path / "tuned.yaml"
    path.write_text(tuned.chosen.resolved_yaml())
    loaded = load_experiment(path)
    assert loaded == tuned.chosen
    assert Candidate.of(loaded.privacy) == tuned.winner.candidate
    assert loaded.federation.weight_average == tuned.winner.weight_average
    assert loaded.privacy.divisor == pytest.approx(
        20 * loaded.privacy.sampling_probability
    )  # 8 / 0.4 patients
    plan = federation_plan(loaded, loaded.model_spec((5,)), private=True, randomness="seeded")
    assert {each.noise_multiplier for each in plan.plans.values()} == {tuned.winner.noise_multiplier}


def test_an_in_process_federation_is_the_run_of_the_simulator(tmp_path):
    """With the streams of the simulator's sites it is their run, bit for bit."""
    made = experiment(federation={"weight_average": 0.5})
    trained = train(setting(made, tmp_path))
    plan = federation_plan(made, trained.spec, private=True, randomness="seeded")
    cohorts = {site: data.train for site, data in trained.sites.items()}

    def as_the_simulator(site, round_):
        return SeededRandomness(made.seed, plan.run_id, site, round_)

    ended = federate_here(plan, cohorts, Models("cpu"), as_the_simulator)
    state = trained.federated["federated-dp"].state
    assert hash_weights(ended[None]) == hash_weights(state.weights)
    assert hash_weights(ended[0.5]) == hash_weights(state.average)
    assert len({hash_weights(weights) for weights in (*ended.values(), plan.start())}) == 5


def test_an_update_that_no_server_would_admit_ends_the_trial(cache):
    spec = MADE.model_spec((5,))
    cohort = concatenate(public_sites(MADE, cache, workers=1).values(), name="public")
    made = experiment(privacy={"learning_rate": 1e6, "optimiser": "sgd"})
    plan = federation_plan(made, spec, private=True, randomness="seeded")
    cohorts = dict.fromkeys(plan.site_weights, cohort)
    with pytest.raises(TrialFailedError):
        federate_here(plan, cohorts, Models("cpu"), lambda site, round_: SeededRandomness(1, site, round_))
    hopeless = experiment(public=PUBLIC, privacy={**PRIVACY, "learning_rate": 1e6, "optimiser": "sgd"})
    tuned = tune(hopeless, Effort(trials=1, seeds=1), cache=cache)
    assert tuned.winner.score == math.inf
    assert tuned.to_dict()["trials"][0]["score"] is None
    assert any("do not train on the sites at all" in note for note in tuned.notes())


def test_the_start_is_made_once(done, cache, monkeypatch):
    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("deploy.simulation.public._train", never)
    assert tune(MADE, Effort(trials=1, seeds=1), cache=cache).start == done[0].start
    with pytest.raises(AssertionError, match="trained again"):
        start_on(
            next(iter(public_sites(MADE, cache, workers=1).values())),
            MADE,
            MADE.model_spec((5,)),
            cache,
            part="x",
        )


def test_too_few_public_patients_are_refused(cache):
    few = {**PUBLIC, "data": {**PUBLIC["data"], "sites": 1, "patients_per_site": 10}}
    with pytest.raises(DataError, match=r"public\.data: 10 patients"):
        tune(experiment(public=few, privacy=PRIVACY), EFFORT, cache=cache)


def test_nothing_is_opened_where_a_section_is_missing(cache, monkeypatch):
    monkeypatch.setattr(tuning, "public_sites", None)
    with pytest.raises(ConfigError, match="public: is required by --tune"):
        tune(experiment(), EFFORT, cache=cache)
