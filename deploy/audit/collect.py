"""From a hospital's file, or a simulated run's folder, to everything an audit report holds.

Nothing is written, no key is read, no patient's record is opened. What is wrong becomes a check, so that the rest is
still reported; only what cannot be audited at all (no such file, another format) is an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deploy.audit.accounts import account_for, check_account
from deploy.audit.coverage import cover_site, departures_of_ledger
from deploy.audit.disclosures import disclose
from deploy.audit.document import AuditReport, Check, Claims, Evidence, SiteAccount, Subject
from deploy.audit.evidence import check_evidence, demonstrated_for
from deploy.audit.gaps import list_gaps
from deploy.audit.ledgers import prove, read_ledger
from deploy.audit.policies import check_policy, check_terms
from deploy.audit.witnesses import check_heads
from deploy.errors import DeployError
from deploy.site import SiteConfig
from privacy.heads import Head

_LIBRARIES = ("torch", "opacus", "dp-accounting", "cryptography", "flwr", "numpy", "scipy")


def audit_site(
    config: SiteConfig, *, source: str = "site.yaml", heads: Iterable[Head] = (), empirical: bool = True
) -> AuditReport:
    """Return the audit of a hospital's ledger.

    Args:
        config: Its file.
        source: Name of the file.
        heads: Heads of this ledger that others have kept.
        empirical: Attack a training job with the parameters of the most spent cohort; ten seconds of one core.

    Raises:
        DeployError: there is no ledger.
    """
    path = Path(config.ledger)
    if not path.is_file():
        raise DeployError(f"{path}: there is no ledger; `python -m deploy ledger init` begins one")
    policy = config.to_policy()
    reading = read_ledger(path, config.site)
    account, checks = account_for(reading, {}), [*reading.checks]
    evidence = Evidence()
    if account is not None and reading.state is not None:
        checks += check_account(account)
        evidence = gather(account, empirical=empirical)
        account = with_demonstrated(account, evidence)
        checks.append(_named_alike(config, account.site))
        checks.append(check_heads(account.site, reading.state, heads, witness="somebody outside"))
        checks.append(check_policy(reading.state, policy))
        checks += check_terms(reading, policy)
    checks += check_evidence(evidence)
    sites = () if account is None else (account,)
    proof = prove(reading)
    report = AuditReport(
        subject=Subject(
            kind="site",
            name=config.site,
            source=source,
            created=now(),
            claims="none" if account is None else account.claims,
            synthetic=config.data.kind in ("toy", "phantom"),
            data="Made-up data, for trying out."
            if config.data.kind in ("toy", "phantom")
            else f"The hospital's own data set {config.dataset}.",
            software=software(),
        ),
        sites=sites,
        checks=tuple(checks),
        departures=() if account is None else departures_of_ledger(reading, account, policy),
        coverage=cover_site(config, policy),
        evidence=evidence,
        utility=None,
        proofs=() if proof is None else (proof,),
    )
    return finish(report)


def finish(report: AuditReport) -> AuditReport:
    """Return a report with what follows from the rest of it: the disclosures and the questions to people."""
    return disclose(dataclasses.replace(report, gaps=list_gaps(report.subject)))


def gather(account: SiteAccount, *, empirical: bool) -> Evidence:
    """Return attacks made now, or none if they are not wanted or cannot be made."""
    if not empirical:
        return Evidence(origin="Attacks were left out of this audit on request (--no-empirical).")
    from deploy.audit.attacks import can_measure, is_banded, measure

    if not can_measure(account):
        return Evidence(origin="Nothing was spent, so there is nothing to attack.")
    if is_banded(account):
        return Evidence(
            origin="The noise is banded, and the attacks take steps for independent: none were made."
        )
    return measure(account)


def with_demonstrated(account: SiteAccount, evidence: Evidence) -> SiteAccount:
    """Return a site's account with what an attack has shown for its parameters."""
    return dataclasses.replace(account, demonstrated=demonstrated_for(account, evidence))


def software() -> dict[str, str]:
    """Return names and versions of what matters to a privacy claim."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def now() -> str:
    """Return the time as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def weakest(accounts: Sequence[SiteAccount]) -> Claims:
    """Return the weakest claim of some sites; `none` of none."""
    claims = {account.claims for account in accounts}
    if not claims or "none" in claims:
        return "none"
    return "seeded" if "seeded" in claims else "dp"


def _named_alike(config: SiteConfig, site: str) -> Check:
    """Compare the name in the file with that in the ledger."""
    if config.site == site:
        text = f"The ledger is that of {site}, as the file says."
        return Check(name="same-site", site=site, status="ok", text=text)
    text = f"The file is of {config.site}, and the ledger that it names is of {site}: one of them is the wrong one."
    return Check(name="same-site", site=site, status="violated", text=text)
