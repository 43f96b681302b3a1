"""Training without privacy: exists for comparison and for public data, warns, and marks every claim `none`.

Importing this module costs nothing and warns nothing; building a `NoPrivacy` warns.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from privacy.errors import PlanError
from privacy.fields import integer_problem, require_fields

KIND = "none"


class UnsafeWarning(UserWarning):
    """Something without any privacy guarantee is about to be used."""


@dataclass(frozen=True, kw_only=True)
class NoPrivacy:
    """A plan of plain training: no clipping, no noise, no guarantee.

    What leaves the site can contain single records in full. Building one warns with `UnsafeWarning`; Python's
    default filter shows that once in a process.

    Attributes:
        steps: Steps of one round, >= 0.
        batch_patients: Patients a step, >= 1.
    """

    steps: int
    batch_patients: int

    def __post_init__(self) -> None:
        problems = [
            *integer_problem("steps", self.steps, low=0),
            *integer_problem("batch_patients", self.batch_patients, low=1),
        ]
        if problems:
            raise PlanError("plan without privacy", problems)
        warn_unsafe()

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON values, tagged `kind: none`."""
        return {"kind": KIND, "steps": self.steps, "batch_patients": self.batch_patients}

    @classmethod
    def from_dict(cls, payload: object) -> NoPrivacy:
        """Read what `to_dict` wrote.

        Raises:
            PlanError: names every problem.
        """
        fields: dict[str, Any] = dict(
            require_fields(payload, subject="plan without privacy", names=("kind", "steps", "batch_patients"))
        )
        if fields.pop("kind") != KIND:
            raise PlanError("plan without privacy", [f"kind must be {KIND!r}"])
        return cls(**fields)


def warn_unsafe() -> None:
    """Warn from one place, so that the default filter shows it once in a process."""
    warnings.warn(
        "training without differential privacy: the update can contain single records in full; use a "
        "PrivacyPlan for anything but public data",
        UnsafeWarning,
        stacklevel=1,
    )
