"""The outlook of an experiment as text for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from deploy.budget import CohortBudget
from deploy.plan import Answer, Outlook, SiteOutlook
from privacy.accounting import EpsilonPair

WIDTH = 110


def render(outlook: Outlook) -> str:
    """Return an outlook as lines for a person: one table of all sites, then what each site with a file says."""
    lines = [*_head(outlook), "", _table(outlook)]
    for site in outlook.sites:
        if site.answer is not None:
            lines += ["", *_details(site.site, site.answer)]
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines()) + "\n"


def _head(outlook: Outlook) -> Iterator[str]:
    """Yield what holds for every site."""
    yield f"{outlook.experiment}: {len(outlook.sites)} sites, {outlook.rounds} rounds; no data were opened"
    if outlook.noise_multiplier is None:
        yield "no `privacy` section: plain training, there is no bound on what it tells of a patient"
    else:
        origin = "as given" if outlook.target is None else f"calibrated to epsilon {outlook.target:g}"
        yield f"noise multiplier {outlook.noise_multiplier:.4g}, {origin}"
    yield f"model {outlook.model_hash or 'unknown without data: state model.input_shape'}"


def _table(outlook: Outlook) -> str:
    """Return the table of all sites."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("site", "one round", "all rounds", "delta", "unit", "answer"):
        table.add_column(column, justify="left", no_wrap=True)
    for site in outlook.sites:
        delta, unit = ("-", "none") if site.plan is None else (f"{site.plan.delta:g}", site.plan.unit)
        table.add_row(
            site.site, _epsilon(site.one_round), _epsilon(site.all_rounds), delta, unit, _answer_of(site)
        )
    stream = io.StringIO()
    console = Console(file=stream, width=WIDTH, color_system=None, highlight=False, markup=False)
    console.print(table)
    return stream.getvalue() + "epsilon by PLD / RDP: both are upper bounds, PLD is the tighter one"


def _epsilon(pair: EpsilonPair | None) -> str:
    """Return both figures."""
    return "no bound" if pair is None else f"{pair.pld:.3f} / {pair.rdp:.3f}"


def _answer_of(site: SiteOutlook) -> str:
    """Return a site's answer in a word."""
    if site.answer is None:
        return "no file given"
    if site.answer.objections:
        return "refuses"
    return "tightens" if site.answer.changes else "as asked"


def _details(site: str, answer: Answer) -> Iterator[str]:
    """Yield what a site with a file says."""
    yield f"{site} ({answer.source})"
    for change in answer.changes:
        yield f"  tightens {change.field}: {_value(change.asked)} -> {_value(change.allowed)}"
    for budget in answer.cohorts:
        yield f"  {_budget(budget)}"
    for objection in answer.objections:
        yield f"  refuses, {objection.code.value}: {objection.sentence}"
    for note in answer.notes:
        yield f"  note: {note}"
    if not answer.objections:
        yield "  would run to its end, if the cohort is not below the policy's min_patients"


def _value(value: float | int | str) -> str:
    """Return a value of a plan."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _budget(budget: CohortBudget) -> str:
    """Return the budget of a cohort in a sentence."""
    end = "all rounds fit" if budget.refused_in is None else f"nothing left for round {budget.refused_in}"
    spent = f"epsilon {budget.spent:.3f} of {budget.cap:g} spent at delta {budget.delta:g}"
    return f"cohort {budget.cohort}: {spent}; {end}"
