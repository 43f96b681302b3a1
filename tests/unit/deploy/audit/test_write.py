"""The files of an audit: strict JSON, an envelope that a changed byte breaks, and nothing left of another audit."""

import base64
import json

import pytest

from deploy.audit.document import Evidence, worst
from deploy.audit.write import DOCUMENT, ENTRY, ENVELOPE, PAGE, sign_off, to_json, write
from privacy.errors import SigningError
from privacy.signing import generate_key, unseal
from tests.support.audits import account, attack, report
from tests.support.commands import strict_json


def test_writes_four_files_with_a_key_and_three_without(tmp_path):
    page = write(report(), tmp_path, generate_key())
    assert page == tmp_path / PAGE
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([PAGE, DOCUMENT, ENVELOPE, ENTRY])
    write(report(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([PAGE, DOCUMENT, ENTRY])


def test_nothing_is_written_if_anything_fails(tmp_path, monkeypatch):
    write(report(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(made):
        raise ValueError("on purpose")

    monkeypatch.setattr("deploy.audit.write.to_yaml", fail)
    with pytest.raises(ValueError, match="on purpose"):
        write(report(account(counted=1.0)), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_envelope_holds_the_very_document(tmp_path):
    key = generate_key()
    write(report(), tmp_path, key)
    document = (tmp_path / DOCUMENT).read_bytes()
    assert unseal((tmp_path / ENVELOPE).read_bytes(), key.public) == document
    assert json.loads(document)["signed_by"] == key.public
    assert f"Signed with the key {key.public[:16]}" in (tmp_path / PAGE).read_text()


def test_a_changed_byte_breaks_the_envelope(tmp_path):
    key = generate_key()
    write(report(), tmp_path, key)
    envelope = json.loads((tmp_path / ENVELOPE).read_text())
    payload = bytearray(base64.b64decode(envelope["payload"]))
    payload[payload.index(b"2.7")] = ord("1")
    envelope["payload"] = base64.b64encode(bytes(payload)).decode()
    with pytest.raises(SigningError, match="not signed by"):
        unseal(json.dumps(envelope), key.public)


def test_another_key_is_not_believed(tmp_path):
    write(report(), tmp_path, generate_key())
    with pytest.raises(SigningError, match="not signed by"):
        unseal((tmp_path / ENVELOPE).read_bytes(), generate_key().public)


def test_no_signature_is_said_in_amber(tmp_path):
    write(report(), tmp_path)
    page = (tmp_path / PAGE).read_text()
    assert "Not signed." in page
    assert "Not provided: a signature of this report." in page
    checks = json.loads((tmp_path / DOCUMENT).read_text())["checks"]
    assert [check["status"] for check in checks if check["name"] == "signature"] == ["not-provided"]


def test_a_key_that_is_not_the_ledgers_is_said():
    assert "not that of a ledger here" in sign_off(report(), generate_key()).checks[-1].text
    assert len(sign_off(sign_off(report(), None), None).checks) == len(report().checks) + 1


def test_json_is_strict_whatever_the_figures_are():
    made = report(
        account(counted=float("inf")), evidence=Evidence(audit={**attack(), "clopper_pearson": float("nan")})
    )
    document = strict_json(to_json(made))
    assert document["sites"][0]["cohorts"][0]["counted"] is None
    assert document["not_finite"]["/sites/0/cohorts/0/counted"] == "inf"
    assert document["not_finite"]["/evidence/audit/clopper_pearson"] == "nan"


def test_json_holds_all_of_it():
    made = report()
    document = strict_json(to_json(made))
    assert document["format"] == "federated-vae/audit/1"
    assert document["status"] == made.status
    assert len(document["checks"]) == len(made.checks)
    assert len(document["gaps"]) == len(made.gaps)
    assert len(document["coverage"]) == len(made.coverage)
    assert document["sites"][0]["cohorts"][0]["releases"][0]["steps"] == 400


def test_the_worst_of_all_checks_decides():
    assert worst([]) == "ok"
    assert worst(["ok", "not-provided"]) == "not-provided"
    assert worst(["attention", "ok", "not-provided"]) == "attention"
    assert worst(["violated", "attention"]) == "violated"
