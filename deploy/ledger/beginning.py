"""Begin a ledger, and make it follow the data: the two verbs that look at who the patients are.

How many patients there are is compared with the policy here, at the site, and never when a server asks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.ledger.failures import UnmetError, UsageError
from deploy.ledger.opening import last_entry, open_ledger, read_book
from deploy.ledger.standing import policy_notes
from deploy.ledger.wording import command, exact, rule_words, short
from deploy.site import RenyiRule, SiteConfig, load_site
from privacy import genesis, roster
from privacy.accounting import MAX_STEPS, Release
from privacy.administration import set_patients
from privacy.entries import Entry
from privacy.filters import FixedPlan, RenyiFilter, choose_order
from privacy.records import Genesis
from privacy.roster import create_salt, load_salt
from privacy.signing import create_key, load_key
from server.report.words import count, small
from vae.data.cohort import SiteData

SUFFIX = ".sqlite"


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What beginning a ledger has fixed; nothing of the data.

    Attributes:
        config: The hospital's file.
        genesis: What entry 0 says.
        made: Files that were made, beside the ledger.
    """

    config: SiteConfig
    genesis: Genesis
    made: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Following:
    """What has changed when a ledger followed the data; the counts are for the site's own eyes.

    Attributes:
        entry: What was written; None if nothing has changed.
        counts: How many patients are new, came back, left, and take part now.
    """

    entry: Entry | None
    counts: dict[str, int]


def begin(site: Path, cache: Path) -> Beginning:
    """Begin the ledger of a hospital, making key and salt where they are missing.

    Args:
        site: Its `site.yaml`.
        cache: Folder of prepared records.

    Raises:
        ConfigError: of the site's file.
        UsageError: a ledger is there already.
        UnmetError: the patients do not fit the policy, or the rule does not fit the cap; nothing was made.
        DataError: the data cannot be used; nothing was made.
        PrivacyError: key or salt cannot be used, or another ledger in the folder holds some of the patients.
    """
    config = load_site(site)
    path = Path(config.ledger)
    _require_free(path, config, site)
    rule = rule_of(config)
    _require_affordable(rule)
    data = open_data(config, cache)
    require_policy(config, data, enough=True)
    key, salt = Path(config.key), Path(config.salt)
    made = tuple(secret for secret in (key, salt) if not secret.exists())
    path.parent.mkdir(parents=True, exist_ok=True)
    ledger = genesis.begin(
        path,
        site=config.site,
        dataset=config.dataset,
        rule=rule,
        patients=data.train.patients,
        key=create_key(key) if key in made else load_key(key),
        salt=create_salt(salt) if salt in made else load_salt(salt),
        approvers=config.approvers,
        seeded=config.is_rehearsal,
    )
    with contextlib.closing(ledger):
        return Beginning(config=config, genesis=ledger.state().genesis, made=made)


def beginning_lines(done: Beginning, site: Path) -> Iterator[str]:
    """Yield what was fixed for good, and where the secrets lie, in plain words."""
    fixed, config = done.genesis, done.config
    yield f"The ledger of {fixed.site} has begun: {config.ledger}"
    if config.is_rehearsal:
        yield "It is of a rehearsal (`agent.seed`): nothing in it is a promise, and it is never one later."
    yield ""
    yield "Fixed for good, whatever is asked later:"
    yield "- Whom it protects: one patient as a whole, with all scans: whether they are in the data at all."
    yield f"- The promise is made at delta {small(fixed.delta)}."
    yield f"- How costs add up: {rule_words(fixed.rule)}."
    yield f"- Who may raise the cap: {_approvers(fixed)}"
    yield f"- Whose it is: the patients of dataset {config.dataset} ({short(fixed.dataset)}), with this salt."
    yield ""
    yield "Can be changed later, and every change is an entry:"
    yield f"- The cap on one patient, epsilon {exact(fixed.cap)}: `ledger cap`. The hospital alone can only lower it."
    yield "- Who takes part: `ledger roster`. Those in the data now begin with nothing spent, and so do new ones."
    yield "- The site's key: `ledger rotate-key`. Its public part now:"
    yield f"    {fixed.key}"
    if isinstance(fixed.rule, RenyiFilter):
        yield ""
        yield f"How far the cap goes: {_reach(config, fixed.rule)}"
    yield ""
    yield "Secrets, which never leave this hospital (mode 0600); keep a copy of both in a safe:"
    for what, secret in (("key", Path(config.key)), ("salt", Path(config.salt))):
        yield f"- {what}: {secret} ({'made now' if secret in done.made else 'was there before'})"
    yield (
        "Without the key nothing can be written, and without the salt nobody can be found. Whoever has the key can "
        "write in the hospital's name; whoever has salt and ledger can tell whether a given person is in the data."
    )
    yield ""
    yield "Next: give the head to somebody outside, for without one nobody can see that its end was cut off:"
    yield command("head", "--site", str(site), "--out", "head.json")
    yield "Never put an older copy of the ledger back: what was spent since would be missing from it."


def follow_data(site: Path, cache: Path, *, confirmed: bool) -> Following:
    """Make the ledger follow the data as they are now.

    Args:
        site: The hospital's file.
        cache: Folder of prepared records.
        confirmed: Whether most patients may be gone.

    Raises:
        ConfigError: of the site's file.
        UnmetError: there are more patients than the policy's bound, or most are gone; nothing was changed.
        DataError: the data cannot be used; nothing was changed.
        PrivacyError: the ledger, key or salt cannot be used.
    """
    with open_ledger(site, writing=True, salted=True) as (config, ledger):
        data = open_data(config, cache)
        require_policy(config, data, enough=False)
        present = {ledger.pseudonym(patient) for patient in data.train.patients}
        with ledger.reading() as connection:
            places = roster.read(connection)
        here = {patient for patient, place in places.items() if not place.withdrawn}
        if 2 * len(here - present) > len(here) and not confirmed:
            raise UnmetError(
                "roster: most patients of the ledger are not in the data any more; patients under new names would "
                "begin with nothing spent, though much was: check the data's folder and names, or add --yes if they "
                "have left"
            )
        changed = set_patients(ledger, data.train.patients)
        entry = last_entry(ledger) if changed else None
    counts = {
        "new": len(present - places.keys()),
        "came back": len(present & (places.keys() - here)),
        "left": len(here - present),
        "take part now": len(present),
    }
    return Following(entry=entry, counts=counts)


def open_data(config: SiteConfig, cache: Path) -> SiteData:
    """Return the hospital's patients as training sees them: those held out to judge on are apart, and never charged.

    Raises:
        DataError: the data cannot be used.
    """
    from deploy.config import Experiment
    from deploy.simulation.sites import open_site

    experiment = Experiment.model_construct(data=config.study_data())
    return open_site(experiment, config.site, cache)


def require_policy(config: SiteConfig, data: SiteData, *, enough: bool) -> None:
    """Compare the patients with the policy.

    Args:
        config: The hospital's file.
        data: Its patients.
        enough: Whether min_patients has to be met; those who left have to be written down even if too few remain.

    Raises:
        UnmetError: they do not fit; the sentence holds no count.
    """
    policy = config.to_policy()
    if enough and (objection := policy.cohort_objection(data.train.num_patients)):
        raise UnmetError(f"policy.min_patients: {objection.sentence}")
    if len({*data.train.patients, *data.test.patients}) > policy.patients_bound:
        raise UnmetError(
            f"policy.patients_bound: there are more patients than the {policy.patients_bound} that were agreed as a "
            "bound, and every delta was chosen by it; agree on a larger bound, with deltas below one over it"
        )


def rule_of(config: SiteConfig) -> RenyiFilter | FixedPlan:
    """Return how costs add up: as the file says, at the order that serves the loosest plan the policy allows best."""
    rule = config.to_filter()
    if isinstance(rule, RenyiFilter) and isinstance(config.rule, RenyiRule) and config.rule.order is None:
        order = choose_order(epsilon=rule.epsilon, delta=rule.delta, release=_loosest(config))
        return replace(rule, order=order)
    return rule


def _require_free(path: Path, config: SiteConfig, site: Path) -> None:
    """Refuse a ledger that is there already, and one whose patients could not be found in others of its folder."""
    if path.exists():
        notes = " ".join(note.strip() for note in policy_notes(config, site, read_book(path).state))
        raise UsageError(
            f"{path}: a ledger is there already, and it goes on for good; for new or withdrawn patients use `ledger "
            f"roster`, for another group of patients another `dataset` and `ledger`{'. ' + notes if notes else ''}"
        )
    if path.suffix != SUFFIX:
        raise UsageError(
            f"ledger: {path.name}: must end in {SUFFIX}, by which ledgers in one folder find patients that they share"
        )
    others = sorted(path.parent.glob(f"*{SUFFIX}"))
    if others and not Path(config.salt).exists():
        raise UsageError(
            f"salt: {config.salt}: is missing, and with a new one nobody would be known who is in {others[0].name} "
            "already; restore it"
        )


def _require_affordable(rule: RenyiFilter | FixedPlan) -> None:
    """Refuse a rule under whose cap nothing could ever run: it would be fixed for good."""
    if isinstance(rule, FixedPlan):
        if problems := rule.problems():
            raise UnmetError(
                f"rule.schedule: {'; '.join(problems)}; take fewer steps, more noise or a larger cap"
            )
    elif rule.budget <= 0:
        raise UnmetError(
            f"rule.order: at order {rule.order} and delta {small(rule.delta)} a cap of epsilon {exact(rule.epsilon)} "
            "pays for nothing; take a larger order (null: the best one) or a larger cap"
        )


def _approvers(fixed: Genesis) -> str:
    """Return who may raise the cap."""
    named = len(fixed.approvers)
    if named < 2:
        return f"nobody: that takes two approvers, and site.yaml names {named}."
    if isinstance(fixed.rule, FixedPlan):
        return "nobody: its promise is made for the schedule."
    return f"any two of the {named} approvers in site.yaml, together."


def _loosest(config: SiteConfig, steps: int = 1) -> Release:
    """Return the loosest release that the policy allows; public figures alone."""
    policy = config.to_policy()
    return Release(
        sampling_probability=policy.max_sampling_probability,
        noise_multiplier=policy.min_noise_multiplier,
        steps=steps,
    )


def _reach(config: SiteConfig, rule: RenyiFilter) -> str:
    """Return how many steps of the loosest plan the cap pays for, in a sentence."""
    steps = rule.max_steps((), _loosest(config, MAX_STEPS))
    policy = config.to_policy()
    if steps == 0:
        return "not a single step of the loosest plan that the policy allows; studies need more noise, or a larger cap."
    return (
        f"{count(steps, 'training step')} on one patient, if every study takes the least noise "
        f"({policy.min_noise_multiplier:g}) and the largest share of patients ({policy.max_sampling_probability:g}) "
        "that the policy allows; many more with more noise or a smaller share."
    )
