"""What a ledger shows, held against what the hospital allows."""

import dataclasses

import pytest

from deploy.audit.ledgers import read_ledger
from deploy.audit.policies import breaches, check_plan, check_policy, check_terms
from deploy.site import load_site
from privacy.administration import change_cap, note_incident
from privacy.policy import Cap
from tests.support.audits import RELEASE, open_ledger, run_rounds, write_site


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    file = write_site(tmp_path_factory.mktemp("hospital"))
    run_rounds(file, 2)
    config = load_site(file)
    return config, read_ledger(file.parent / "ledger.sqlite", "?")


def test_all_within_the_policy(hospital):
    config, reading = hospital
    found = check_policy(reading.state, config.to_policy())
    assert found.status == "ok"
    assert "All 2 reservations of site-2 keep within its policy" in found.text
    assert any("min_patients" in detail for detail in found.details)
    assert [check.status for check in check_terms(reading, config.to_policy())] == ["ok", "ok"]


STRICTER = {
    "noise_multiplier": {"min_noise_multiplier": 1.2},
    "sampling_probability": {"max_sampling_probability": 0.01},
    "steps": {"max_steps_per_round": 39},
    "max_grad_norm": {"max_grad_norm": 0.5},
    "max_records_per_patient": {"max_records_per_patient": 4},
    "delta": {"per_run": Cap(epsilon=3.0, delta=1e-6)},
    "model": {"models": frozenset({"0" * 64})},
    "run_cap": {"per_run": Cap(epsilon=2.0, delta=1e-5)},
}


@pytest.mark.parametrize("name", STRICTER)
def test_every_rule_is_looked_at(hospital, name):
    config, reading = hospital
    policy = dataclasses.replace(config.to_policy(), **STRICTER[name])
    one = next(iter(reading.state.reservations.values()))
    assert [problem.split(" = ")[0] for problem in breaches(one, policy)] == [name]


def test_seeded_noise_and_records_are_breaches(hospital):
    config, reading = hospital
    one = next(iter(reading.state.reservations.values()))
    fields = {
        **one.fields,
        "randomness": "seeded",
        "mechanism": {**one.fields["mechanism"], "unit": "record"},
    }
    found = breaches(dataclasses.replace(one, fields=fields), config.to_policy())
    assert [problem.split(" = ")[0] for problem in found] == ["unit", "randomness"]


def test_beyond_a_policy_that_was_changed_since(hospital):
    config, reading = hospital
    stricter = dataclasses.replace(config.to_policy(), max_steps_per_round=39)
    found = check_policy(reading.state, stricter)
    assert found.status == "attention"
    assert "2 of 2 were made under an earlier policy" in found.details


def test_beyond_the_policy_in_force(hospital):
    config, reading = hospital
    stricter = dataclasses.replace(config.to_policy(), max_steps_per_round=39)
    state = reading.state
    forged = {
        work: dataclasses.replace(one, fields={**one.fields, "policy": stricter.hash()})
        for work, one in state.reservations.items()
    }
    found = check_policy(dataclasses.replace(state, reservations=forged), stricter)
    assert found.status == "violated"
    assert "entry 1: steps = 40 is beyond the policy" in found.details


def test_a_ledger_that_allows_more_than_the_policy(hospital):
    config, reading = hospital
    lower = dataclasses.replace(
        config.to_policy(), lifetime=Cap(epsilon=2.5, delta=1e-5), per_run=Cap(epsilon=2.5, delta=1e-5)
    )
    assert check_terms(reading, lower)[0].status == "attention"


def test_a_delta_that_may_publish_a_patient(hospital):
    config, reading = hospital
    many = dataclasses.replace(
        config.to_policy(),
        patients_bound=10**6,
        lifetime=Cap(epsilon=3.0, delta=1e-7),
        per_run=Cap(epsilon=3.0, delta=1e-7),
    )
    assert check_terms(reading, many)[0].status == "violated"


def test_libraries_that_changed(hospital):
    config, reading = hospital
    genesis = dataclasses.replace(reading.state.genesis, libraries={"torch": "0.1", "no-such-package": "1"})
    old = dataclasses.replace(reading, state=dataclasses.replace(reading.state, _genesis=genesis))
    found = check_terms(old, config.to_policy())[1]
    assert found.status == "attention"
    assert "torch: 0.1 when the ledger began" in found.details[0]
    assert "not installed" in found.details[1]


def test_what_people_did_is_told(tmp_path):
    file = write_site(tmp_path)
    config = load_site(file)
    ledger = open_ledger(config)
    change_cap(ledger, 2.0)
    note_incident(ledger, "key-lost", "TICKET-7")
    found = check_terms(read_ledger(tmp_path / "ledger.sqlite", "?"), config.to_policy())
    assert [check.name for check in found] == ["cap-and-delta", "libraries", "incidents"]
    assert "key-lost (TICKET-7)" in found[2].text


def test_a_site_without_a_ledger_is_held_against_the_plan():
    assert check_plan("north", [RELEASE, RELEASE], RELEASE).status == "ok"
    odd = dataclasses.replace(RELEASE, steps=41)
    assert check_plan("north", [RELEASE, odd], RELEASE).status == "violated"
