"""Plain training is named, warned about, and cannot be mistaken for private training."""

from __future__ import annotations

import subprocess
import sys

import pytest

from privacy.errors import PlanError
from privacy.unsafe import NoPrivacy, UnsafeWarning


def make(steps: int = 10, batch_patients: int = 4) -> NoPrivacy:
    with pytest.warns(UnsafeWarning, match="can contain single records in full"):
        return NoPrivacy(steps=steps, batch_patients=batch_patients)


def test_building_warns_and_keeps_the_values():
    plan = make(7, 3)
    assert (plan.steps, plan.batch_patients) == (7, 3)


def test_reading_warns_as_well():
    with pytest.warns(UnsafeWarning):
        assert NoPrivacy.from_dict({"kind": "none", "steps": 10, "batch_patients": 4}) == make()


def test_it_has_no_release_to_account():
    assert not hasattr(make(), "release")


def test_the_document_is_tagged_and_round_trips():
    plan = make()
    assert plan.to_dict() == {"kind": "none", "steps": 10, "batch_patients": 4}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"kind": "none", "steps": 10}, "batch_patients is missing"),
        ({"kind": "none", "steps": 10, "batch_patients": 4, "delta": 1}, "'delta' is unknown"),
        ({"kind": "patient-dp", "steps": 10, "batch_patients": 4}, "kind must be 'none'"),
        ({"kind": "none", "steps": -1, "batch_patients": 0}, "steps must be .*; batch_patients must be"),
        ({"kind": "none", "steps": True, "batch_patients": "4"}, "steps must be .*; batch_patients must be"),
        (None, "must be a mapping"),
    ],
)
def test_bad_documents_are_refused_before_anything_is_built(document: object, message: str):
    with pytest.raises(PlanError, match=message):
        NoPrivacy.from_dict(document)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_the_default_filter_shows_the_warning_once_in_a_process():
    code = "from privacy.unsafe import NoPrivacy\nfor _ in range(5): NoPrivacy(steps=1, batch_patients=1)"
    assert run(code).count("UnsafeWarning") == 1


def test_importing_is_silent_and_light():
    code = "import sys, privacy.unsafe; print([m for m in ('torch', 'numpy', 'opacus') if m in sys.modules])"
    assert run(code).strip() == "[]"
