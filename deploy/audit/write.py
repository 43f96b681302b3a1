"""The files of an audit: a page for people, JSON for programs, a signed envelope, and an entry for a public register.

Everything is computed before anything is written, and each file is whole or absent. Without a key there is no envelope,
and one that an earlier audit left there is removed: it would seem to be of this one.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.audit.document import AuditReport, Check, to_dict
from deploy.audit.page import render
from deploy.audit.registry import to_yaml
from deploy.audit.verdict import findings, headline
from privacy.signing import SigningKey, seal
from vae.data.durable import write_atomically

FORMAT = "federated-vae/audit/1"
PAGE, DOCUMENT, ENVELOPE, ENTRY = "audit.html", "audit.json", "audit.dsse.json", "registry.yaml"


def write(report: AuditReport, folder: Path, key: SigningKey | None = None) -> Path:
    """Write all files of an audit into a folder and return the path of the page.

    Args:
        report: What to write; who signs it is filled in.
        folder: Made if it does not exist.
        key: Signs the envelope; None: there is none, and the report says so.

    Raises:
        OSError: the folder cannot be written.
    """
    signed = sign_off(report, key)
    document = to_json(signed)
    contents: dict[str, bytes] = {
        PAGE: render(signed).encode(),
        DOCUMENT: document.encode(),
        ENTRY: to_yaml(signed).encode(),
    }
    if key is not None:
        contents[ENVELOPE] = (json.dumps(seal(document.encode(), key), indent=2) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    if key is None:
        (folder / ENVELOPE).unlink(missing_ok=True)
    for name, content in contents.items():
        write_atomically(folder / name, content)
        (folder / name).chmod(0o644)
    return folder / PAGE


def sign_off(report: AuditReport, key: SigningKey | None) -> AuditReport:
    """Return the report with who signs it, as a check like the others."""
    text = "Nobody has signed this report: a copy of it can be changed unseen."
    made = Check(name="signature", site="", status="not-provided", text=text)
    if key is not None:
        keys = {proof.key for proof in report.proofs}
        own = (
            "the key of the ledger"
            if key.public in keys
            else "a key that was given; it is not that of a ledger here"
        )
        text = f"This report is signed with {own}."
        made = Check(name="signature", site="", status="ok", text=text, details=(key.public,))
    checks = [check for check in report.checks if check.name != "signature"]
    return dataclasses.replace(report, checks=(*checks, made), signed_by=None if key is None else key.public)


def to_json(report: AuditReport) -> str:
    """Return the report as strict JSON: no NaN, no infinity; such a figure is null, and `not_finite` says where."""
    first = headline(report)
    not_finite: dict[str, str] = {}
    document = {
        "format": FORMAT,
        "status": report.status,
        "verdict": {"tone": first.tone, "text": first.text, "details": list(first.details)},
        "findings": [
            {"tone": one.tone, "text": one.text, "details": list(one.details)} for one in findings(report)
        ],
        **to_dict(report),
    }
    clean = _finite(document, "", not_finite)
    return (
        json.dumps({**clean, "not_finite": not_finite}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )


def _finite(value: Any, where: str, found: dict[str, str]) -> Any:  # noqa: ANN401 - JSON
    """Return a value with null for every number that is not finite, and note where (a JSON pointer)."""
    if isinstance(value, float) and not math.isfinite(value):
        found[where] = str(value)
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item, f"{where}/{key}", found) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item, f"{where}/{index}", found) for index, item in enumerate(value)]
    return value
