"""What is said of a finished search: its order, its share of the gain, its words, and its warnings."""

import json
import math
from dataclasses import replace

import pytest

from deploy.config import load_experiment
from deploy.documents import parse
from deploy.tune.candidates import Candidate, Patients
from deploy.tune.choice import Trial, Tuning, ranked
from deploy.tune.standins import deal
from deploy.tune.table import render
from tests.support.commands import write_config
from tests.support.experiments import experiment

PUBLIC = {"data": {"kind": "toy", "sites": 2, "patients_per_site": 20, "features": 5, "seed": 9}}
PRIVACY = {"noise_multiplier": None, "epsilon": 8.0}
MADE = experiment(public=PUBLIC, privacy=PRIVACY)
CANDIDATE = Candidate(
    sampling_probability=0.2,
    local_steps=4,
    max_grad_norm=0.3,
    learning_rate=0.02,
    optimiser="adam",
    trainable="decoder",
)


def trial(**scores):
    """Return a trial; `none` and `half` are the errors without an average and with 0.5."""
    return Trial(
        candidate=CANDIDATE,
        noise_multiplier=1.25,
        epsilon=7.99,
        scores={None: scores["none"], 0.5: scores.get("half", (math.inf,) * len(scores["none"]))},
    )


def tuning(*trials, sizes=(30.0, 60.0, 30.0), counts=None, start=0.5, plain=0.3, noiseless=0.7):
    patients = Patients(per_site=dict(zip(MADE.site_names, sizes, strict=True)), origin="by --patients")
    return Tuning(
        experiment=MADE,
        patients=patients,
        deal=deal(counts or {"a": 900, "b": 900}, patients.per_site, seed=1),
        trials=ranked(trials),
        start=start,
        plain=plain,
        noiseless=noiseless,
    )


def test_the_average_with_the_least_mean_error_is_taken():
    one = trial(none=(0.4, 0.2), half=(0.35, 0.35))
    assert (one.weight_average, one.seeds, one.score) == (None, (0.4, 0.2), pytest.approx(0.3))
    assert trial(none=(0.4, 0.4), half=(0.35, 0.35)).weight_average == 0.5


def test_a_trial_of_one_seed_is_never_the_choice_over_finalists():
    lucky, good, worse = trial(none=(0.1,)), trial(none=(0.3, 0.4)), trial(none=(0.5, 0.4))
    assert ranked([worse, lucky, good]) == (good, worse, lucky)


def test_the_share_of_the_gain_that_noise_leaves():
    # of a gain of 0.2 there is 0.05 left
    assert tuning(trial(none=(0.45,))).kept_gain == pytest.approx(0.25)
    assert "noise leaves 25 % of the gain" in render(tuning(trial(none=(0.45,))))
    assert tuning(trial(none=(0.45,)), noiseless=0.1).kept_gain == pytest.approx(0.125)
    assert tuning(trial(none=(0.45,)), plain=0.6).kept_gain is None
    assert tuning(trial(none=(math.inf,))).kept_gain is None


def test_the_words_and_the_fragment_say_what_the_experiment_says(tmp_path):
    found = tuning(trial(none=(0.45,), half=(0.4,)))
    chosen = found.chosen
    assert chosen.federation.weight_average == 0.5
    assert chosen.privacy.site_divisors == {"site-1": 6.0, "site-2": 12.0, "site-3": 6.0}
    file = write_config(tmp_path, public=PUBLIC, privacy={**PRIVACY, "divisor": 5.0})
    assert load_experiment(file, found.overrides()).hash() == chosen.hash()
    fragment = parse(found.fragment(), source="fragment").value
    assert fragment["privacy"]["site_divisors"] == chosen.privacy.site_divisors
    assert fragment["federation"] == {"rounds": 2, "weight_average": 0.5}


def test_what_weakens_the_choice_is_said():
    sound = " ".join(tuning(trial(none=(0.45,))).notes())
    assert "costs no privacy" in sound
    assert "as good as the public data resemble" in sound
    assert "of public hospitals a, pre-training was on b" in sound
    for warning in ("too small", "do not train", "hardly tell", "same public hospital"):
        assert warning not in sound
    single = " ".join(tuning(trial(none=(0.45,)), counts={"a": 100}).notes())
    assert "same public hospital" in single
    assert "too small to play the sites in full" in single
    assert "do not train on the sites at all" in " ".join(tuning(trial(none=(0.51,))).notes())
    assert "hardly tell one setting" in " ".join(tuning(trial(none=(0.45,)), plain=0.5).notes())


def test_a_failed_trial_is_null_in_json_and_a_word_in_the_table():
    found = tuning(trial(none=(0.45,)), replace(trial(none=(math.inf,)), epsilon=7.5))
    assert "Infinity" not in json.dumps(found.to_dict())
    assert found.to_dict()["trials"][1]["score"] is None
    assert found.to_dict()["trials"][0]["interval"] == [0.45, 0.45]
    assert "failed" in render(found)
