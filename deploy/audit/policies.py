"""Reservations held against what the hospital allows, and a ledger against the policy as a whole.

A policy may have been changed since. What was reserved under another one (its hash is in the entry) is held against
today's all the same, and what is beyond it is said to be that, not a breach.

What it does not do: look at the number of patients, which no ledger holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from deploy.audit.document import Check, Status
from deploy.audit.ledgers import Reading
from privacy.accounting import delta_is_sensible
from privacy.policy import Policy
from privacy.records import Reservation
from privacy.replay import State
from server.report.words import count, listed, shortened, small

_NOT_SEEN = "Not checked: the number of patients (min_patients), which is never written down."


def check_policy(state: State, policy: Policy, *, run: str | None = None) -> Check:
    """Hold every reservation against a policy.

    Args:
        state: Of the ledger.
        policy: In force now.
        run: Look at this run alone; None for all.
    """
    site = state.genesis.site
    paid = [one for work, one in state.reservations.items() if run is None or work.run == run]
    current = policy.hash()
    broken: list[str] = []
    beyond: list[str] = []
    for one in paid:
        found = [f"entry {one.seq}: {problem}" for problem in breaches(one, policy)]
        (broken if one.fields["policy"] == current else beyond).extend(found)
    older = sum(one.fields["policy"] != current for one in paid)
    status: Status
    if broken:
        status, text = "violated", f"{site} did what its own policy forbids."
    elif beyond:
        status = "attention"
        text = (
            f"{site} has changed its policy: some earlier work is beyond what it allows today, and was within what it "
            "allowed then, as far as the ledger tells."
        )
    else:
        status = "ok"
        text = (
            f"All {count(len(paid), 'reservation')} of {site} keep within its policy: noise, sampling, steps, clip, "
            "unit, model and what one run may spend."
        )
    notes = [f"{older} of {len(paid)} were made under an earlier policy"] if older else []
    return Check(
        name="policy",
        site=site,
        status=status,
        text=text,
        details=(*shortened([*broken, *beyond], 8), *notes, _NOT_SEEN),
    )


def breaches(one: Reservation, policy: Policy) -> list[str]:
    """Return every way in which a reservation is looser than a policy."""
    fields, mechanism = one.fields, one.fields["mechanism"]
    run_cap = fields["run_cap"] or {}
    training, *metrics = one.releases
    rules = [
        (
            training.noise_multiplier < policy.min_noise_multiplier,
            "noise_multiplier",
            training.noise_multiplier,
        ),
        (
            training.sampling_probability > policy.max_sampling_probability,
            "sampling_probability",
            training.sampling_probability,
        ),
        (training.steps > policy.max_steps_per_round, "steps", training.steps),
        (
            _above(mechanism.get("max_grad_norm"), policy.max_grad_norm),
            "max_grad_norm",
            mechanism.get("max_grad_norm"),
        ),
        (
            _above(mechanism.get("max_records_per_patient"), policy.max_records_per_patient),
            "max_records_per_patient",
            mechanism.get("max_records_per_patient"),
        ),
        (
            _above(mechanism.get("plan_delta"), min(policy.lifetime.delta, policy.per_run.delta)),
            "delta",
            mechanism.get("plan_delta"),
        ),
        (policy.unit == "patient" and mechanism.get("unit") != "patient", "unit", mechanism.get("unit")),
        (policy.randomness == "os" and fields["randomness"] != "os", "randomness", fields["randomness"]),
        (policy.models != "any" and fields["model"] not in policy.models, "model", str(fields["model"])[:16]),
        (bool(metrics) and not policy.metrics, "metrics", len(metrics)),
        (_above(run_cap.get("epsilon"), policy.per_run.epsilon), "run_cap", run_cap.get("epsilon")),
    ]
    return [f"{name} = {value} is beyond the policy" for broken, name, value in rules if broken]


def check_terms(reading: Reading, policy: Policy) -> tuple[Check, ...]:
    """Hold cap, delta and libraries of a ledger against policy and installation, and list what people did to it."""
    state = reading.state
    if state is None:
        return ()
    return (_cap_and_delta(state, policy), _libraries(state), *_by_people(reading))


def _cap_and_delta(state: State, policy: Policy) -> Check:
    """Hold cap and delta of the ledger against the policy."""
    site, delta, lifetime = state.genesis.site, state.genesis.delta, policy.lifetime
    figures = (
        f"ledger: epsilon {state.cap:g} at delta {small(delta)}; policy: epsilon {lifetime.epsilon:g} at delta "
        f"{small(lifetime.delta)}{_bound(policy)}",
    )
    if not delta_is_sensible(delta, policy.patients_bound):
        text = (
            f"Delta of {site} is not below one over the number of patients it may have: with such a delta one patient "
            "could be published in full."
        )
        return Check(name="cap-and-delta", site=site, status="violated", text=text, details=figures)
    if state.cap > lifetime.epsilon or delta > lifetime.delta:
        text = (
            f"The ledger of {site} allows more than its policy says today. The smaller cap holds for new work; lower "
            "that of the ledger, or correct the policy."
        )
        return Check(name="cap-and-delta", site=site, status="attention", text=text, details=figures)
    text = f"Cap and delta of the ledger of {site} are those of its policy, or tighter."
    return Check(name="cap-and-delta", site=site, status="ok", text=text, details=figures)


def _bound(policy: Policy) -> str:
    """Return the public bound on patients; that of a virtual hospital, 1, bounds nothing."""
    return f", for at most {policy.patients_bound:,} patients" if policy.patients_bound > 1 else ""


def _libraries(state: State) -> Check:
    """Compare the libraries at the beginning of the ledger with those installed here."""
    site = state.genesis.site
    changed = []
    for name, before in state.genesis.libraries.items():
        try:
            now = version(name)
        except PackageNotFoundError:
            now = "not installed"
        if now != before:
            changed.append(f"{name}: {before} when the ledger began, {now} where this audit ran")
    if changed:
        text = f"Libraries under the noise of {site} have changed since its ledger began: was that a planned update?"
        return Check(name="libraries", site=site, status="attention", text=text, details=tuple(changed))
    return Check(
        name="libraries",
        site=site,
        status="ok",
        text=f"The libraries under the noise of {site} are those its ledger began with.",
        details=tuple(f"{name} {before}" for name, before in state.genesis.libraries.items()),
    )


def _by_people(reading: Reading) -> list[Check]:
    """Return what people at the hospital did to the ledger: caps, keys, incidents."""
    found = []
    raised = [e for e in reading.entries if e.kind == "CAP_CHANGE" and e.fields["to"] > e.fields["from"]]
    if raised:
        steps = tuple(f"entry {e.seq}: from {e.fields['from']:g} to {e.fields['to']:g}" for e in raised)
        text = f"The cap of {reading.site} was raised, each time with two signatures. Ask who decided it and why."
        found.append(
            Check(name="cap-raised", site=reading.site, status="attention", text=text, details=steps)
        )
    incidents = [e for e in reading.entries if e.kind == "INCIDENT"]
    if incidents:
        codes = [f"{e.fields['code']} ({e.fields['reference'] or 'no ticket'})" for e in incidents]
        text = f"{reading.site} has written down {count(len(incidents), 'incident')}: {listed(shortened(codes))}."
        found.append(Check(name="incidents", site=reading.site, status="attention", text=text))
    return found


def _above(value: object, most: float) -> bool:
    """Return whether a constant of an entry is above a limit, or no number at all."""
    return not isinstance(value, int | float) or value > most


def check_plan(site: str, spent: Sequence[object], expected: object) -> Check:
    """Hold what a site without a ledger says that it did against the plan of the configuration."""
    odd = [item for item in spent if item != expected]
    if odd:
        text = f"{site} released something other than the plan of the configuration says."
        return Check(name="policy", site=site, status="violated", text=text, details=(f"{odd[0]}",))
    rounds = count(len(spent), "round")
    text = f"All {rounds} of {site} have the parameters of the configuration. It has no policy of its own."
    return Check(name="policy", site=site, status="ok", text=text)
