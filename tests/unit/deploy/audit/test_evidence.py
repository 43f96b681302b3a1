"""Attacks: files are checked, figures recomputed, and what was not tried is said."""

import dataclasses
import json
import math

import pytest

from deploy.audit.document import Evidence
from deploy.audit.evidence import check_evidence, demonstrated_for, down, found_beside, shown_by
from privacy.accounting import epsilons
from privacy.errors import PlanError
from tests.support.audits import RELEASE, account, attack
from tests.support.reports import attacks

CLAIM = dataclasses.replace(RELEASE, steps=400)


@pytest.fixture(scope="module")
def made():
    """An attack whose file is right."""
    pair = epsilons([CLAIM], 1e-5)
    return {**attack(), "epsilon_pld": pair.pld, "epsilon_rdp": pair.rdp}


def statuses(evidence):
    return {check.name: check.status for check in check_evidence(evidence)}


def test_a_claim_that_stands(made):
    found = check_evidence(Evidence(audit=made, control={**made, "violated": True}, membership=made))
    assert [check.status for check in found] == ["ok", "ok", "ok", "not-provided", "not-provided"]
    assert "could show a loss of epsilon 0.40; proved is" in found[0].text
    assert "it has teeth" in found[1].text
    assert (
        "61 times in 100. A coin does so 50 times, give or take 4." in found[2].text
    )  # 2 sqrt(1001 / (12 490 510))


def test_nothing_was_tried():
    assert statuses(Evidence()) == dict.fromkeys(
        ("attack", "control", "membership", "took-part", "copies"), "not-provided"
    )


@pytest.mark.parametrize("change", [{"violated": True}, {"lower_bound": 9.0}, {"lower_bound_fdp": 9.0}])
def test_a_refuted_claim(made, change):
    found = check_evidence(Evidence(audit={**made, **change}))[0]
    assert found.status == "violated"
    assert "Do not release anything" in found.text


def test_an_attack_without_teeth(made):
    assert statuses(Evidence(audit=made, control=made))["control"] == "attention"


def test_a_file_is_not_believed_where_it_can_be_recomputed(made):
    found = check_evidence(Evidence(audit={**made, "epsilon_pld": made["epsilon_pld"] + 1}))[0]
    assert found.status == "violated"
    assert "recomputed it is" in found.text


def test_a_bound_from_below_is_rounded_down():
    assert [down(value) for value in (0.0, 0.4999, 0.5, 1.239)] == ["0.00", "0.49", "0.50", "1.23"]
    assert shown_by({**attack(lower=0.4), "lower_bound_fdp": 0.7}) == 0.7


@pytest.mark.parametrize(
    ("change", "audit", "expected"),
    [
        ({}, {}, 0.4),
        ({"delta": 1e-6}, {}, 0.4),  # what is lost at a larger delta is lost at a smaller one
        ({"delta": 1e-4}, {}, None),
        (
            {},
            {"claimed": [dataclasses.replace(CLAIM, steps=401).to_dict()]},
            None,
        ),  # more steps than were done
        ({}, {"claimed": [dataclasses.replace(CLAIM, noise_multiplier=1.0).to_dict()]}, None),
    ],
)
def test_a_bound_counts_only_for_who_did_what_was_attacked(change, audit, expected):
    assert demonstrated_for(account(**change), Evidence(audit={**attack(), **audit})) == expected


def test_no_attack_shows_nothing():
    assert demonstrated_for(account(), Evidence()) is None


def test_found_beside_a_run(tmp_path, made):
    assert found_beside(tmp_path) is None
    (tmp_path / "audit.json").write_text(json.dumps(made))
    found = found_beside(tmp_path)
    assert (found.audit, found.control, found.membership) == (made, None, None)
    (tmp_path / "audit-control.json").write_text(json.dumps({**made, "violated": True}))
    assert found_beside(tmp_path).control["violated"]


@pytest.mark.parametrize(
    "change",
    [
        {"claimed": []},
        {"claimed": [{"steps": 1}]},
        {"lower_bound": math.nan},
        {"violated": "no"},
        {"auc": None},
        {"delta": 2.0},
    ],
)
def test_a_file_that_is_no_audit(tmp_path, made, change):
    (tmp_path / "audit.json").write_text(json.dumps({**made, **change}))
    with pytest.raises(PlanError, match=r"audit\.json"):
        found_beside(tmp_path)


def test_a_file_that_is_no_json(tmp_path):
    (tmp_path / "audit.json").write_text("{")
    with pytest.raises(PlanError, match="is no audit"):
        found_beside(tmp_path)


@pytest.mark.slow
def test_the_attacks_themselves_and_their_control():
    from deploy.audit.attacks import can_measure, measure

    site = account(claims="seeded", counted=2.0)
    assert can_measure(site)
    assert not can_measure(dataclasses.replace(site, mechanisms=()))
    found = measure(site)
    assert {name: status for name, status in statuses(found).items() if status != "not-provided"} == {
        "attack": "ok",
        "control": "ok",
        "membership": "ok",
    }
    assert found.audit["steps"] == 400
    assert 0 < demonstrated_for(site, found) < found.audit["epsilon_pld"]
    assert "made-up patients" in found.origin


def test_attacks_on_the_released_model_are_read_and_said(tmp_path, made):
    facts = attacks()
    (tmp_path / "audit.json").write_text(json.dumps(made))
    released = {name: dataclasses.asdict(getattr(facts, name)) for name in ("membership", "memorisation")}
    (tmp_path / "attack.json").write_text(json.dumps(released))
    found = {check.name: check for check in check_evidence(found_beside(tmp_path))}
    assert found["took-part"].status == "ok"
    assert "AUC 0.53 (0.44 to 0.62)" in found["took-part"].text
    assert "86% of 200 samples" in found["copies"].text
    (tmp_path / "attack.json").write_text('{"membership": {"auc": 1}}')
    with pytest.raises(PlanError, match=r"attack\.json"):
        found_beside(tmp_path)
