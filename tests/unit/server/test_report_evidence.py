"""Attacks in words: never more than they show, and what was not made is said."""

from __future__ import annotations

import dataclasses

from server.report.attacks import AttackFacts
from server.report.evidence import attack_rows
from tests.support.reports import attacks

FACTS = attacks()


def _row(facts: AttackFacts, name: str):
    (row,) = (row for row in attack_rows(facts) if name in row.name)
    return row


def test_a_bound_from_below_is_rounded_down_and_one_from_above_up():
    gradient = dataclasses.replace(
        FACTS.gradient, lower_bound_fdp=1.8399, claimed_pld=5.431, claimed_rdp=5.901
    )
    row = _row(dataclasses.replace(FACTS, gradient=gradient), "every step")
    assert "≥ 1.83 shown, ≤ 5.44 proved (RDP 5.91)" in row.result


def test_the_larger_of_the_two_bounds_is_shown():
    gradient = dataclasses.replace(FACTS.gradient, lower_bound=2.5)
    assert "≥ 2.50" in _row(dataclasses.replace(FACTS, gradient=gradient), "every step").result


def test_a_refuted_claim_is_red_and_says_what_to_do():
    gradient = dataclasses.replace(FACTS.gradient, violated=True)
    row = _row(dataclasses.replace(FACTS, gradient=gradient), "every step")
    assert row.tone == "bad"
    assert "Release nothing" in row.reading


def test_a_claim_that_stands_is_not_called_proved_by_an_attack():
    row = _row(FACTS, "every step")
    assert row.tone == "good"
    assert "between what was shown and what is proved" in row.reading
    assert "95 % confidence" in row.reading
    assert "1,000 canaries, 300 steps, 21 s" in row.reading


def test_what_was_not_made_is_said():
    rows = attack_rows(AttackFacts())
    assert [row.result for row in rows] == ["not provided"] * 3
    assert {row.tone for row in rows} == {"caution"}


def test_an_attack_that_misses_missing_noise_is_not_trusted():
    control = dataclasses.replace(FACTS.control, violated=False)
    assert _row(dataclasses.replace(FACTS, control=control), "noise taken away").tone == "caution"
    assert "teeth" in _row(FACTS, "noise taken away").reading


def test_few_others_cannot_resolve_one_percent():
    assert "40 others are too few to see 1%" in _row(FACTS, "take part").reading
    enough = dataclasses.replace(FACTS.membership, is_resolved=True)
    assert "too few" not in _row(dataclasses.replace(FACTS, membership=enough), "take part").reading


def test_a_model_that_knows_its_patients_is_marked():
    known = dataclasses.replace(FACTS.membership, auc_ci95=(0.6, 0.7))
    assert _row(dataclasses.replace(FACTS, membership=known), "take part").tone == "caution"
    assert _row(FACTS, "take part").tone == "plain"
    copied = dataclasses.replace(FACTS.memorisation, share=0.99)
    row = _row(dataclasses.replace(FACTS, memorisation=copied), "draw people")
    assert row.tone == "caution"
    assert "More than chance allows" in row.reading
