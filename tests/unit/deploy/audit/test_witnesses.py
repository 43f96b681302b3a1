"""Claims and heads that others kept, held against what a site has written down itself."""

import dataclasses

import pytest

from deploy.audit.witnesses import check_claim, check_heads, rest_after
from deploy.site import load_site
from privacy.accounting import Release
from privacy.claim import Claim
from privacy.signing import generate_key
from tests.support.audits import open_ledger, run_rounds, write_site

ROUND = Release(sampling_probability=0.02, noise_multiplier=1.1, steps=40)
OTHER = dataclasses.replace(ROUND, noise_multiplier=1.2)


def steps(number, release=ROUND):
    return dataclasses.replace(release, steps=number)


@pytest.mark.parametrize(
    ("history", "claim", "left"),
    [
        ([ROUND, ROUND], [steps(80)], 0),
        ([ROUND, ROUND, ROUND], [steps(80)], 40),
        ([ROUND, OTHER], [ROUND], 40),
        ([ROUND, OTHER], [ROUND, OTHER], 0),
        ([], [], 0),
        ([ROUND], [], 40),
        ([ROUND], [steps(80)], None),  # more than was written down
        ([ROUND, OTHER], [OTHER], None),  # not the beginning
        ([ROUND], [steps(40, OTHER)], None),  # other parameters
        ([], [ROUND], None),
    ],
)
def test_a_claim_is_the_beginning_of_a_history(history, claim, left):
    assert rest_after(history, claim) == left


def claim(releases=(ROUND,), **changes):
    made = Claim(site="north", unit="patient", delta=1e-5, kind="dp", releases=tuple(releases))
    return dataclasses.replace(made, **changes).to_json()


def status(text, history=(ROUND,), **changes):
    return check_claim("north", text, history, **{"claims": "dp", "delta": 1e-5, **changes})


def test_claim_and_record_agree():
    found = status(claim())
    assert found.status == "ok"
    assert "exactly what its own record says" in found.text
    assert found.details[0].startswith("claimed: PLD ")


def test_late_updates_count_though_nobody_claims_them():
    found = status(claim(), [ROUND, ROUND])
    assert found.status == "ok"
    assert "40 steps more" in found.text


def test_no_claim_is_not_provided():
    assert status(None).status == "not-provided"


@pytest.mark.parametrize(
    ("text", "changes", "why"),
    [
        ("{}", {}, "is none"),
        (claim(site="south"), {}, "is of south"),
        (claim(unit="record"), {}, "for each record"),
        (claim(), {"claims": "seeded"}, "its own record says: seeded"),
        (claim([steps(80)]), {}, "not in its own record"),
        (claim([OTHER]), {}, "not in its own record"),
    ],
)
def test_contradictions(text, changes, why):
    found = status(text, **changes)
    assert found.status == "violated"
    assert why in found.text


def test_another_delta_is_said():
    assert "the record counts at delta 0.0001" in status(claim(), delta=1e-4).details[0]


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Heads of one ledger after 1 and 2 rounds, and its state after the second."""
    file = write_site(tmp_path_factory.mktemp("hospital"))
    ledger = open_ledger(load_site(file))
    kept = []
    for run in ("a", "b"):
        run_rounds(file, 1, run=run)
        kept.append(ledger.head())
    return kept, ledger.state()


def head_status(state, *given):
    return check_heads("north", state, given, witness="the server")


def test_kept_heads_are_in_the_ledger(heads):
    (first, second), state = heads
    assert head_status(state, first).status == "ok"
    assert "2 entries were added since" in head_status(state, first).details
    assert head_status(state, first, second).details == ("nothing was added since",)


def test_an_older_copy_is_found(heads):
    (_, second), state = heads
    older = dataclasses.replace(state, size=3, roots=state.roots[:3])
    found = head_status(older, second)
    assert found.status == "violated"
    assert "has seen 5 of them and 3 are here" in found.text


def test_a_ledger_written_anew_is_found(heads):
    (first, _), state = heads
    anew = dataclasses.replace(state, roots=["0" * 64, *state.roots[1:2], "1" * 64, *state.roots[3:]])
    assert "was written anew" in head_status(anew, first).text


def test_heads_that_anybody_can_make_up_are_no_evidence(heads):
    (first, _), state = heads
    key = generate_key()
    made_up = dataclasses.replace(first, size=99, key=key.public)
    made_up = dataclasses.replace(made_up, signature=key.sign("ledger-head", made_up.statement()))
    spoiled = dataclasses.replace(first, size=99)
    found = head_status(state, made_up, spoiled)
    assert found.status == "not-provided"
    assert "anybody can make up" in found.text


def test_nobody_has_a_head(heads):
    (first, _), state = heads
    foreign = dataclasses.replace(first, dataset="0" * 64)
    assert head_status(state).status == head_status(state, foreign).status == "not-provided"
