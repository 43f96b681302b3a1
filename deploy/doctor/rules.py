"""Check of the policy: what a file may say, and a data-protection officer should know of."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.doctor.checks import Visit, check
from deploy.doctor.findings import Said, Severity, note, ok, warning
from deploy.site import PolicySection

EPSILON = 10.0
"""Above it little is promised: e to the 10 is 22,000."""

NOISE = 0.3
SAMPLING = 0.5
RECORDS = 1000
PATIENTS = 10
FAILS = 0.1 * (1 + 1e-9)
"""Largest delta, in parts of one over the bound on the patients; a little above a tenth, which floats may miss."""


@check(
    "policy.sane",
    asks="No line of the policy gives away more than is usual.",
    worst=Severity.WARNING,
    way_out="Change the line that it names, or have the data-protection officer agree to it.",
)
def policy(visit: Visit) -> Iterator[Said]:
    """Say of each generous line what it means for patients."""
    section = visit.site.policy
    said = [*_amounts(section), *_sources(section), *_company(section)]
    yield from said or (ok("no line of the policy is out of the ordinary"),)
    if section.models == ():
        yield note(
            "`policy.models` is empty: nothing can be trained here", "list the hash of a reviewed model"
        )


def _amounts(section: PolicySection) -> Iterator[Said]:
    """Yield which figures promise little."""
    cap = section.lifetime
    if cap.epsilon > EPSILON:
        yield warning(
            f"`policy.lifetime.epsilon` {cap.epsilon:g} promises a patient next to nothing: whoever sees the model may "
            "become almost certain that they took part",
            f"set it to {EPSILON:g} or less",
        )
    if cap.delta * section.patients_bound > FAILS:
        yield warning(
            f"`policy.lifetime.delta` {cap.delta:g} is large for so many patients: the promise may fail for one of "
            "them with more than a chance in ten",
            "set it to a tenth of 1 / policy.patients_bound, or less",
        )
    if section.min_noise_multiplier < NOISE:
        yield warning(
            f"`policy.min_noise_multiplier` {section.min_noise_multiplier:g} allows so little noise that a single "
            "patient's share of an update can be seen",
            f"set it to {NOISE:g} or more; 0.8 is usual",
        )
    if section.max_sampling_probability > SAMPLING:
        yield warning(
            f"`policy.max_sampling_probability` {section.max_sampling_probability:g}: most patients are part of every "
            "step, and no longer protected by chance",
            f"set it to {SAMPLING:g} or less; 0.1 is usual",
        )


def _sources(section: PolicySection) -> Iterator[Said]:
    """Yield which choices give up a protection."""
    if section.randomness == "seeded":
        yield warning(
            "`policy.randomness: seeded` lets noise be drawn again and taken away: no patient is protected",
            "set it to os; seeded is for simulations",
        )
    if section.unit == "record":
        yield warning(
            "`policy.unit: record` protects single scans: a patient with several has that much less",
            "set it to patient",
        )
    if section.models == "any":
        yield warning(
            "`policy.models: any` lets the server choose what learns from patients, reviewed or not",
            "list the hashes of reviewed models, as `python -m deploy plan` shows them",
        )
    if section.max_records_per_patient > RECORDS:
        yield warning(
            f"`policy.max_records_per_patient` {section.max_records_per_patient}: any number of a patient's scans may "
            "be read in one step",
            f"set it to what a study needs; 8 is usual, {RECORDS} is much",
        )
    for name, noise in section.metrics.items():
        if noise < NOISE:
            yield warning(
                f"`policy.metrics.{name}` {noise:g} lets a figure about patients leave with hardly any noise",
                f"set it to {NOISE:g} or more, or take the metric out",
            )


def _company(section: PolicySection) -> Iterator[Said]:
    """Yield where patients are few, or this hospital is alone."""
    if section.min_sites == 1:
        yield warning(
            "`policy.min_sites: 1` allows a run of this hospital alone: the aggregate is its own update, and what it "
            "tells of patients is not mixed with that of others",
            "set it to 3 or more",
        )
    if section.min_patients < PATIENTS:
        yield warning(
            f"`policy.min_patients` {section.min_patients} allows to train on a handful, each of whom weighs much",
            f"set it to {PATIENTS} or more",
        )
