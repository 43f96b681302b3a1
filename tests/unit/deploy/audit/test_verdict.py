"""The verdict in words: every situation has its sentence, and none promises more than the figures do."""

import dataclasses
import json
import re

import pytest

from deploy.audit.document import Evidence
from deploy.audit.page import render
from deploy.audit.registry import to_yaml
from deploy.audit.verdict import TITLES, findings, grouped, headline, right_at_most, spending
from deploy.audit.write import to_json
from tests.support.audits import account, as_subject, attack, check, refused, report


def texts(made):
    return [finding.text for finding in findings(made)]


def one_sentence(made):
    return spending(made)[0].text


def test_all_is_well():
    first = headline(report())
    assert (first.tone, first.text) == ("good", "Everything that was checked is in order.")


def test_something_is_violated():
    made = report(
        checks=(check(), check("violated", name="policy", text="north did what its policy forbids."))
    )
    first = headline(made)
    assert first.tone == "bad"
    assert first.details == ("1 check failed: policy of the hospital.",)
    assert findings(made)[0].text == "north did what its policy forbids."
    assert findings(made)[0].tone == "bad"


@pytest.mark.parametrize("status", ["attention", "not-provided"])
def test_what_is_open_is_never_called_in_order(status):
    first = headline(report(checks=(check(), check(status, name="heads"))))
    assert first.tone == "caution"
    assert "1 of 2 checks could not be made or needs a second look" in first.details[0]


def test_spent_with_a_cap():
    assert one_sentence(report()) == (
        "north has spent epsilon 2.70 of the 3 it allows for each patient. It refused nothing for want of budget."
    )


def test_spent_and_refused():
    made = report(account(refusals=(refused(),)))
    assert one_sentence(made) == (
        "north has spent epsilon 2.70 of the 3 it allows for each patient. Round 11 would have come to 3.30 (its "
        "cap is 3) and was refused: no data were opened for it."
    )


def test_refused_by_the_budget_of_one_study():
    said = one_sentence(report(account(refusals=(refused(code="run-budget-exhausted"),))))
    assert "(one study may spend 3) and was refused" in said


def test_refused_without_knowing_what_it_would_have_come_to():
    said = one_sentence(report(account(refusals=(refused(needed=None),))))
    assert said.endswith("Round 11 was refused for want of budget: no data were opened for it.")


def test_refused_by_policy():
    said = one_sentence(report(account(refusals=(refused(needed=None, code="model-not-allowed"),))))
    assert said.endswith("It refused 1 request by its policy (model-not-allowed).")


def test_a_bound_is_rounded_up_and_one_from_below_down():
    made = report(account(counted=2.7001), evidence=Evidence(audit=attack(lower=0.4999)))
    assert "epsilon 2.71 of" in one_sentence(made)
    assert any("could show epsilon 0.49," in text for text in texts(made))


def test_without_a_cap():
    said = spending(report(account(cap=None)))[0]
    assert "has set no cap" in said.text
    assert said.tone == "caution"


def test_over_a_cap_that_was_lowered():
    assert spending(report(account(counted=3.5, cap=3.0)))[0].tone == "caution"


def test_many_sites_are_summed_up():
    sites = [account(f"h{index}", counted=0.1 * (index + 1)) for index in range(12)]
    said = spending(report(*sites, kind="run"))
    assert len(said) == 2
    assert (
        said[0].text
        == "12 sites have spent between epsilon 0.10 (h0) and 1.20 (h11); none of them refused work."
    )


def test_nothing_could_be_read():
    made = report(sites=(), checks=(check("violated"),))
    assert one_sentence(made) == "No spending could be read, so nothing can be said about it."


def test_what_epsilon_means_is_the_best_test_of_such_a_mechanism():
    # epsilon 0: a coin. epsilon ln 3: 3 to 1, so 75 of 100. delta adds where nothing else does.
    assert right_at_most(0.0, 0.0) == pytest.approx(0.5)
    assert right_at_most(1.0986122886681098, 0.0) == pytest.approx(0.75)
    assert right_at_most(0.0, 0.1) == pytest.approx(0.55)
    assert right_at_most(800.0, 0.1) == pytest.approx(1.0)


def test_what_epsilon_means_for_one_patient():
    said = next(text for text in texts(report()) if text.startswith("For one patient"))
    assert "right 94 times in 100 instead of 50" in said  # e^2.7 / (1 + e^2.7) = 0.937
    huge = next(
        text for text in texts(report(account(counted=9.0, cap=10.0))) if text.startswith("For one patient")
    )
    assert "promises next to nothing" in huge


def test_nothing_spent_means_nothing_to_explain():
    assert not any(text.startswith("For one patient") for text in texts(report(account(counted=0.0))))


def test_records_are_praised_only_where_all_hold():
    good = "Every ledger entry is as it was written"
    assert any(text.startswith(good) for text in texts(report()))
    made = report(checks=(check(), check("violated", site="south"), check(name="policy")))
    assert not any("ledger entry is as it was" in text for text in texts(made))
    assert any(text.startswith("All work kept within") for text in texts(made))


def test_a_refuted_claim_is_not_told_as_lying_in_between():
    made = report(
        evidence=Evidence(audit=attack(violated=True, lower=3.0)),
        checks=(check("violated", name="attack", site="", text="An attack has refuted the claim."),),
    )
    assert not any("lies in between" in text for text in texts(made))
    assert texts(made)[0] == "An attack has refuted the claim."


def test_what_is_missing_is_named():
    made = report(checks=(check("not-provided", name="heads"), check("not-provided", name="attack", site="")))
    assert "Not provided: heads kept by others and attack on every step." in texts(made)


def test_the_same_at_many_sites_is_said_once():
    checks = tuple(
        check("attention", name="libraries", site=f"h{index}", text=f"h{index} changed.")
        for index in range(4)
    )
    said = [text for text in texts(report(checks=checks)) if "changed" in text]
    assert said == ["h0 changed. The same holds for 3 other sites."]


def test_the_worst_of_a_kind_comes_first():
    made = grouped([check("ok", site="a"), check("violated", site="b"), check("attention", site="c")])
    assert [(status, [one.site for one in members]) for _, status, members in made] == [
        ("violated", ["b", "c", "a"])
    ]


def test_questions_to_people_are_counted():
    made = report()
    assert f"{len(made.gaps)} questions only a person can answer; they are at the end, in amber." in texts(
        made
    )


# --- what may never be said ---------------------------------------------------------------------------------


SITUATIONS = {
    "well": report(),
    "seeded": report(account(claims="seeded", refusals=(refused(),)), kind="run"),
    "no noise": as_subject(report(account(claims="none")), claims="none"),
    "nothing": report(sites=(), departures=(), evidence=Evidence(), utility=None, proofs=(), checks=()),
    "broken": report(checks=tuple(check("violated", name=name) for name in TITLES)),
    "open": report(checks=tuple(check("not-provided", name=name) for name in TITLES)),
}


def everything(made):
    """Return whatever a person or a program could read of a report."""
    page = re.sub(r"<style>.*?</style>", "", render(made), flags=re.DOTALL)
    return "\n".join([page, to_json(made), to_yaml(made)])


@pytest.mark.parametrize("name", SITUATIONS)
def test_never_said_to_be_beyond_re_identification(name):
    assert "anonym" not in everything(SITUATIONS[name]).lower()


@pytest.mark.parametrize("name", ["seeded", "no noise"])
def test_what_claims_nothing_is_never_called_private(name):
    said = everything(SITUATIONS[name]).lower()
    found = [
        said[max(0, match.start() - 60) : match.end() + 30] for match in re.finditer(r"\bprivate\b", said)
    ]
    assert found == []
    assert "has spent epsilon" not in said
    assert headline(SITUATIONS[name]).tone in ("caution", "bad")


def test_the_check_above_would_find_it():
    """The words that are looked for do occur where privacy is claimed, or in a text that promises it."""
    assert "has spent epsilon" in everything(SITUATIONS["well"])
    promising = dataclasses.replace(SITUATIONS["seeded"], checks=(check(text="All of it is private."),))
    assert re.search(r"\bprivate\b", everything(promising))


def test_seeded_figures_are_subjunctive():
    made = SITUATIONS["seeded"]
    assert headline(made).text == "A simulation: its records are in order, and no privacy is claimed."
    assert one_sentence(made).startswith("north would have spent epsilon 2.70 of the 3 it allows")
    assert not any(text.startswith("For one patient") for text in texts(made))
    assert any("Who knows it needs no attack" in text for text in texts(made))


def test_a_broken_simulation_is_broken_first():
    made = report(account(claims="seeded"), checks=(check("violated"),), kind="run")
    assert headline(made).text == "Something is wrong. Do not rely on these figures."


def test_json_says_what_the_page_says():
    made = SITUATIONS["seeded"]
    document = json.loads(to_json(made))
    assert document["verdict"]["text"] == headline(made).text
    assert [one["text"] for one in document["findings"]] == texts(made)
