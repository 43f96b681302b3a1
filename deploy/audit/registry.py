"""An entry for the Deployments Registry (OpenDP and NIST), tier 3, filled in as far as software can.

What only a person knows begins with `gaps.MARK`, and `administrative.notes` lists it once more. A run whose noise was
seeded makes no claim: its entry says so in its name and carries no epsilon that a reader could take for one.

References:
    opendp/deployments-registry-data, schemas/deployments-schema.yaml (2026-07).
"""

from __future__ import annotations

import re
from typing import Any

from deploy.audit.document import AuditReport, SiteAccount
from deploy.audit.gaps import MARK
from deploy.documents import dump_yaml
from server.report.words import small, up

TIER = 3


def to_yaml(report: AuditReport) -> str:
    """Return the entry as YAML."""
    return dump_yaml(to_entry(report))


def to_entry(report: AuditReport) -> dict[str, Any]:
    """Return the entry as plain values.

    Guarantees:
        Valid against the registry's schema (tests/unit/deploy/audit/test_registry.py).
    """
    return {
        "url_slug": re.sub(r"[^a-z0-9]+", "-", f"{report.subject.kind}-{report.subject.name}".lower()).strip(
            "-"
        ),
        "status": "Draft",
        "tier": TIER,
        "deployment": {
            "basic": _basic(report),
            "dp_variant": _variant(report),
            "privacy_loss": _privacy_loss(report),
            "deployment_model": _model(report),
            "accounting": {
                "post_processing": _answer(
                    report, "Post-processing", "what the centre does before a release."
                ),
                "composition": _answer(report, "Accountants and composition", "how costs were added up."),
            },
            "implementation": _implementation(report),
            "administrative": _administrative(report),
        },
    }


def _basic(report: AuditReport) -> dict[str, Any]:
    """Return the basic facts."""
    claim = {"dp": "", "seeded": "SIMULATION, NO PRIVACY CLAIM: ", "none": "NO PRIVACY: "}[
        report.subject.claims
    ]
    return {
        "name": f"{claim}federated variational autoencoder, {report.subject.name}",
        "data_curators": [f"{MARK} the institutions that answer for the model."],
        "intended_use": f"{MARK} what the model is for.",
        "data_product_type": "Machine learning model",
        "data_product_region": f"{MARK} where the patients live and whose law applies.",
        "publication_date": report.subject.created[:10],
        "data_product_sector": "Healthcare",
        "description": (
            "Weights of a variational autoencoder, trained across hospitals on records that never left them; each "
            f"hospital added noise to its updates before they left. {report.subject.data}"
        ),
    }


def _variant(report: AuditReport) -> dict[str, Any]:
    """Return variant, domain, and what is unprotected."""
    return {
        "variant_name": "Approximate DP",
        "data_domain": "All sets of patients, each with any number of records (scans, visits) of the agreed shape.",
        "unprotected_quantities": _answer(report, "Unprotected quantities", "what epsilon does not cover."),
    }


def _privacy_loss(report: AuditReport) -> dict[str, Any]:
    """Return unit and parameters; those of the site that spent most."""
    most = _most_spent(report)
    details = _answer(report, "Epsilon and delta", "what was spent.")
    found: dict[str, Any] = {
        "privacy_unit": most.unit.capitalize() if most else f"{MARK} whom the figures are about.",
        "privacy_unit_details": _answer(report, "Unit and cap on contributions", "the unit of privacy.")
        + " "
        + _answer(report, "Variant and neighbouring relation", "the neighbouring relation."),
    }
    if most is not None and report.subject.claims == "dp":
        found["privacy_parameters"] = {
            "epsilon": float(up(most.worst.counted).replace(",", "")),
            "delta": most.delta,
        }
        details = f"The largest of all sites, rounded up, at delta {small(most.delta)}. {details}"
    found["privacy_parameters_details"] = details
    return found


def _model(report: AuditReport) -> dict[str, Any]:
    """Return who trusts whom, and how often something is released."""
    return {
        "model_name": "Federated",
        "model_name_details": _answer(report, "Trust model", "who trusts whom."),
        "actors": (
            "Hospitals (hold the records, add the noise, keep the ledger); the coordinating centre (sees every "
            "update); other hospitals (see every global model); whoever gets the final model. "
            f"{MARK} who they are, who at the centre sees single updates, and whether sites may pool what they know."
        ),
        "release_type": "Many releases",
        "release_type_details": _answer(
            report, "Number of releases and what is left", "how many releases there are."
        ),
        "data_source_type": "Dynamic",
        "data_source_type_details": "Patients who join form a new cohort with an account of its own; nobody's renews.",
        "access_type": "Non-interactive",
        "access_type_details": "Nobody asks questions of the records; what leaves is updates of one model.",
    }


def _implementation(report: AuditReport) -> dict[str, Any]:
    """Return mechanisms, preparation and reasons."""
    items = (
        "Mechanism and parameters",
        "Implementation: libraries",
        "Implementation: randomness",
        "Implementation: floating point",
        "Implementation: timing and side channels",
        "Empirical bound",
    )
    said = [f"{item}: {answer}" for item in items if (answer := _known(report, item))]
    preparation = _known(report, "Pre-processing and exploration") or ""
    return {
        "preprocessing_and_hyperparameter_tuning": (
            f"{preparation} {MARK} what was looked at, cleaned or tuned on these patients outside this software."
        ).strip(),
        "mechanisms": "\n\n".join(
            [*said, f"{MARK} who can reach raw data, key and salt, and who checks that."]
        ),
        "justification": f"{MARK} who decided on epsilon, delta and unit, and why they are right for these patients.",
    }


def _administrative(report: AuditReport) -> dict[str, Any]:
    """Return who wrote the entry, and what is still open."""
    questions = [f"{gap.registry or 'no field'}: {gap.question}" for gap in report.gaps]
    notes = [
        f"{MARK} publication_date, at which the date of the audit stands until somebody knows better.",
        "Evidence for an assessment, made by software; these questions are for a person:",
        *questions,
    ]
    return {
        "registry_authors": [f"{MARK} your name. Drafted by `python -m deploy audit`."],
        "notes": "\n".join(notes),
    }


def _most_spent(report: AuditReport) -> SiteAccount | None:
    """Return the site that spent most, if any has."""
    return max(report.sites, key=lambda one: one.worst.counted, default=None)


def _known(report: AuditReport, item: str) -> str | None:
    """Return the answer to a disclosure."""
    return next((row.answer for row in report.disclosures if row.item == item), None)


def _answer(report: AuditReport, item: str, question: str) -> str:
    """Return the answer to a disclosure, or the mark and the question."""
    return _known(report, item) or f"{MARK} {question}"
