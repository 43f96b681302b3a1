"""What a hospital's policy tightens, what it refuses, and why."""

from __future__ import annotations

import dataclasses
import math

import pytest

from privacy.errors import PlanError, RefusalCode
from privacy.policy import Cap, Objection, Policy, is_at_most, tighten
from privacy.unsafe import NoPrivacy, UnsafeWarning
from tests.support.policies import MODEL, OTHER, ask, make_policy, plan


@pytest.mark.parametrize(
    ("field", "asked", "allowed"),
    [
        ("noise_multiplier", 0.5, 0.8),
        ("sampling_probability", 0.4, 0.1),
        ("steps", 101, 100),
        ("max_grad_norm", 2.0, 1.0),
        ("max_records_per_patient", 8, 4),
        ("delta", 1e-3, 1e-6),  # the smaller of lifetime 1e-5 and per run 1e-6
        ("randomness", "seeded", "os"),
    ],
)
def test_each_field_is_tightened_and_no_other(field, asked, allowed):
    assert make_policy().apply(plan(**{field: asked})) == plan(**{field: allowed})


def test_a_plan_tight_enough_stays_as_it_is():
    assert make_policy().apply(plan()) == plan()


def test_a_plan_of_records_protects_patients_where_the_policy_says_so():
    records = plan(unit="record", max_records_per_patient=1)
    assert make_policy().apply(records) == plan(unit="patient", max_records_per_patient=1)
    assert make_policy(unit="record").apply(records) == records
    assert make_policy(unit="record").apply(plan()) == plan()


def test_a_weak_policy_loosens_nothing():
    weak = make_policy(unit="record", randomness="seeded", min_noise_multiplier=1e-3, max_grad_norm=1e9)
    assert weak.apply(plan()) == plan()
    assert weak.apply(plan(randomness="seeded")).randomness == "seeded"


def test_the_delta_of_a_lifetime_counts_too():
    tight = make_policy(lifetime=Cap(epsilon=8.0, delta=1e-9))
    assert tight.apply(plan()).delta == 1e-9


def test_no_steps_and_the_constants_that_cost_nothing_stay():
    asked = plan(steps=0, divisor=1e-3, grad_engine="opacus")
    assert make_policy().apply(asked) == asked


def test_the_meet_of_two_policies_field_by_field():
    a = make_policy(models=frozenset({MODEL, OTHER}), metrics={"loss": 5.0, "kl": 2.0}, unit="record")
    b = make_policy(
        lifetime=Cap(epsilon=9.0, delta=1e-6),
        per_run=Cap(epsilon=1.0, delta=2e-6),
        min_noise_multiplier=0.9,
        max_sampling_probability=0.2,
        max_steps_per_round=50,
        max_grad_norm=2.0,
        max_records_per_patient=1,
        randomness="seeded",
        min_patients=20,
        patients_bound=10_000,
        models=frozenset({OTHER}),
        metrics={"loss": 4.0, "ssim": 1.0},
        min_sites=5,
        max_runtime_s=60.0,
    )
    met = Policy(
        lifetime=Cap(epsilon=8.0, delta=1e-6),
        per_run=Cap(epsilon=1.0, delta=1e-6),
        min_noise_multiplier=0.9,
        max_sampling_probability=0.1,
        max_steps_per_round=50,
        max_grad_norm=1.0,
        max_records_per_patient=1,
        unit="patient",
        randomness="os",
        min_patients=50,
        patients_bound=10_000,
        models=frozenset({OTHER}),
        metrics={"loss": 5.0},
        min_sites=5,
        max_runtime_s=60.0,
    )
    assert tighten(a, b) == tighten(b, a) == met
    assert is_at_most(met, a)
    assert is_at_most(met, b)
    assert not is_at_most(a, b)
    assert not is_at_most(b, a)


LOOSER: list[tuple[str, object]] = [
    ("lifetime", Cap(epsilon=8.1, delta=1e-5)),
    ("lifetime", Cap(epsilon=8.0, delta=1.1e-5)),
    ("per_run", Cap(epsilon=4.1, delta=1e-6)),
    ("per_run", Cap(epsilon=4.0, delta=1.1e-6)),
    ("min_noise_multiplier", 0.7),
    ("max_sampling_probability", 0.11),
    ("max_steps_per_round", 101),
    ("max_grad_norm", 1.1),
    ("max_records_per_patient", 5),
    ("unit", "record"),
    ("randomness", "seeded"),
    ("min_patients", 49),
    ("patients_bound", 4999),
    ("models", frozenset({MODEL, OTHER})),
    ("models", "any"),
    ("metrics", {"loss": 4.9}),
    ("metrics", {"loss": 5.0, "kl": 9.0}),
    ("min_sites", 2),
    ("max_runtime_s", 3601.0),
]


def _stable_id(each: object) -> str:
    """Return a short name of a case: the same in every process, which the order of a set is not."""
    return repr(sorted(each) if isinstance(each, frozenset) else each)[:30]


@pytest.mark.parametrize(("name", "value"), LOOSER, ids=_stable_id)
def test_looser_in_one_field_is_looser(name, value):
    looser = make_policy(**{name: value})
    assert is_at_most(make_policy(), looser)
    assert not is_at_most(looser, make_policy())
    assert tighten(looser, make_policy()) == make_policy()


def test_every_field_has_a_looser_example():
    assert {name for name, _ in LOOSER} == {field.name for field in dataclasses.fields(Policy)}


# --- refusal ----------------------------------------------------------------------------------------------------


def test_a_request_within_the_policy_meets_no_objection():
    assert make_policy().objections(ask()) == ()
    assert make_policy().objections(ask(metrics={"loss": 5.0}, num_sites=9)) == ()
    assert make_policy(models="any").objections(ask(model_hash=OTHER)) == ()


def test_a_plan_that_can_be_tightened_is_no_reason_to_refuse():
    assert make_policy().objections(ask(plan=plan(noise_multiplier=1e-3, sampling_probability=1.0))) == ()


def test_everything_is_objected_to_at_once():
    with pytest.warns(UnsafeWarning):
        none = NoPrivacy(steps=3, batch_patients=4)
    request = ask(plan=none, model_hash=OTHER, num_sites=2, metrics={"loss": 4.9, "kl": 9.0})
    found = make_policy().objections(request)
    assert [objection.code for objection in found] == [
        RefusalCode.POLICY_NO_PRIVACY,
        RefusalCode.POLICY_MODEL,
        RefusalCode.POLICY_SITES,
        RefusalCode.POLICY_METRIC,
        RefusalCode.POLICY_METRIC,
    ]
    assert [objection.sentence for objection in found] == [
        "plain training has no privacy, and no policy allows it; ask with a `privacy` section, or use public data "
        "without a site agent",
        f"the model {OTHER} is not among the 1 of models; have the hospital review it and add its hash, or ask for "
        "one of those",
        "the run has 2 sites, min_sites is 3; enrol more",
        "the metric 'kl' may not leave; metrics of this policy: loss; ask without it, or have the hospital list it",
        "the metric 'loss' would leave with noise multiplier 4.9, and this policy needs 5 or more; ask for it with "
        "more noise",
    ]


def test_an_empty_set_of_models_allows_none():
    (objection,) = make_policy(models=frozenset()).objections(ask())
    assert objection.code is RefusalCode.POLICY_MODEL


def test_a_model_is_not_allowed_because_it_calls_itself_any():
    (objection,) = make_policy().objections(ask(model_hash="any"))
    assert objection.code is RefusalCode.POLICY_MODEL


def test_a_policy_without_metrics_lets_none_leave():
    (objection,) = make_policy(metrics={"loss": 5.0, "kl": 2.0}).objections(ask(metrics={"ssim": 1e9}))
    assert "metrics of this policy: kl, loss; ask" in objection.sentence
    (objection,) = make_policy(metrics={}).objections(ask(metrics={"loss": 1e9}))
    assert "metrics of this policy: none; ask" in objection.sentence


def test_text_from_the_server_is_shown_escaped_and_short():
    request = ask(model_hash="x" * 999, metrics={"\x1b[2J" + "y" * 999: 1.0})
    for objection in make_policy().objections(request):
        assert "\x1b" not in objection.sentence
        assert len(objection.sentence) < 300


def test_a_cohort_below_the_minimum_is_refused_without_telling_its_size():
    assert make_policy().cohort_objection(50) is None
    objection = make_policy().cohort_objection(49)
    assert objection == Objection(
        code=RefusalCode.COHORT_TOO_SMALL,
        sentence="the cohort has fewer patients than the 50 of min_patients; enrol more",
    )


def test_a_request_names_all_its_problems():
    with pytest.raises(PlanError) as caught:
        ask(num_sites=0, metrics={"loss": math.nan, "kl": -1.0})
    assert caught.value.problems == (
        "num_sites must be an integer >= 1, got 0",
        "metrics.loss must be a finite number >= 0, got nan",
        "metrics.kl must be a finite number >= 0, got -1.0",
    )
    assert str(caught.value).startswith("request: num_sites")


def test_a_metric_may_be_asked_for_without_noise():
    assert ask(metrics={"loss": 0, "kl": 0.5}).metrics == {"loss": 0, "kl": 0.5}
