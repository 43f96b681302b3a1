"""NIST SP 800-226, item by item: what a deployment must disclose, the answer, and where the answer comes from.

No item is ever left out. What is not known is None, which every reader of this report sees in amber.

References:
    NIST SP 800-226 (March 2025), Guidelines for Evaluating Differential Privacy Guarantees; How to DP-fy ML
    (Ponomareva et al. 2023), section 5.3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from deploy.audit.document import AuditReport, Disclosure, Mechanism
from deploy.audit.evidence import down, shown_by
from server.report.words import count, listed, number, shortened, small, up

_LEDGER = "the ledger, recomputed"
_PERSON = "a person; see the last section"
_SOFTWARE = "this software"


def disclose(report: AuditReport) -> AuditReport:
    """Return the report with every item of the list."""
    return dataclasses.replace(report, disclosures=tuple(make(report) for make in _ITEMS))


def _bounds(report: AuditReport) -> Disclosure:
    said = [
        f"{one.site}: epsilon {up(one.worst.counted)} (PLD {up(one.worst.pld)}, RDP {up(one.worst.rdp)}) at delta "
        f"{small(one.delta)}"
        for one in report.sites
    ]
    answer = "; ".join(shortened(said, 8)) if said else None
    if answer and report.subject.claims != "dp":
        answer = f"Nothing is claimed. Had the noise been secret: {answer}"
    return Disclosure(item="Epsilon and delta", answer=answer, source=_LEDGER)


def _variant(report: AuditReport) -> Disclosure:
    words = {"add_remove": "one unit added or removed", "replace_one": "one unit replaced by another"}
    relations = sorted({words[one.neighbouring] for one in report.sites})
    answer = f"Approximate, (epsilon, delta). Neighbours: {listed(relations)}." if relations else None
    return Disclosure(
        item="Variant and neighbouring relation", answer=answer, source="the ledger's first entry"
    )


def _unit(report: AuditReport) -> Disclosure:
    units = sorted({one.unit for one in report.sites})
    caps = sorted({str(item.constants.get("max_records_per_patient", "all")) for item in _mechanisms(report)})
    answer = None
    if units:
        answer = (
            f"One {listed(units)}, with everything recorded of them. At most {listed(caps) if caps else 'all'} records "
            "of a patient in a step, drawn anew each time; the patient's mean gradient is clipped as a whole, so the "
            "number of records costs no privacy."
        )
        if units == ["record"]:
            answer = "One record. A patient with several records is protected less than epsilon says."
    return Disclosure(item="Unit and cap on contributions", answer=answer, source=_LEDGER)


def _trust(report: AuditReport) -> Disclosure:
    return Disclosure(
        item="Trust model",
        answer=(
            "Federated: each hospital adds its own noise before anything leaves, so neither the centre nor other "
            "hospitals nor the network need be trusted with updates. The hospital's own software and staff are."
        ),
        source="how this software works; the people at the centre are for a person to name",
    )


def _mechanism(report: AuditReport) -> Disclosure:
    found = [_in_words(item) for item in _mechanisms(report)]
    answer = "; ".join(shortened(list(dict.fromkeys(found)), 6)) if found else None
    return Disclosure(item="Mechanism and parameters", answer=answer, source=_LEDGER)


def _composition(report: AuditReport) -> Disclosure:
    rules = sorted({one.rule for one in report.sites})
    versions = [
        f"{name} {report.subject.software[name]}"
        for name in ("opacus", "dp-accounting")
        if name in report.subject.software
    ]
    answer = (
        f"Sequential, over all rounds and studies on the same patients. Decides: {'; '.join(rules)}. Checked by RDP "
        f"and by privacy loss distribution (pessimistic, connect the dots): {listed(versions)}. No amplification by "
        "client sampling or aggregation is claimed; by sampling only where it was Poisson."
        if rules and versions
        else None
    )
    return Disclosure(item="Accountants and composition", answer=answer, source=_SOFTWARE)


def _unprotected(report: AuditReport) -> Disclosure:
    open_ones = [row.quantity.replace("-", " ") for row in report.coverage if row.status == "not-covered"]
    unknown = [row.quantity.replace("-", " ") for row in report.coverage if row.status == "not-provided"]
    answer = f"Not covered: {listed(open_ones)}." if open_ones else "Nothing beside what nobody knows."
    if unknown:
        answer += f" Not known: {listed(unknown)}."
    return Disclosure(item="Unprotected quantities", answer=answer, source="the section on what left")


def _releases(report: AuditReport) -> Disclosure:
    left = [
        f"{one.site}: {sum(run.committed for run in one.runs)} updates in {count(len(one.runs), 'run')}, "
        + (
            "no cap"
            if one.cap is None
            else f"epsilon {number(max(0.0, one.cap - one.worst.counted), places=2)} of {one.cap:g} left"
        )
        for one in report.sites
    ]
    answer = (
        f"Many, one a round; the budget never renews itself. {'; '.join(shortened(left, 8))}"
        if left
        else None
    )
    return Disclosure(item="Number of releases and what is left", answer=answer, source=_LEDGER)


def _preparation(report: AuditReport) -> Disclosure:
    row = next((row for row in report.coverage if row.quantity == "standardisation-statistics"), None)
    answer = (
        None
        if row is None or row.status == "not-provided"
        else f"{row.sentence} Anything done outside: {_PERSON}."
    )
    return Disclosure(
        item="Pre-processing and exploration", answer=answer, source="the data section of the configuration"
    )


def _tuning(report: AuditReport) -> Disclosure:
    return Disclosure(item="Tuning of settings", answer=None, source=_PERSON)


def _post_processing(report: AuditReport) -> Disclosure:
    answer = (
        "Updates are averaged; the model of the last round is kept." if report.subject.kind == "run" else None
    )
    return Disclosure(item="Post-processing", answer=answer, source=_SOFTWARE if answer else _PERSON)


def _libraries(report: AuditReport) -> Disclosure:
    answer = ", ".join(f"{name} {version}" for name, version in report.subject.software.items())
    return Disclosure(
        item="Implementation: libraries", answer=answer or None, source="installed where the audit ran"
    )


def _random(report: AuditReport) -> Disclosure:
    kinds = {item.randomness for item in _mechanisms(report)}
    said = {
        "os": "AES-256-CTR, each stream with a key from the operating system; never a library's global generator",
        "seeded": "AES-256-CTR with keys from a seed, which anybody can compute again: no claim is made for it",
    }
    answer = "; ".join(said[kind] for kind in sorted(kinds)) if kinds else None
    return Disclosure(item="Implementation: randomness", answer=answer, source=_LEDGER)


def _floating_point(report: AuditReport) -> Disclosure:
    names = [str(item.constants.get("name", "")) for item in _mechanisms(report)]
    if names and all("discrete" in name for name in names):
        return Disclosure(
            item="Implementation: floating point",
            answer=(
                "Clipped gradients are integers on a lattice that does not depend on data, summed without error, and "
                "the noise is a discrete Gaussian sampled exactly: no low bits tell summands apart."
            ),
            source="privacy/discrete.py",
        )
    return Disclosure(
        item="Implementation: floating point",
        answer=(
            "Noise is float64 by inverse transform; what is released is rounded to a grid that does not depend on "
            "data, which removes the low bits that tell summands apart. It is no exact discrete mechanism."
        ),
        source="privacy/noise.py",
    )


def _side_channels(report: AuditReport) -> Disclosure:
    return Disclosure(
        item="Implementation: timing and side channels",
        answer=(
            "The number of steps is fixed and empty samples are steps like others. Wall time, memory and power are not "
            "hidden from somebody on the same machine, and that a round took place is visible on the network."
        ),
        source=_SOFTWARE,
    )


def _access(report: AuditReport) -> Disclosure:
    return Disclosure(item="Security and access control", answer=None, source=_PERSON)


def _exposure(report: AuditReport) -> Disclosure:
    return Disclosure(item="Exposure of the collected data", answer=None, source=_PERSON)


def _utility(report: AuditReport) -> Disclosure:
    answer = None
    if report.utility is not None:
        by_measure: dict[str, list[str]] = {}
        for row in report.utility.rows:
            by_measure.setdefault(row.measure, []).append(f"{row.arm.lower()} {number(row.value)}")
        answer = "; ".join(f"{measure}: {', '.join(said)}" for measure, said in list(by_measure.items())[:3])
    return Disclosure(item="Utility with and without noise", answer=answer, source="report.json of the run")


def _bias(report: AuditReport) -> Disclosure:
    return Disclosure(item="Bias and subgroups", answer=None, source=_PERSON)


def _empirical(report: AuditReport) -> Disclosure:
    audit = report.evidence.audit
    answer = None
    if audit is not None:
        answer = (
            f"Lower bound {down(shown_by(audit))} at {100 * audit['confidence']:g} % confidence, against "
            f"{up(audit['epsilon_pld'])} claimed for the same steps; {audit['num_canaries']:,} canaries, white box. "
            f"{'THE CLAIM IS REFUTED.' if audit['violated'] else 'Not refuted.'}"
        )
    return Disclosure(item="Empirical bound", answer=answer, source="the section on attacks")


def _why(report: AuditReport) -> Disclosure:
    return Disclosure(item="Justification and approvals", answer=None, source=_PERSON)


def _mechanisms(report: AuditReport) -> list[Mechanism]:
    """Return the mechanisms of all sites."""
    return [item for one in report.sites for item in one.mechanisms]


def _in_words(item: Mechanism) -> str:
    """Return a mechanism and its parameters."""
    release, constants = item.release, item.constants
    clip = constants.get("max_grad_norm", "not provided")
    name = str(constants.get("name", ""))
    is_special = "banded" in name or "discrete" in name
    what = f"{name}, charged as DP-SGD" if is_special else "DP-SGD with Gaussian noise"
    return (
        f"{what}: noise multiplier {release.noise_multiplier:.5g}, clip norm {clip}, "
        f"{release.sampler} sampling with q = {release.sampling_probability:.5g}, {release.steps} steps a round, "
        f"divisor {constants.get('divisor', 'not provided')}"
    )


_ITEMS: tuple[Callable[[AuditReport], Disclosure], ...] = (
    _bounds, _variant, _unit, _trust, _mechanism, _composition, _unprotected, _releases, _preparation, _tuning,
    _post_processing, _libraries, _random, _floating_point, _side_channels, _access, _exposure, _utility, _bias,
    _empirical, _why,
)  # fmt: skip
