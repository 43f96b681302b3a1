"""The audit of a simulated federation, from the folder that `simulate.py` left.

The same checks as at a hospital, and what only a simulation shows at once: every site's own record beside what the
server kept of it. What it says is of a plan: its noise was seeded, and nobody is protected by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.audit.accounts import account_for, account_of_releases, check_account
from deploy.audit.collect import finish, gather, now, software, weakest, with_demonstrated
from deploy.audit.coverage import cover_run, departures_of_run
from deploy.audit.document import AuditReport, Check, Claims, Evidence, Proof, SiteAccount, Subject
from deploy.audit.evidence import check_evidence, found_beside
from deploy.audit.ledgers import prove, read_ledger
from deploy.audit.policies import check_plan, check_policy, check_terms
from deploy.audit.utility import read_utility
from deploy.audit.witnesses import check_claim, check_heads
from deploy.config import Experiment, load_experiment
from deploy.errors import DeployError
from deploy.plans import identity, noise_multiplier, privacy_plan
from deploy.simulation.ledgers import ledger_path, policy_of
from privacy.adversaries import Federation
from privacy.claim import Claim
from privacy.errors import PlanError
from privacy.heads import Head
from privacy.plan import PrivacyPlan, mechanism_name
from server.checkpoint import Checkpoint, latest
from server.errors import CheckpointError
from server.strategy import ADMITTED

CONFIG_NAME = "config.resolved.yaml"
_ARM = "federated-dp"
_PLAIN = {"local", "federated", "centralised"}


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What was asked for, and what the server kept.

    Attributes:
        experiment: From the folder.
        folder: Of the run.
        run_id: Of the arm with noise.
        kept: The server's last checkpoint of it, if any.
        heads: Those it keeps: under each site's name, and handed back by others under an empty one.
        sigma: Noise multiplier of the plan.
    """

    experiment: Experiment
    folder: Path
    run_id: str
    kept: Checkpoint | None
    heads: Mapping[str, Sequence[Head]]
    sigma: float


@dataclass(frozen=True, kw_only=True)
class _Site:
    """What one site's audit found."""

    account: SiteAccount | None
    checks: tuple[Check, ...]
    proof: Proof | None = None


def audit_run(folder: Path, *, empirical: bool = True) -> AuditReport:
    """Return the audit of a simulated run.

    Args:
        folder: Output folder of `simulate.py`.
        empirical: Attack where the run has not done it itself.

    Raises:
        DeployError: it is no such folder.
        ConfigError: its configuration cannot be read.
    """
    config = folder / CONFIG_NAME
    if not config.is_file():
        raise DeployError(f"{folder}: there is no {CONFIG_NAME}, so no run of simulate.py has written there")
    experiment = load_experiment(config)
    checks: list[Check] = []
    found: list[_Site] = []
    if experiment.privacy is None or _ARM not in experiment.arms:
        checks.append(_no_arm())
    else:
        run, said = _open(experiment, folder)
        checks += said
        found = [_audit_one(run, site) for site in experiment.site_names]
        checks += [check for one in found for check in one.checks]
    accounts = tuple(one.account for one in found if one.account is not None)
    evidence, more = _evidence(folder, accounts, empirical=empirical)
    accounts = tuple(with_demonstrated(account, evidence) for account in accounts)
    utility = read_utility(folder / "report.json")
    metrics = [] if utility is None else sorted({row.measure for row in utility.rows})
    report = AuditReport(
        subject=_subject(experiment, folder, accounts),
        sites=accounts,
        checks=(*checks, *more, *check_evidence(evidence)),
        departures=departures_of_run(accounts, has_plain_arms=bool(_PLAIN & set(experiment.arms))),
        coverage=cover_run(experiment, metrics),
        evidence=evidence,
        utility=utility,
        proofs=tuple(one.proof for one in found if one.proof is not None),
    )
    return finish(report)


def _open(experiment: Experiment, folder: Path) -> tuple[_Run, list[Check]]:
    """Return what the server kept, and whether it is of this configuration."""
    run_id = f"{identity(experiment)[:16]}-{_ARM}"
    kept: Checkpoint | None = None
    heads: dict[str, list[Head]] = {}
    try:
        kept = latest(folder / "checkpoints" / _ARM, config_hash=experiment.hash())
        text = "The server has left no checkpoint: its claims and heads cannot be compared."
        check = Check(name="checkpoint", site="", status="not-provided", text=text)
        if kept is not None:
            heads = {site: [Head.from_dict(item) for item in items] for site, items in kept.heads.items()}
            text = f"The server's last checkpoint is whole, of this configuration and of round {kept.round}."
            check = Check(name="checkpoint", site="", status="ok", text=text)
        if kept is not None and kept.run_id != run_id:
            text = f"The server's checkpoint is of the run {kept.run_id}, the configuration of {run_id}."
            check = Check(name="checkpoint", site="", status="violated", text=text)
    except (CheckpointError, PlanError) as error:
        text = f"What the server kept cannot be relied on: {error}"
        check = Check(name="checkpoint", site="", status="violated", text=text)
    run = _Run(
        experiment=experiment,
        folder=folder,
        run_id=run_id,
        kept=kept,
        heads=heads,
        sigma=noise_multiplier(experiment),
    )
    return run, [check]


def _audit_one(run: _Run, site: str) -> _Site:
    """Return what one site's audit found."""
    plan = privacy_plan(run.experiment, site, run.sigma, randomness="seeded")
    path = ledger_path(run.experiment, run.folder / "sites", site)
    claim = None if run.kept is None else run.kept.claims.get(site)
    if path is None:
        return _without_ledger(run, site, plan, claim)
    if not path.is_file():
        spent = claim is not None
        text = f"{site} has a budget and no ledger" + (
            ", though the server has its claims." if spent else " yet."
        )
        status = "violated" if spent else "not-provided"
        return _Site(account=None, checks=(Check(name="ledger-chain", site=site, status=status, text=text),))  # type: ignore[arg-type] # one of the two
    reading = read_ledger(path, site)
    account = account_for(reading, {run.run_id: _federation(run)})
    if account is None or reading.state is None:
        return _Site(account=None, checks=reading.checks)
    state, policy = reading.state, policy_of(run.experiment, site, plan)
    heads = [*run.heads.get(site, ()), *run.heads.get("", ())]
    checks = (
        *reading.checks,
        *check_account(account),
        check_claim(
            site, claim, state.releases_of_run(run.run_id), claims=account.claims, delta=account.delta
        ),
        check_heads(site, state, heads, witness="the server"),
        check_policy(state, policy, run=run.run_id),
        *check_terms(reading, policy),
    )
    return _Site(account=account, checks=checks, proof=prove(reading))


def _without_ledger(run: _Run, site: str, plan: PrivacyPlan, claim: str | None) -> _Site:
    """Return the audit of a site that keeps no ledger: its own list of what it spent, and no more."""
    from deploy.simulation.sites import spent_by_round

    spent = spent_by_round(run.folder / "sites", site, run.run_id)
    claims = _claims_of(claim)
    account = account_of_releases(
        site,
        run.run_id,
        spent,
        claims=claims,
        unit=plan.unit,
        delta=plan.delta,
        federation=_federation(run),
        constants={
            "divisor": plan.divisor,
            "grad_engine": plan.grad_engine,
            "max_grad_norm": plan.max_grad_norm,
            "max_records_per_patient": plan.max_records_per_patient,
            **({"name": mechanism_name(plan)} if plan.mechanism != "independent" else {}),
            "plan_delta": plan.delta,
            "unit": plan.unit,
        },
        randomness=plan.randomness,
    )
    no_ledger = Check(
        name="ledger-chain",
        site=site,
        status="not-provided",
        text=f"{site} keeps no ledger, since it has no budget: its list of costs can be changed unseen.",
    )
    if account is None:
        return _Site(account=None, checks=(no_ledger,))
    releases = [release for _, release in spent]
    return _Site(
        account=account,
        checks=(
            no_ledger,
            *check_account(account),
            check_claim(site, claim, releases, claims=claims, unit=plan.unit, delta=plan.delta),
            check_plan(site, releases, plan.release()),
        ),
    )


def _federation(run: _Run) -> Federation:
    """Return the public facts of a run; that the server keeps updates to itself is not assumed."""
    experiment, privacy = run.experiment, run.experiment.privacy
    if privacy is None:
        raise ValueError("a run without privacy has no adversaries to view")
    federation = experiment.federation
    rounds = () if run.kept is None else run.kept.participation
    took_part = [sum(status == ADMITTED for status in sites.values()) for sites in rounds]
    weights = {federation.weights.get(site, 1.0) for site in experiment.site_names}
    divisors = {privacy.divisor_of(site) for site in experiment.site_names}
    return Federation(
        num_sites=max(1, min((number for number in took_part if number), default=1)),
        local_steps=privacy.local_steps,
        plain_sgd=privacy.optimiser == "sgd" and privacy.momentum == 0,
        equal_plans=len(divisors) == 1,
        equal_weights=len(weights) == 1 and federation.strategy in ("fedavg", "fedprox"),
    )


def _claims_of(claim: str | None) -> Claims:
    """Return what a claim promises; a simulation's noise is seeded unless its claim says that there is none."""
    try:
        kind = None if claim is None else Claim.from_json(claim).kind
    except PlanError:
        kind = None
    return "none" if kind == "none" else "seeded"


def _evidence(
    folder: Path, accounts: Sequence[SiteAccount], *, empirical: bool
) -> tuple[Evidence, tuple[Check, ...]]:
    """Return the run's own attacks, else attacks made now on what the most spent site did."""
    try:
        found = found_beside(folder / "arms")
    except PlanError as error:
        text = f"The run's own attack cannot be read: {error}"
        return Evidence(origin=text), (Check(name="attack-file", site="", status="violated", text=text),)
    if found is not None:
        return found, ()
    if not accounts:
        return Evidence(origin="There is nothing to attack."), ()
    most = max(accounts, key=lambda account: account.worst.pld)
    return gather(most, empirical=empirical), ()


def _subject(experiment: Experiment, folder: Path, accounts: Sequence[SiteAccount]) -> Subject:
    """Return what was audited."""
    from deploy.simulation.assemble import data_note

    return Subject(
        kind="run",
        name=experiment.name,
        source=folder.name,
        created=now(),
        claims=weakest(accounts),
        synthetic=experiment.data.kind in ("toy", "phantom"),
        data=data_note(experiment),
        software=software(),
    )


def _no_arm() -> Check:
    """Return what a run without the arm with noise comes to."""
    text = "This run was trained without calibrated noise: it has no epsilon, and nothing is promised to anybody."
    return Check(name="protection", site="", status="attention", text=text)
