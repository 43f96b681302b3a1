"""Who sees what: one figure for all by default, and the one case in which the noise of other sites counts."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest

from privacy.accounting import CURVE_INTERVAL, Release, epsilons
from privacy.adversaries import ADVERSARIES, AdversaryView, Federation, view_adversaries
from privacy.errors import PlanError

DELTA = 1e-5
JOB = Release(sampling_probability=0.032, noise_multiplier=1.0, steps=1000)  # PRIVACY.md 3.5
LINEAR = Federation(
    num_sites=5,
    local_steps=1,
    plain_sgd=True,
    equal_plans=True,
    equal_weights=True,
    server_keeps_updates=True,
)


def views(federation: Federation, *releases: Release) -> dict[str, AdversaryView]:
    seen = view_adversaries(releases or (JOB,), DELTA, federation, interval=CURVE_INTERVAL)
    return {view.name: view for view in seen}


def test_there_is_one_view_of_each_adversary_in_order():
    for federation in (Federation(num_sites=3, local_steps=45), LINEAR):
        seen = view_adversaries([JOB], DELTA, federation, interval=CURVE_INTERVAL)
        assert tuple(view.name for view in seen) == ADVERSARIES == ("server", "other-site", "public")
        assert all(view.sees and view.assumption for view in seen)


def test_by_default_everybody_has_the_sites_full_epsilon():
    own = epsilons([JOB], DELTA, interval=CURVE_INTERVAL)
    seen = views(Federation(num_sites=5, local_steps=45))
    assert {view.epsilon for view in seen.values()} == {own}
    assert own.pld == pytest.approx(6.59, abs=0.01)
    assert "Nobody has to be trusted" in seen["server"].assumption
    assert "only for one local step of plain SGD" in seen["other-site"].assumption
    assert "convex losses only" in seen["public"].assumption


@pytest.mark.parametrize(
    ("sites", "colluding", "pld"), [(3, 1, 3.63), (5, 1, 2.24), (10, 1, 1.36), (6, 1, 1.94)]
)
def test_the_reference_figures_of_linear_rounds(sites: int, colluding: int, pld: float):
    # PRIVACY.md 3.5: 3.63 with the noise of 2 sites, 2.24 of 4, 1.94 of 5, 1.36 of 9.
    seen = views(dataclasses.replace(LINEAR, num_sites=sites, num_colluding=colluding))
    assert seen["server"].epsilon.pld == pytest.approx(6.59, abs=0.01)
    assert seen["other-site"].epsilon.pld == pytest.approx(pld, abs=0.01)
    assert seen["public"].epsilon == seen["other-site"].epsilon
    # Counting one site more, as if the observer did not know its own noise, would be noticed.
    wrong = dataclasses.replace(JOB, noise_multiplier=math.sqrt(sites - colluding + 1))
    assert epsilons([wrong], DELTA, interval=CURVE_INTERVAL).pld < pld - 0.05


@pytest.mark.parametrize(("sites", "colluding"), [(2, 1), (5, 4), (5, 5), (1, 1)])
def test_with_fewer_than_two_honest_sites_nothing_is_gained(sites: int, colluding: int):
    # PRIVACY.md 3.5: two sites, one of which observes: 6.59.
    seen = views(dataclasses.replace(LINEAR, num_sites=sites, num_colluding=colluding))
    assert seen["other-site"].epsilon == seen["server"].epsilon == seen["public"].epsilon
    assert f"{sites - colluding} site(s) of {sites} remain" in seen["other-site"].assumption


def test_more_colluding_sites_never_cost_less():
    spent = [
        views(dataclasses.replace(LINEAR, num_colluding=colluding))["other-site"].epsilon
        for colluding in (1, 2, 3, 4, 5)
    ]
    assert [pair.pld for pair in spent] == sorted(pair.pld for pair in spent)
    assert [pair.rdp for pair in spent] == sorted(pair.rdp for pair in spent)
    assert spent[0].pld < spent[2].pld < spent[4].pld


def test_every_single_fact_is_needed():
    facts = ("plain_sgd", "equal_plans", "equal_weights", "server_keeps_updates")
    for values in itertools.product([True, False], repeat=4):
        for local_steps in (1, 2):
            federation = Federation(
                num_sites=5,
                local_steps=local_steps,
                **dict(zip(facts, values, strict=True)),  # type: ignore[arg-type]
            )
            seen = views(federation)
            gains = seen["other-site"].epsilon.pld < seen["server"].epsilon.pld
            assert gains is (all(values) and local_steps == 1)


def test_an_assumption_names_what_it_takes():
    text = views(dataclasses.replace(LINEAR, num_colluding=2))["other-site"].assumption
    for part in (
        "shows single updates to nobody",
        "at most 2 of 5 sites",
        "the other 3",
        "really add their noise",
    ):
        assert part in text
    kept = views(dataclasses.replace(LINEAR, server_keeps_updates=False))
    assert "not assumed to keep single updates to itself" in kept["other-site"].assumption


def test_no_sentence_promises_what_nobody_can():
    for federation in (Federation(num_sites=5, local_steps=45), LINEAR):
        for view in views(federation).values():
            assert "anonym" not in (view.sees + view.assumption).lower()


def test_several_releases_and_the_relation_are_kept():
    other = dataclasses.replace(JOB, noise_multiplier=2.0, steps=100)
    pair = views(LINEAR, JOB, other)["other-site"].epsilon
    doubled = [dataclasses.replace(job, noise_multiplier=job.noise_multiplier * 2.0) for job in (JOB, other)]
    assert pair == epsilons(doubled, DELTA, interval=CURVE_INTERVAL)
    replaced = dataclasses.replace(JOB, neighbouring="replace_one")
    assert views(LINEAR, replaced)["other-site"].epsilon.pld > views(LINEAR)["other-site"].epsilon.pld
    with pytest.raises(PlanError, match="mixes add_remove and replace_one"):
        views(LINEAR, JOB, replaced)


def test_nothing_released_costs_nothing_against_anybody():
    seen = view_adversaries([], DELTA, LINEAR)
    assert {(view.epsilon.rdp, view.epsilon.pld) for view in seen} == {(0.0, 0.0)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_sites": 0}, "num_sites must be an integer >= 1, got 0"),
        ({"local_steps": 0}, "local_steps must be an integer >= 1, got 0"),
        ({"num_colluding": 0}, "num_colluding must be an integer from 1 to 5, got 0"),
        ({"num_colluding": 6}, "num_colluding must be an integer from 1 to 5, got 6"),
        ({"equal_weights": 1}, "equal_weights must be true or false, got 1"),
        ({"server_keeps_updates": "yes"}, "server_keeps_updates must be true or false, got 'yes'"),
    ],
)
def test_a_fact_out_of_range_is_refused(changes: dict[str, object], message: str):
    with pytest.raises(PlanError, match=message):
        dataclasses.replace(LINEAR, **changes)  # type: ignore[arg-type]


def test_every_wrong_fact_is_named_at_once():
    with pytest.raises(PlanError) as caught:
        Federation(num_sites=0, local_steps=0, plain_sgd=None)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 3
