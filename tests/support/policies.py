"""A valid policy, plan and request, to be changed one field at a time."""

from __future__ import annotations

from privacy.plan import PrivacyPlan
from privacy.policy import Ask, Cap, Policy

MODEL = "a" * 64
OTHER = "b" * 64
POLICY: dict[str, object] = {
    "lifetime": Cap(epsilon=8.0, delta=1e-5),
    "per_run": Cap(epsilon=4.0, delta=1e-6),
    "min_noise_multiplier": 0.8,
    "max_sampling_probability": 0.1,
    "max_steps_per_round": 100,
    "max_grad_norm": 1.0,
    "max_records_per_patient": 4,
    "unit": "patient",
    "randomness": "os",
    "min_patients": 50,
    "patients_bound": 5000,
    "models": frozenset({MODEL}),
    "metrics": {"loss": 5.0},
    "min_sites": 3,
    "max_runtime_s": 3600.0,
}


def make_policy(**changes: object) -> Policy:
    """Return the policy with some fields changed."""
    return Policy(**{**POLICY, **changes})  # type: ignore[arg-type]


def plan(**changes: object) -> PrivacyPlan:
    """Return a plan within the policy, with some fields changed."""
    fields: dict[str, object] = {
        "sampling_probability": 0.05,
        "steps": 20,
        "noise_multiplier": 1.2,
        "max_grad_norm": 0.5,
        "divisor": 20.0,
        "delta": 1e-7,
        "max_records_per_patient": 2,
    }
    return PrivacyPlan(**{**fields, **changes})  # type: ignore[arg-type]


def ask(**changes: object) -> Ask:
    """Return a request within the policy, with some fields changed."""
    return Ask(**{"plan": plan(), "model_hash": MODEL, "num_sites": 3, **changes})  # type: ignore[arg-type]
