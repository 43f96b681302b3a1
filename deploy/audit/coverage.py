"""What leaves a hospital, and what epsilon covers of it: from entries, settings and how this software works.

What nobody here can know (was another tool used on these patients? which round does the centre publish?) is said to be
not provided, never assumed to be harmless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from deploy.audit.document import Coverage, Departure, RunAccount, SiteAccount
from deploy.audit.ledgers import Reading
from deploy.config import Experiment
from deploy.site import SiteConfig
from privacy.coverage import Practices, Quantity, list_coverage
from privacy.policy import Policy
from server.report.words import listed, shortened

_CENTRE_CHOOSES = (
    "Not provided: the centre decides when to stop and which round's model is published. Ask whether it looked at "
    "figures that were computed on patients without noise; if so, the epsilon does not count what the choice tells."
)
_TUNING = (
    "Not provided: whether somebody chose the settings by earlier runs on these patients outside this ledger. Runs "
    "through this software are in it and count; others would come on top."
)


def cover_site(config: SiteConfig, policy: Policy) -> tuple[Coverage, ...]:
    """Return what epsilon covers at a hospital."""
    practices = Practices(
        standardisation=_standardisation(config.data),
        early_stopping=False,
        model_choice="last-round",
        tuning_runs="ledger",
        zmap="private" if any("zmap" in name for name in policy.metrics) else "none",
        reported_metrics="private" if policy.metrics else "none",
    )
    unknown = {
        Quantity.EARLY_STOPPING: _CENTRE_CHOOSES,
        Quantity.ROUND_CHOICE: _CENTRE_CHOOSES,
        Quantity.TUNING_RUNS: _TUNING,
    }
    return _rows(practices, unknown)


def cover_run(experiment: Experiment, metrics: Sequence[str]) -> tuple[Coverage, ...]:
    """Return what epsilon covers in a simulated run.

    Args:
        experiment: What was run.
        metrics: Names of the measures in its report.
    """
    practices = Practices(
        standardisation=_standardisation(experiment.data),
        early_stopping=False,
        model_choice="last-round",
        tuning_runs="ledger",
        zmap="raw" if any("zmap" in name for name in metrics) else "none",
        reported_metrics="raw" if metrics else "none",
    )
    return _rows(practices, {Quantity.TUNING_RUNS: _TUNING})


def departures_of_ledger(reading: Reading, account: SiteAccount, policy: Policy) -> tuple[Departure, ...]:
    """Return what left a hospital, by its ledger."""
    updates = sum(run.committed for run in account.runs)
    unsent = sum(run.reserved for run in account.runs)
    models = [entry.fields for entry in reading.entries if entry.kind == "MODEL_RELEASE"]
    audiences = ", ".join(sorted({str(fields["audience"]) for fields in models}))
    names = listed(shortened(list(policy.metrics))) if policy.metrics else ""
    return (
        _updates(updates, account.runs),
        Departure(
            what="Work that was paid for and never sent",
            times=_times(unsent),
            to="nobody",
            covered="spent" if unsent else "not-used",
            note="The computer stopped, or the round was too late. Its cost counts in full all the same."
            if unsent
            else "Every reservation was followed by an update.",
        ),
        _refused(account),
        Departure(
            what="Figures about patients (losses, scores, images)",
            times="as the policy lists" if names else "never",
            to="the coordinating centre" if names else "nobody",
            covered="spent" if names else "not-used",
            note=f"With noise, counted in the ledger: {names}."
            if names
            else "The policy lists none, so none leaves.",
        ),
        Departure(
            what="Models released to others",
            times=_times(len(models)),
            to=audiences or "nobody",
            covered="spent" if models else "not-used",
            note="Computed from updates that are paid for: it costs nothing more."
            if models
            else "None is written down. What the centre releases has to be asked there.",
        ),
        _facts(),
        _never(),
    )


def departures_of_run(accounts: Sequence[SiteAccount], *, has_plain_arms: bool) -> tuple[Departure, ...]:
    """Return what left the virtual hospitals of a run."""
    runs = [run for account in accounts for run in account.runs]
    found = [
        _updates(sum(run.committed for run in runs), runs),
        *(_refused(one) for one in accounts if one.refusals),
    ]
    if has_plain_arms:
        found.append(
            Departure(
                what="Updates of the arms without noise",
                times="every round of them",
                to="the simulated centre",
                covered="not-covered",
                note="They exist to compare with, in a simulation only: no hospital's agent would send them.",
            )
        )
    found.append(
        Departure(
            what="Figures and images in report.html",
            times="once",
            to="whoever reads the report",
            covered="not-covered",
            note="Computed on patients without noise, as a simulation may; in a deployment they stay at the hospital.",
        )
    )
    return (*found, _facts(), _never())


def _updates(number: int, runs: Sequence[RunAccount]) -> Departure:
    """Return the updates of training."""
    studies = len({run.run for run in runs})
    return Departure(
        what="Model updates: changes of the model's numbers, with noise",
        times=f"{_times(number)}, in {'1 study' if studies == 1 else f'{studies} studies'}"
        if number
        else "never",
        to="the coordinating centre",
        covered="spent" if number else "not-used",
        note="This is what epsilon counts, every one of them.",
    )


def _refused(account: SiteAccount) -> Departure:
    """Return what was asked for and refused."""
    number = len(account.refusals)
    codes = listed(shortened(sorted({one.code for one in account.refusals}), 4)) if number else ""
    return Departure(
        what=f"Requests that {account.site} refused",
        times=_times(number),
        to="nobody: only the reason's code was sent",
        covered="not-used",
        note=f"No data were opened for them. Codes: {codes}." if number else "Nothing was refused.",
    )


def _facts() -> Departure:
    """Return what travels beside updates."""
    return Departure(
        what="Facts about the work: that and when the hospital took part, its settings, ledger heads, failure codes",
        times="with every request",
        to="the coordinating centre; heads also the other hospitals",
        covered="not-covered",
        note="Nothing in them is computed from patients' records, but no epsilon protects them either.",
    )


def _never() -> Departure:
    """Return what the software has no way to send."""
    return Departure(
        what="Scans, tables, patient identifiers, numbers of patients, file names, text of errors",
        times="never",
        to="nobody",
        covered="not-used",
        note="There is no message that could hold them.",
    )


def _rows(practices: Practices, unknown: Mapping[Quantity, str]) -> tuple[Coverage, ...]:
    """Return a row for every quantity; what nobody here can know is said to be that."""
    return tuple(
        Coverage(quantity=row.quantity.value, status="not-provided", sentence=unknown[row.quantity])
        if row.quantity in unknown
        else Coverage(quantity=row.quantity.value, status=row.status, sentence=row.sentence)
        for row in list_coverage(practices)
    )


def _standardisation(data: Any) -> Literal["none", "public-constants"]:  # noqa: ANN401 - any data section
    """Return what intensities are scaled by: no loader of ours has a way to use statistics of its patients."""
    if data.kind in ("toy", "phantom"):
        return "none"
    source = getattr(data, "source", data)
    return "none" if getattr(source, "standardise", "") == "none" else "public-constants"


def _times(number: int) -> str:
    """Return how often, in words."""
    return {0: "never", 1: "once"}.get(number, f"{number:,} times")
