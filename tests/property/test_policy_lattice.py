"""Policies form a lattice, and a plan under a policy is never looser: over generated policies and plans."""

from __future__ import annotations

import dataclasses
import math

import hypothesis.strategies as st
from hypothesis import given, settings

from privacy.accounting import delta_is_sensible
from privacy.errors import PlanError
from privacy.plan import PrivacyPlan
from privacy.policy import MAX_PATIENTS, Cap, Policy, is_at_most, tighten

EXAMPLES = settings(max_examples=2 * settings().max_examples)
HASHES = tuple(f"{index:064x}" for index in range(4))
positive = st.one_of(st.sampled_from([0.5, 1.0, 2.0]), st.floats(1e-6, 1e6))
counts = st.one_of(st.integers(1, 4), st.integers(1, 100_000))
probabilities = st.one_of(st.sampled_from([0.1, 0.5, 1.0]), st.floats(1e-6, 1.0))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Return a valid policy; values come from few, so that equal ones meet."""
    bound = draw(st.one_of(st.integers(1, 4), st.integers(1, MAX_PATIENTS)))
    deltas = st.one_of(
        st.just(math.nextafter(1 / bound, 0)), st.sampled_from([1e-12, 1e-11]), st.floats(1e-15, 0.999)
    ).filter(lambda delta: delta_is_sensible(delta, bound))
    caps = st.builds(Cap, epsilon=positive, delta=deltas)
    return Policy(
        lifetime=draw(caps),
        per_run=draw(caps),
        min_noise_multiplier=draw(positive),
        max_sampling_probability=draw(probabilities),
        max_steps_per_round=draw(counts),
        max_grad_norm=draw(positive),
        max_records_per_patient=draw(counts),
        unit=draw(st.sampled_from(["patient", "record"])),
        randomness=draw(st.sampled_from(["os", "seeded"])),
        min_patients=draw(st.integers(1, bound)),
        patients_bound=bound,
        models=draw(st.one_of(st.just("any"), st.frozensets(st.sampled_from(HASHES)))),
        metrics=draw(st.dictionaries(st.sampled_from(["loss", "kl", "ssim"]), positive)),
        min_sites=draw(counts),
        max_runtime_s=draw(positive),
    )


@st.composite
def plans(draw: st.DrawFn) -> PrivacyPlan:
    """Return a valid plan."""
    unit = draw(st.sampled_from(["patient", "record"]))
    return PrivacyPlan(
        sampling_probability=draw(probabilities),
        steps=draw(st.integers(0, 100_000)),
        noise_multiplier=draw(positive),
        max_grad_norm=draw(positive),
        divisor=draw(positive),
        delta=draw(st.floats(1e-15, 0.999)),
        unit=unit,
        max_records_per_patient=1 if unit == "record" else draw(counts),
        randomness=draw(st.sampled_from(["os", "seeded"])),
        grad_engine=draw(st.sampled_from(["vmap", "opacus"])),
    )


@st.composite
def tighter(draw: st.DrawFn, policy: Policy) -> Policy:
    """Return a policy that is at most `policy`: fields of another, each where that is no looser."""
    other = draw(policies())
    for field in draw(st.lists(st.sampled_from(dataclasses.fields(Policy)), min_size=4, unique=True)):
        try:
            changed = dataclasses.replace(policy, **{field.name: getattr(other, field.name)})
        except PlanError:  # a mixture may be invalid
            continue
        policy = changed if is_at_most(changed, policy) else policy
    return policy


def is_plan_at_most(a: PrivacyPlan, b: PrivacyPlan) -> bool:
    """Return whether a plan is in no field looser than another, and equal where nothing is tighter."""
    return all(
        (
            a.sampling_probability <= b.sampling_probability,
            a.steps <= b.steps,
            a.noise_multiplier >= b.noise_multiplier,
            a.max_grad_norm <= b.max_grad_norm,
            a.delta <= b.delta,
            a.max_records_per_patient <= b.max_records_per_patient,
            (a.unit, b.unit) != ("record", "patient"),
            (a.randomness, b.randomness) != ("seeded", "os"),
            (a.divisor, a.neighbouring, a.grad_engine) == (b.divisor, b.neighbouring, b.grad_engine),
        )
    )


@EXAMPLES
@given(policies(), policies())
def test_the_meet_is_commutative(a, b):
    assert tighten(a, b) == tighten(b, a)
    assert tighten(a, b).hash() == tighten(b, a).hash()


@EXAMPLES
@given(policies(), policies(), policies())
def test_the_meet_is_associative(a, b, c):
    assert tighten(tighten(a, b), c) == tighten(a, tighten(b, c))


@EXAMPLES
@given(policies(), policies())
def test_the_meet_is_idempotent(a, b):
    met = tighten(a, b)
    assert tighten(a, a) == a
    assert tighten(met, a) == tighten(met, b) == tighten(met, met) == met


@EXAMPLES
@given(policies(), policies())
def test_the_meet_is_at_most_both_and_valid(a, b):
    """Validity is not free: the deltas must be below one over the larger number of patients, too."""
    met = tighten(a, b)
    assert is_at_most(met, a)
    assert is_at_most(met, b)
    assert delta_is_sensible(met.lifetime.delta, max(a.patients_bound, b.patients_bound))
    assert delta_is_sensible(met.per_run.delta, max(a.patients_bound, b.patients_bound))
    assert met.min_patients <= met.patients_bound
    assert Policy.from_dict(met.to_dict()) == met


@EXAMPLES
@given(policies(), policies(), st.data())
def test_the_meet_is_the_greatest_of_those_at_most_both(a, b, data):
    below = data.draw(tighter(tighten(a, b)))
    assert is_at_most(below, a)
    assert is_at_most(below, b)
    assert is_at_most(below, tighten(a, b))


@EXAMPLES
@given(policies(), policies(), policies())
def test_whatever_is_at_most_both_is_at_most_the_meet(a, b, c):
    assert (is_at_most(c, a) and is_at_most(c, b)) == is_at_most(c, tighten(a, b))


@EXAMPLES
@given(policies(), policies())
def test_order_and_meet_say_the_same(a, b):
    assert is_at_most(a, b) == (tighten(a, b) == a)


@EXAMPLES
@given(policies(), st.data())
def test_the_order_is_reflexive_antisymmetric_and_transitive(a, data):
    b = data.draw(tighter(a))
    c = data.draw(tighter(b))
    assert is_at_most(a, a)
    assert is_at_most(c, a)
    assert (is_at_most(a, b) and is_at_most(b, a)) == (a == b)


def test_the_generator_of_tighter_policies_finds_some():
    """Otherwise the two tests above would only compare a policy with itself."""
    found = 0

    @EXAMPLES
    @given(st.data())
    def count(data):
        nonlocal found
        policy = data.draw(policies())
        found += data.draw(tighter(policy)) != policy

    count()
    assert found >= 0.3 * EXAMPLES.max_examples


@EXAMPLES
@given(policies(), plans())
def test_a_plan_is_never_looser_under_a_policy_and_tightened_once(policy, plan):
    tightened = policy.apply(plan)
    assert is_plan_at_most(tightened, plan)
    assert policy.apply(tightened) == tightened


@EXAMPLES
@given(policies(), plans())
def test_a_plan_under_a_policy_keeps_to_it(policy, plan):
    tightened = policy.apply(plan)
    assert tightened.noise_multiplier >= policy.min_noise_multiplier
    assert tightened.sampling_probability <= policy.max_sampling_probability
    assert tightened.steps <= policy.max_steps_per_round
    assert tightened.max_grad_norm <= policy.max_grad_norm
    assert tightened.max_records_per_patient <= policy.max_records_per_patient
    assert tightened.delta <= min(policy.lifetime.delta, policy.per_run.delta)
    assert delta_is_sensible(tightened.delta, policy.patients_bound)
    assert policy.unit == "record" or tightened.unit == "patient"
    assert policy.randomness == "seeded" or tightened.randomness == "os"


@EXAMPLES
@given(policies(), policies(), plans())
def test_two_policies_tighten_a_plan_as_their_meet_does_in_either_order(a, b, plan):
    met = tighten(a, b).apply(plan)
    assert met == a.apply(b.apply(plan)) == b.apply(a.apply(plan))


@EXAMPLES
@given(policies(), policies(), plans())
def test_a_tighter_policy_gives_a_tighter_plan(a, b, plan):
    assert is_plan_at_most(tighten(a, b).apply(plan), a.apply(plan))


@EXAMPLES
@given(policies().filter(lambda policy: policy.min_patients < policy.patients_bound))
def test_the_smaller_number_of_patients_is_the_looser(policy):
    """So a "meet" that took the smaller one would not be at most both."""
    fewer = dataclasses.replace(policy, patients_bound=policy.patients_bound - 1)
    assert is_at_most(policy, fewer)
    assert not is_at_most(fewer, policy)
