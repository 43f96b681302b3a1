"""The ledgers of virtual hospitals: the very ledger of a real one, with keys that follow from the seed.

Their GENESIS says `seeded`: nothing in them is a privacy claim. They are not flushed to disk at every entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy.config import Experiment
from deploy.plans import noise_multiplier, privacy_plan
from privacy import genesis
from privacy.budget import LedgerSpending
from privacy.filters import RenyiFilter, choose_order
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan
from privacy.policy import Cap, Policy
from privacy.signing import SigningKey

LEDGER_NAME = "ledger.sqlite"


def ledger_path(experiment: Experiment, folder: Path, site: str) -> Path | None:
    """Return where the ledger of a virtual site lies, None if it has no budget.

    Args:
        experiment: Whose site.
        folder: Of all sites of the run.
        site: Its name.
    """
    budget = experiment.budget
    if budget is None or budget.cap_of(site) is None:
        return None
    return folder / site / LEDGER_NAME if budget.ledgers is None else Path(budget.ledgers) / f"{site}.sqlite"


def open_spending(
    experiment: Experiment, path: Path, site: str, patients: Callable[[], Iterable[str]]
) -> LedgerSpending:
    """Return a virtual site's spending, from its ledger, which is begun where there is none.

    Args:
        experiment: With budget and privacy sections.
        path: Of the ledger.
        site: Its name.
        patients: Returns the keys of its patients; called for a new ledger.

    Raises:
        LedgerError: the ledger cannot be read or written.
        TamperedError: it is not what was written.
    """
    key, salt = keys_of(experiment.data.kind, site)
    plan = privacy_plan(experiment, site, noise_multiplier(experiment), randomness="seeded")
    if path.exists():
        ledger = Ledger.open(path, key=key, salt=salt)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        ledger = genesis.begin(
            path,
            site=site,
            dataset=f"{experiment.data.kind} of {site}",
            rule=_rule(experiment, site, plan),
            patients=patients(),
            key=key,
            salt=salt,
            seeded=True,
        )
    return LedgerSpending(ledger, policy_of(experiment, site, plan))


def keys_of(kind: str, site: str) -> tuple[SigningKey, bytes]:
    """Return key and salt of a virtual site: the same for all its studies, and no secret."""
    key, salt = (
        hashlib.sha256(f"virtual {purpose} of {site}, {kind}".encode()).digest()
        for purpose in ("key", "salt")
    )
    return SigningKey(Ed25519PrivateKey.from_private_bytes(key)), salt


def policy_of(experiment: Experiment, site: str, plan: PrivacyPlan) -> Policy:
    """Return the policy of a virtual site: it allows what it is asked, within its cap."""
    cap = Cap(epsilon=_cap(experiment, site), delta=plan.delta)
    return Policy(
        lifetime=cap,
        per_run=cap,
        min_noise_multiplier=plan.noise_multiplier,
        max_sampling_probability=plan.sampling_probability,
        max_steps_per_round=max(1, plan.steps),
        max_grad_norm=plan.max_grad_norm,
        max_records_per_patient=plan.max_records_per_patient,
        unit="patient",
        randomness="seeded",
        min_patients=1,
        patients_bound=1,
        models="any",
        metrics={},
        min_sites=1,
        max_runtime_s=1e9,
    )


def _rule(experiment: Experiment, site: str, plan: PrivacyPlan) -> RenyiFilter:
    """Return the filter that allows most rounds of the plan under a site's cap."""
    epsilon = _cap(experiment, site)
    order = choose_order(epsilon=epsilon, delta=plan.delta, release=plan.release())
    return RenyiFilter(epsilon=epsilon, delta=plan.delta, order=order)


def _cap(experiment: Experiment, site: str) -> float:
    """Return the cap of a site that has one."""
    cap = None if experiment.budget is None else experiment.budget.cap_of(site)
    if cap is None:
        raise ValueError(f"{site} has no budget")
    return cap
