"""`ledger explain`: a ledger in plain sentences, for a data-protection officer.

What it does not do: soften a figure. Bounds are rounded up, what is left is rounded down, and what nobody here can know
is said to be that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from deploy.audit.coverage import cover_site
from deploy.audit.evidence import down
from deploy.audit.verdict import right_at_most
from deploy.ledger.failures import UnmetError
from deploy.ledger.opening import Book, ledger_of, open_ledger, read_book
from deploy.ledger.refusals import explain_refusal
from deploy.ledger.standing import Spent, left, policy_notes, spent, spent_by_cohort
from deploy.ledger.studies import Study, studies_of
from deploy.ledger.wording import AUDIENCES, describe, exact, moment, name, release_words, short
from deploy.site import SiteConfig, load_site
from privacy import roster
from privacy.administration import spent_on
from privacy.filters import RenyiFilter
from privacy.releases import merge_releases
from privacy.replay import State
from server.report.words import count, listed, small, up

LOCAL = "local: do not share"

_FILTER_WHY = (
    "Each piece of work is measured by the Rényi divergence of order {order}: how far apart its results with and "
    "without one patient can be. The order was fixed before anything was spent and never changes. At one order the "
    "costs of all work simply add up, and the sum holds even if a study, its noise or its number of rounds was chosen "
    "after seeing the results of the one before, as long as each cost is added and held against the cap before the "
    "work runs. That is what this ledger does. (Feldman and Zrnic 2021, arXiv:2008.11193.)"
)
_FILTER_COST = (
    "The epsilon of the sum is what the cap is held against. Turning a sum into an epsilon costs something by itself, "
    "so the very first round costs more than later ones. Other accountants (PLD, RDP) often give a smaller figure, "
    "which holds only where everything was fixed in advance."
)
_SCHEDULE_WHY = (
    "Everything that may ever run on these patients was written down in entry 0, before the first result was seen, and "
    "the epsilon of all of it was computed once (by privacy loss distribution): it is not above the cap. Running only "
    "a part of it, in its order, can never reveal more than the whole, and costs no less. What is not the next part is "
    "refused."
)


def explain(site: Path) -> Iterator[str]:
    """Yield the ledger of a hospital in sentences, a paragraph or list item each.

    Raises:
        DeployError: the site's file or its ledger is missing.
        PrivacyError: the ledger is not what was written.
    """
    config = load_site(site)
    book = read_book(ledger_of(config, site))
    state, first = book.state, moment(book.entries[0].time)
    size = "1 entry" if state.size == 1 else f"{state.size:,} entries"
    yield f"The privacy ledger of {name(state.genesis.site)}, begun {first} UTC, {size}, each checked"
    yield from policy_notes(config, site, state)
    sections = (_promise, _cap, _why, _studies, _changes, _models, _incidents)
    for section in sections:
        yield ""
        yield from section(book)
    yield ""
    yield from _not_covered(config)


def explain_patient(site: Path, patient: str) -> Iterator[str]:
    """Yield what was spent on one patient; for the hospital's own eyes.

    Args:
        site: The hospital's file.
        patient: As in its data.

    Raises:
        UnmetError: the ledger does not know the patient.
        DeployError: the site's file, its salt or its ledger is missing.
        PrivacyError: ledger or salt cannot be used.
    """
    with open_ledger(site, salted=True) as (_, ledger):
        with ledger.reading() as connection:
            place = roster.read(connection).get(ledger.pseudonym(patient))
        if place is None:
            raise UnmetError(
                f"--patient {name(patient)}: no such patient in this ledger; name patients as the data do (those held "
                "out to judge on are never trained on, and not in it)"
            )
        releases = merge_releases(spent_on(ledger, patient))
        state = ledger.state()
    cost = spent(state.genesis, releases)
    where = f"withdrawn at entry {place.withdrawn}" if place.withdrawn else "takes part"
    yield LOCAL
    yield ""
    yield f"Patient {name(patient)}: in cohort {place.cohort}, {where}."
    delta = small(state.genesis.delta)
    yield f"Spent: epsilon {up(cost.counted)} of {exact(state.cap)} at delta {delta}{_others(cost)}."
    yield from [f"- {release_words(release)}" for release in releases] or ["- nothing"]
    yield (
        "Counted is all that was paid for while the patient took part, whether or not a step's draw picked them: not "
        "even the hospital knows that."
    )


def _promise(book: Book) -> Iterator[str]:
    """What the ledger promises."""
    state = book.state
    delta = small(state.genesis.delta)
    yield "WHAT IT PROMISES"
    if state.genesis.claims == "seeded":
        yield "Nothing: this is the ledger of a SIMULATION. Its noise comes from a seed that others know."
        return
    yield (
        "All that is published from the work in this ledger, together, would look almost the same had any one patient, "
        "with all scans, never been in the data. It holds for each patient, also one who is rare or remarkable, and "
        "whatever becomes known later. How close 'almost' is, epsilon says: the smaller, the closer. It rests on "
        "secret noise and on software that does what it says, and may fail altogether with a chance of about "
        f"{delta} (delta)."
    )
    worst = max(cost.counted for cost in spent_by_cohort(state).values())
    yield f"- So far (epsilon {up(worst)}): {_guess(worst, state.genesis.delta)}"
    if state.cap > worst:
        yield f"- Were the cap spent (epsilon {exact(state.cap)}): {_guess(state.cap, state.genesis.delta)}"
    yield (
        "Both are for the very worst case: somebody who sees everything that left and knows everything about everybody "
        "else. That nobody can do better is proved; attacks known today do worse."
    )


def _guess(epsilon: float, delta: float) -> str:
    """Return how often whoever knows all but one patient can be right about that one."""
    if epsilon <= 0:
        return "nothing can be learnt about whether a patient is in the data."
    share = right_at_most(epsilon, delta)
    if share > 0.995:
        return "whether a patient is in the data could be guessed all but surely. By itself that promises very little."
    times = math.ceil(100 * share - 1e-9)
    return (
        f"whether a patient is in the data can be guessed right at most {times} times in 100, instead of 50."
    )


def _cap(book: Book) -> Iterator[str]:
    """What the cap is, and where it stands."""
    state = book.state
    yield "THE CAP"
    yield (
        f"Epsilon {exact(state.cap)} on each patient, over all studies together and for good: what is spent does not "
        "come back with time. The full cost of a round is written down before the data are opened. What would go over "
        "the cap is refused by the hospital's software, whatever the server asks. Patients who joined together form a "
        "cohort, on each of whom the same is spent; new patients begin with nothing spent and can go on without the "
        "others."
    )
    for cohort, cost in spent_by_cohort(state).items():
        rest = down(left(state, cost.counted))
        yield f"- Cohort {cohort}: epsilon {up(cost.counted)} spent, {rest} left{_others(cost)}."
    yield _who_changes_it(state)


def _who_changes_it(state: State) -> str:
    """Return who may change the cap."""
    approvers = len(state.genesis.approvers)
    if state.is_ended:
        return "The schedule was ended by lowering the cap: nothing more can run on these patients."
    if not isinstance(state.genesis.rule, RenyiFilter):
        return "The cap of a fixed schedule can never be raised; lowering it ends the schedule for good."
    if approvers < 2:
        return "The hospital can lower the cap alone. It can never be raised: entry 0 does not name two approvers."
    return f"The hospital can lower the cap alone. Raising it takes two of the {approvers} approvers named in entry 0."


def _why(book: Book) -> Iterator[str]:
    """Why costs may be added up."""
    rule = book.state.genesis.rule
    yield "HOW COSTS ADD UP, AND WHY THAT IS SOUND"
    if isinstance(rule, RenyiFilter):
        yield _FILTER_WHY.format(order=rule.order)
        yield ""
        yield _FILTER_COST
    else:
        yield _SCHEDULE_WHY


def _studies(book: Book) -> Iterator[str]:
    """Each study, with what was refused."""
    yield "STUDIES"
    studies = studies_of(book)
    if not studies:
        yield "None has asked for anything yet."
    for study in studies:
        when = f"{moment(study.first)} to {moment(study.last)} UTC"
        yield f"- {name(study.run)}, {when}: {_paid(book.state, study)}"
        if study.unfinished:
            yield (
                f"  - {count(study.unfinished, 'round')} begun and not finished (a crash, or still running): counted "
                "in full all the same."
            )
        for code, times in sorted(study.refusals.items()):
            yield f"  - Refused {count(times, 'time')} ({name(code)}): {explain_refusal(code)}"


def _paid(state: State, study: Study) -> str:
    """Return what a study has paid, had it been the only one."""
    if not study.rounds:
        return "nothing was trained, nothing spent."
    alone = spent(state.genesis, state.releases_of_run(study.run))
    figures = f"PLD {up(alone.pld)}, RDP {up(alone.rdp)}"
    if isinstance(state.genesis.rule, RenyiFilter):
        figures = f"{up(alone.counted)} by the ledger's rule, {figures}"
    rounds, cohorts = count(len(study.rounds), "round"), listed([f"cohort {one}" for one in study.cohorts])
    return f"{rounds} paid for by {cohorts}; epsilon had it been the only study: {figures}."


def _others(cost: Spent) -> str:
    """Return what the other accountants say."""
    return f" (by other accountants: PLD {up(cost.pld)}, RDP {up(cost.rdp)})" if cost.counted else ""


def _changes(book: Book) -> Iterator[str]:
    """What the hospital changed."""
    yield "CHANGES OF CAP, KEY AND PATIENTS"
    kinds = {"CAP_CHANGE": "the ", "ROTATE_KEY": "the key was changed: ", "ROSTER": ""}
    found = [entry for entry in book.entries if entry.kind in kinds]
    for entry in found:
        yield f"- {moment(entry.time)} UTC: {kinds[entry.kind]}{describe(entry, {})}."
    if any(entry.kind == "ROSTER" for entry in found):
        yield "What was spent on patients who left stays counted, also if they come back."
    if not found:
        yield "None since the beginning."


def _models(book: Book) -> Iterator[str]:
    """Models that left."""
    yield "MODELS GIVEN AWAY"
    found = [entry for entry in book.entries if entry.kind == "MODEL_RELEASE"]
    for entry in found:
        fields = entry.fields
        yield (
            f"- {moment(entry.time)} UTC: to {AUDIENCES[fields['audience']]}, the model of {name(fields['run'])} after "
            f"round {fields['round']} ({short(fields['model'])})."
        )
    if found:
        yield "They cost nothing more: everything about them was paid for in training."
    else:
        yield "None was written down (`ledger release`)."


def _incidents(book: Book) -> Iterator[str]:
    """Incidents."""
    yield "INCIDENTS"
    found = [entry for entry in book.entries if entry.kind == "INCIDENT"]
    yield from (f"- {moment(entry.time)} UTC: {describe(entry, {})}." for entry in found)
    if not found:
        yield "None was written down (`ledger incident`)."


def _not_covered(config: SiteConfig) -> Iterator[str]:
    """What the figure says nothing about."""
    yield "WHAT THE EPSILON DOES NOT COVER"
    quantities: dict[str, list[str]] = {}
    for row in cover_site(config, config.to_policy()):
        if row.status in ("not-covered", "not-provided"):
            quantities.setdefault(row.sentence, []).append(row.quantity.replace("-", " "))
    yield from (f"- {listed(names).capitalize()}: {sentence}" for sentence, names in quantities.items())
    yield (
        "It says nothing either about work on these patients with other tools, about patients held out to judge models "
        "on (their figures stay here, unless the policy lists them under metrics), or about who can open the data "
        "themselves."
    )
