"""What a site says about its releases: the parameters of everything released, with delta and unit.

Epsilon is recomputed from them. What stands behind a claim is the site's ledger (`privacy.ledger`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Literal

from privacy.accounting import FINAL_INTERVAL, EpsilonPair, Release, epsilons, merge_releases
from privacy.errors import PlanError
from privacy.fields import choice_problem, number_problem, parse_json, require_fields
from privacy.plan import Unit

ClaimKind = Literal["dp", "seeded", "none"]

_FIELDS = ("site", "unit", "delta", "kind", "releases")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A site's statement about everything it released in a run.

    Attributes:
        site: Public name of the site, not empty.
        unit: Whom the guarantee protects.
        delta: In (0, 1); 0 is allowed for `none`, where it means nothing.
        kind: `dp`; `seeded`: as computed, had the noise been secret, so no privacy is claimed; `none`: plain
            training.
        releases: The history, neighbours of equal parameters joined; empty for `none`.
    """

    site: str
    unit: Unit
    delta: float
    kind: ClaimKind
    releases: tuple[Release, ...]

    def __post_init__(self) -> None:
        problems = [
            *(
                ()
                if isinstance(self.site, str) and self.site
                else (f"site must be a name, got {self.site!r}",)
            ),
            *choice_problem("unit", self.unit, choices=("patient", "record")),
            *_delta_problem(self.delta, self.kind),
            *choice_problem("kind", self.kind, choices=("dp", "seeded", "none")),
        ]
        if not isinstance(self.releases, tuple) or not all(
            isinstance(item, Release) for item in self.releases
        ):
            problems.append("releases must be a tuple of releases")
        elif self.kind == "none" and self.releases:
            problems.append("a claim of kind none has no releases: nothing of it is private")
        if problems:
            raise PlanError("claim", problems)
        object.__setattr__(self, "releases", merge_releases(self.releases))

    def epsilons(self, *, interval: float = FINAL_INTERVAL) -> EpsilonPair:
        """Return both epsilons of the history; infinite for `none`, nominal for `seeded`."""
        if self.kind == "none":
            return EpsilonPair(rdp=math.inf, pld=math.inf)
        return epsilons(self.releases, self.delta, interval=interval)

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no spaces."""
        document = {
            "site": self.site,
            "unit": self.unit,
            "delta": self.delta,
            "kind": self.kind,
            "releases": [release.to_dict() for release in self.releases],
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Claim:
        """Read what `to_json` wrote; anything else is refused.

        Raises:
            PlanError: names every problem.
        """
        document = require_fields(parse_json(text, subject="claim"), subject="claim", names=_FIELDS)
        releases = document["releases"]
        if not isinstance(releases, list):
            raise PlanError("claim", ["releases must be a list"])
        return cls(
            site=document["site"],  # type: ignore[arg-type] # each field is checked in __post_init__
            unit=document["unit"],  # type: ignore[arg-type]
            delta=document["delta"],  # type: ignore[arg-type]
            kind=document["kind"],  # type: ignore[arg-type]
            releases=tuple(Release.from_dict(item) for item in releases),
        )


def _delta_problem(delta: object, kind: object) -> list[str]:
    """Return a problem unless `delta` is in (0, 1), or 0 where nothing is claimed."""
    if kind == "none" and delta == 0:
        return []
    return number_problem("delta", delta, low=0, high=math.nextafter(1, 0), rule="a number in (0, 1)")
