"""Audits for tests: a small real hospital with a ledger of real rounds, and made-up reports for sentences and pages."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from client.contract import LearningPlan, TrainRequest
from client.site import Site
from deploy.audit.collect import finish
from deploy.audit.document import (
    AuditReport,
    Check,
    CohortAccount,
    Cost,
    Coverage,
    Departure,
    Evidence,
    Mechanism,
    Proof,
    Refusal,
    RunAccount,
    SiteAccount,
    Subject,
    Utility,
    UtilityRow,
)
from deploy.site import SiteConfig, load_site
from privacy import genesis
from privacy.accounting import EpsilonPair, Release
from privacy.adversaries import ADVERSARIES, AdversaryView
from privacy.budget import LedgerSpending
from privacy.coverage import Quantity
from privacy.errors import RefusedError
from privacy.ledger import Ledger
from privacy.noise import SystemRandomness
from privacy.plan import PrivacyPlan
from privacy.roster import create_salt, load_salt
from privacy.signing import create_key, load_key
from server.federation import initial_weights
from vae.data.toy import ToySpec, open_toy
from vae.spec import ModelSpec
from vae.weights import hash_weights

SPEC = ModelSpec(family="vae", input_shape=(6,), latent_size=2, channels=(6,), initial_scale=0.5)
RELEASE = Release(sampling_probability=0.02, noise_multiplier=1.1, steps=40)
PLAN = PrivacyPlan(
    sampling_probability=RELEASE.sampling_probability,
    steps=RELEASE.steps,
    noise_multiplier=RELEASE.noise_multiplier,
    max_grad_norm=1.0,
    divisor=2.0,
    delta=1e-5,
    randomness="os",
)
SITE_YAML = """\
site: site-2
dataset: dementia-mri-2026
data: {{kind: toy, sites: 3, patients_per_site: 60, features: 6}}
ledger: ledger.sqlite
salt: salt
key: key.pem
policy:
  lifetime: {{epsilon: {cap}, delta: 1.0e-5}}
  per_run: {{epsilon: {cap}, delta: 1.0e-5}}
  min_noise_multiplier: 0.8
  max_sampling_probability: 0.1
  max_steps_per_round: 200
  max_grad_norm: 1.0
  max_records_per_patient: 8
  unit: patient
  randomness: os
  min_patients: 10
  patients_bound: 10000
  models: [{model}]
  min_sites: 1
  max_runtime_s: 3600
"""


def write_site(folder: Path, *, cap: float = 3.0) -> Path:
    """Write a hospital's file, its key and salt, and begin its ledger; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "site.yaml"
    file.write_text(SITE_YAML.format(cap=cap, model=SPEC.hash()))
    config = load_site(file)
    genesis.begin(
        Path(config.ledger),
        site=config.site,
        dataset=config.dataset,
        rule=config.to_filter(),
        patients=_data(config).train.patients,
        key=create_key(Path(config.key)),
        salt=create_salt(Path(config.salt)),
    )
    return file


def open_ledger(config: SiteConfig) -> Ledger:
    """Return a hospital's ledger, open for writing."""
    return Ledger.open(Path(config.ledger), key=load_key(Path(config.key)), salt=load_salt(Path(config.salt)))


def run_rounds(file: Path, rounds: int, *, run: str = "study-1") -> int:
    """Train some rounds at a hospital; return how many it did before its budget refused."""
    config = load_site(file)
    policy = config.to_policy()
    spending = LedgerSpending(open_ledger(config), policy)
    site = Site(
        config.site,
        open_data=lambda: _data(config),
        folder=file.parent / "state",
        decide=lambda request: policy.apply(request.plan),
        randomness=lambda request: SystemRandomness(),
        spending=lambda run_id: spending,
    )
    weights = initial_weights(SPEC, "all", 0)
    for round_ in range(1, rounds + 1):
        request = TrainRequest(
            run_id=run,
            round=round_,
            base_hash=hash_weights(weights),
            model=SPEC,
            sharing="all",
            plan=PLAN,
            learning=LearningPlan(learning_rate=0.01),
        )
        try:
            update = site.train(request, weights)
        except RefusedError:
            return round_ - 1
        weights = {name: weights[name] + update.delta[name] for name in weights}
    return rounds


def _data(config: SiteConfig):
    """Return the made-up patients of a hospital's file."""
    data = config.data
    spec = ToySpec(sites=data.sites, patients_per_site=data.patients_per_site, features=data.features)
    return open_toy(spec, site=data.site_names.index(config.site))


# --- made-up reports ---------------------------------------------------------------------------------------


def account(
    site: str = "north", *, claims: str = "dp", counted: float = 2.7, cap: float | None = 3.0, **changes
):
    """Return the account of a site that has spent 2.7 of 3."""
    release = dataclasses.replace(RELEASE, steps=400)
    pair = EpsilonPair(rdp=0.94 * counted, pld=0.86 * counted)
    views = tuple(
        AdversaryView(name=name, sees="Something.", epsilon=pair, assumption="None.") for name in ADVERSARIES
    )
    made = SiteAccount(
        site=site,
        claims=claims,
        unit="patient",
        neighbouring="add_remove",
        delta=1e-5,
        cap=cap,
        rule="Rényi filter of order 9",
        cohorts=(
            CohortAccount(
                cohort="c0", releases=(release,), counted=counted, settled=counted, rdp=pair.rdp, pld=pair.pld
            ),
        ),
        runs=(
            RunAccount(
                run="study-1", first_round=1, last_round=10, committed=10, reserved=0, rdp=pair.rdp, pld=pair.pld,
                views=views,
            ),
        ),
        mechanisms=(
            Mechanism(
                release=RELEASE, rounds=10, constants={"max_grad_norm": 1.0, "divisor": 4.0},
                randomness="os" if claims == "dp" else "seeded", models=("a" * 64,),
            ),
        ),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def refused(*, round_: int = 11, needed: float | None = 3.3, code: str = "budget-exhausted") -> Refusal:
    """Return a refusal of the next round."""
    return Refusal(run="study-1", round=round_, code=code, needed=needed, limit=3.0 if needed else None)


def attack(*, violated: bool = False, lower: float = 0.4) -> dict:
    """Return the result of an attack as its file holds it."""
    return {
        "claimed": [dataclasses.replace(RELEASE, steps=400).to_dict()],
        "delta": 1e-5,
        "epsilon_rdp": 2.5,
        "epsilon_pld": 2.3,
        "lower_bound": lower,
        "lower_bound_fdp": lower,
        "confidence": 0.95,
        "num_canaries": 1000,
        "num_included": 490,
        "auc": 0.61,
        "steps": 400,
        "violated": violated,
        "sees": "every step",
        "cannot_see": ["seeds known to an attacker"],
    }


def check(
    status: str = "ok", *, name: str = "ledger-chain", site: str = "north", text: str = "A check."
) -> Check:
    """Return a check."""
    return Check(name=name, site=site, status=status, text=text)


def report(*sites: SiteAccount, kind: str = "site", **changes) -> AuditReport:
    """Return a report of some sites in which all is well, unless it is changed."""
    made = sites or (account(),)
    claims = "dp" if all(one.claims == "dp" for one in made) else "seeded"
    base = AuditReport(
        subject=Subject(
            kind=kind,
            name="north" if kind == "site" else "three-hospitals",
            source="site.yaml",
            created="2026-11-25T10:00:00+00:00",
            claims=claims,
            synthetic=True,
            data="Made-up data.",
            software={"opacus": "1.6.0", "dp-accounting": "0.6.0", "torch": "2.13.0"},
        ),
        sites=made,
        checks=tuple(
            check(name=name, site=one.site)
            for one in made
            for name in ("ledger-chain", "accountants", "within-cap", "claim", "heads", "policy")
        ),
        departures=(
            Departure(what="Updates", times="10 times", to="the centre", covered="spent", note="Counted."),
        ),
        coverage=tuple(
            Coverage(quantity=quantity.value, status="not-covered", sentence=f"About {quantity.value}.")
            for quantity in Quantity
        ),
        evidence=Evidence(audit=attack(), control=attack(violated=True), membership=attack(), origin="Made now."),
        utility=Utility(
            rows=(
                UtilityRow(arm="Federated, no privacy", measure="AUROC", value=0.81, low=0.77, high=0.85),
                UtilityRow(arm="Federated with DP", measure="AUROC", value=0.74, low=0.69, high=0.79),
            ),
            costs=(Cost(measure="AUROC", value=-0.07, low=-0.1, high=-0.04, outcome="worse"),),
        ),
        proofs=(
            Proof(
                site="north", size=22, counts={"GENESIS": 1, "RESERVE": 10, "COMMIT": 10, "REFUSE": 1}, root="a" * 64,
                tip="b" * 64, key="c" * 64, first="2026-11-01T10:00:00+00:00", last="2026-11-20T10:00:00+00:00",
                head={"size": 22}, command="python privacy/verify_ledger.py ledger.sqlite",
            ),
        ),
    )  # fmt: skip
    return finish(dataclasses.replace(base, **changes))


def as_subject(made: AuditReport, **changes) -> AuditReport:
    """Return a report with another subject."""
    return finish(dataclasses.replace(made, subject=dataclasses.replace(made.subject, **changes)))
