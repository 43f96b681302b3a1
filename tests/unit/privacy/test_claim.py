"""Claims: what they say, how they are read, what they refuse."""

from __future__ import annotations

import json
import math

import pytest

from privacy.accounting import CURVE_INTERVAL, EpsilonPair, Release, epsilons
from privacy.claim import Claim
from privacy.errors import PlanError

ROUND = Release(sampling_probability=0.1, noise_multiplier=1.2, steps=20)
OTHER = Release(sampling_probability=0.1, noise_multiplier=2.0, steps=20)


def make(**changes: object) -> Claim:
    fields: dict[str, object] = {
        "site": "site-1",
        "unit": "patient",
        "delta": 1e-5,
        "kind": "dp",
        "releases": (ROUND, ROUND, OTHER),
    }
    return Claim(**{**fields, **changes})  # type: ignore[arg-type]


def test_equal_neighbours_are_joined_so_that_a_claim_stays_small():
    claim = make(releases=(ROUND,) * 500 + (OTHER,) + (ROUND,) * 3)
    assert [release.steps for release in claim.releases] == [10_000, 20, 60]


def test_epsilon_is_recomputed_from_the_releases():
    claim = make()
    assert claim.epsilons() == epsilons([ROUND, ROUND, OTHER], 1e-5)
    assert claim.epsilons(interval=CURVE_INTERVAL) == epsilons(
        [ROUND, ROUND, OTHER], 1e-5, interval=CURVE_INTERVAL
    )
    assert "epsilon" not in claim.to_json()


def test_nothing_released_costs_nothing():
    assert make(releases=()).epsilons() == EpsilonPair(rdp=0.0, pld=0.0)


def test_seeded_figures_are_nominal():
    assert make(kind="seeded").epsilons() == make().epsilons()


@pytest.mark.parametrize("delta", [0, 0.0, 1e-5])
def test_without_privacy_epsilon_is_infinite_whatever_delta_is(delta: float):
    assert make(kind="none", releases=(), delta=delta).epsilons() == EpsilonPair(rdp=math.inf, pld=math.inf)


def test_json_is_canonical_and_round_trips():
    claim = make()
    text = claim.to_json()
    assert Claim.from_json(text) == claim
    assert Claim.from_json(text).to_json() == text
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert json.loads(text)["releases"][0]["steps"] == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": ""}, "site must be a name, got ''"),
        ({"site": 3}, "site must be a name, got 3"),
        ({"unit": "scan"}, "unit must be one of patient, record, got 'scan'"),
        ({"delta": 0.0}, r"delta must be a number in \(0, 1\), got 0\.0"),
        ({"delta": math.nan}, r"delta must be a number in \(0, 1\), got nan"),
        ({"delta": "1e-5"}, "delta must be a number"),
        ({"kind": "gdp"}, "kind must be one of dp, seeded, none, got 'gdp'"),
        ({"releases": [ROUND]}, "releases must be a tuple of releases"),
        ({"releases": ({"steps": 1},)}, "releases must be a tuple of releases"),
        ({"kind": "none"}, "a claim of kind none has no releases"),
        ({"kind": "none", "releases": (), "delta": 2.0}, "delta must be a number"),
    ],
)
def test_invalid_claims_are_refused_by_name(changes: dict[str, object], message: str):
    with pytest.raises(PlanError, match=message):
        make(**changes)


def test_all_problems_are_reported_at_once():
    with pytest.raises(PlanError) as caught:
        make(site="", unit="x", delta=2, kind="y", releases=[])
    assert len(caught.value.problems) == 5


GOOD = make().to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "must be a mapping"),
        ("null", "must be a mapping"),
        (GOOD[:-1], "not valid JSON"),
        (GOOD.replace("1e-05", "NaN"), "NaN is not JSON"),
        (GOOD.replace("1e-05", "-Infinity"), "-Infinity is not JSON"),
        (GOOD.replace('"site":', '"delta":0.5,"site":'), "a key occurs twice"),
        (GOOD.replace('"steps":40', '"steps":1,"steps":40'), "a key occurs twice"),
        (GOOD.replace('"site"', '"sit"'), "site is missing; 'sit' is unknown"),
        (GOOD.replace('"steps":40', '"steps":-40'), "steps must be an integer from 0"),
        (GOOD.replace('"steps":40', '"steps":40.0'), "steps must be an integer from 0"),
        (
            GOOD.replace('"sampling_probability":0.1', '"sampling_probability":1e999'),
            "sampling_probability must be",
        ),
        (
            GOOD.replace('"poisson"', '"shuffle"'),
            "sampler must be one of poisson, shuffled, unamplified, got",
        ),
        (
            GOOD.replace('"add_remove"', '"replace_two"'),
            "neighbouring must be one of add_remove, replace_one, got",
        ),
        ('{"delta":1e-5,"kind":"dp","releases":{},"site":"a","unit":"patient"}', "releases must be a list"),
        (
            '{"delta":1e-5,"kind":"dp","releases":[[]],"site":"a","unit":"patient"}',
            "release: must be a mapping",
        ),
        ('{"delta":1e-5,"kind":"dp","releases":[],"site":' + "[" * 100_000, "not valid JSON"),
        (GOOD.replace('"steps":40', '"steps":' + "9" * 5000), "not valid JSON"),
    ],
)
def test_hostile_or_broken_text_is_refused(text: str, message: str):
    with pytest.raises(PlanError, match=message):
        Claim.from_json(text)


def test_the_claim_holds_public_values_only():
    assert set(json.loads(GOOD)) == {"site", "unit", "delta", "kind", "releases"}
    assert set(json.loads(GOOD)["releases"][0]) == {
        "sampling_probability",
        "noise_multiplier",
        "steps",
        "sampler",
        "neighbouring",
    }
