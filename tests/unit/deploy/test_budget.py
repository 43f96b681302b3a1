"""Whether a study fits what a site's ledger has left, before anybody opens any data."""

import functools
from pathlib import Path

import pytest

from deploy.budget import spent_so_far, standing_of
from privacy.accounting import Release
from privacy.errors import LedgerError, RefusalCode
from privacy.filters import RenyiFilter
from privacy.genesis import begin
from privacy.records import Work
from privacy.signing import generate_key
from tests.support.studies import ROUND, answer_of, codes, load_study, plan


@pytest.fixture
def load(tmp_path):
    return functools.partial(load_study, tmp_path)


@pytest.fixture
def answer(tmp_path):
    return functools.partial(answer_of, tmp_path)


@pytest.fixture
def ledger(load):
    """Begin the ledger of site-2, with the rule of its file."""

    def begin_one(**overrides):
        _, files = load(**overrides)
        config = files["site.yaml"]
        return begin(
            Path(config.ledger),
            site="site-2",
            dataset="d",
            rule=config.to_filter(),
            patients=[f"p{index}" for index in range(5)],
            key=generate_key(),
            salt=b"s" * 32,
        )

    return begin_one


def rounds_within(rule):
    """Count rounds one by one, as a ledger does."""
    done = 0
    while rule.allows([ROUND] * (done + 1)):
        done += 1
    return done


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_the_round_in_which_a_new_ledger_would_be_spent(answer, load, epsilon):
    site = [f"policy.lifetime.epsilon={epsilon}"]
    _, files = load(site=site)
    fits = rounds_within(files["site.yaml"].to_filter())
    found = answer(experiment=["federation.rounds=300"], site=site)
    assert 0 < fits < 300
    assert found.cohorts[0].refused_in == fits + 1
    (objection,) = found.objections
    assert objection.code is RefusalCode.BUDGET_EXHAUSTED
    assert objection.sentence.startswith(
        f"round {fits + 1} of 300 would be refused: no cohort can pay for it within epsilon {epsilon:g} at delta 1e-05"
    )
    assert codes(answer(experiment=[f"federation.rounds={fits}"], site=site)) == []


def test_one_run_has_a_cap_of_its_own(answer):
    found = answer(site=["policy.per_run.epsilon=0.1"])
    assert codes(found) == [RefusalCode.RUN_BUDGET_EXHAUSTED]
    assert "one run may spend epsilon 0.1 at delta 1e-05" in found.objections[0].sentence
    assert found.cohorts[0].refused_in is None


def test_steps_that_cost_nothing_are_never_refused(load):
    _, files = load(site=["rule={kind: renyi-filter, order: 4}"])
    standing = standing_of(files["site.yaml"])
    assert standing.rule == RenyiFilter(epsilon=8.0, delta=1e-5, order=4)
    nothing = Release(sampling_probability=0.05, noise_multiplier=4.0, steps=0)
    assert standing.budgets(nothing, 10**4)[0].refused_in is None


SCHEDULE = (
    "rule={{kind: fixed-plan, schedule: [{{sampling_probability: 0.05, noise_multiplier: 4, steps: {}}}]}}"
)


def test_a_fixed_plan_is_followed_to_its_end(answer):
    assert codes(answer(site=[SCHEDULE.format(20)])) == []
    found = answer(site=[SCHEDULE.format(19)])  # four rounds of five steps are twenty
    assert codes(found) == [RefusalCode.OFF_PLAN]
    assert found.objections[0].sentence.startswith("round 4 of 4 would be refused: it is not the next part")


def test_a_fixed_plan_that_costs_more_than_the_cap_never_begins(answer):
    found = answer(site=[SCHEDULE.format(20), "policy.lifetime.epsilon=0.1"])
    assert codes(found) == [RefusalCode.OFF_PLAN]
    assert "round 1 of 4 would be refused: the schedule spends epsilon" in found.objections[0].sentence
    assert "the cap is 0.1" in found.objections[0].sentence


def test_without_a_ledger_nothing_is_spent_and_none_is_made(load):
    _, files = load()
    assert spent_so_far(files["site.yaml"]) == {}
    assert not Path(files["site.yaml"].ledger).exists()


def test_what_a_ledger_says_was_spent_counts(answer, ledger, load):
    site = ["policy.lifetime.epsilon=0.5"]
    with_ledger = ledger(site=site)
    assert spent_so_far(load(site=site)[1]["site.yaml"]) == {"c0": ()}
    fits = rounds_within(load(site=site)[1]["site.yaml"].to_filter())
    assert fits > 5
    for round_ in range(1, fits - 1):  # two rounds are left
        with_ledger.reserve(
            Work(run="earlier", round=round_, base="0" * 64), plan(), model="0" * 64, policy="0" * 64
        )
    with_ledger.close()
    before = Path(load(site=site)[1]["site.yaml"].ledger).read_bytes()
    spent = spent_so_far(load(site=site)[1]["site.yaml"])
    assert sum(release.steps for release in spent["c0"]) == 5 * (fits - 2)
    found = answer(site=site)
    assert found.cohorts[0].refused_in == 3
    assert 0 < found.cohorts[0].spent <= 0.5
    assert codes(found) == [RefusalCode.BUDGET_EXHAUSTED]
    assert Path(load()[1]["site.yaml"].ledger).read_bytes() == before


def test_the_rule_of_an_existing_ledger_is_the_one_that_counts(answer, ledger):
    ledger(site=["policy.lifetime.epsilon=1"]).close()
    found = answer()  # the file says 8
    assert found.cohorts[0].cap == 1.0
    assert codes(answer(experiment=["federation.rounds=300"])) == [RefusalCode.BUDGET_EXHAUSTED]


def test_a_ledger_that_cannot_be_read_is_a_reason_to_refuse(answer, load, tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(b"not a ledger")
    found = answer()
    assert codes(found) == [RefusalCode.LEDGER_UNAVAILABLE]
    assert "ledger.sqlite" in found.objections[0].sentence
    assert found.cohorts == ()
    with pytest.raises(LedgerError, match=r"ledger\.sqlite"):
        spent_so_far(load()[1]["site.yaml"])
