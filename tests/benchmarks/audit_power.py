"""What audits find: true claims at several numbers of canaries, and training with planted bugs.

Not about speed but about power: the same runs that `tests/statistical/test_audit_power.py` judges, with more seeds.
"""

from __future__ import annotations

import statistics
from typing import Any

from privacy.audit import AuditResult
from privacy.canaries import GradientCanaries
from tests.benchmarks.figures import Figure, figure
from tests.support.broken import BROKEN, EVERYBODY, UNSEEN, Audit, audited, no_noise, noised_by

COUNTS = (100, 300, 400, 1000, 1600)


def measure(*, quick: bool) -> list[Figure]:
    """Return the largest refuted epsilon of each variant, and how often its claim fell."""
    seeds = range(2) if quick else range(10)
    variants: dict[str, Audit] = {}
    for count in COUNTS[:1] if quick else COUNTS:
        variants |= {
            f"{name}, {count} canaries": _seeded(count, share)
            for name, share in (("true claim", 1.0), ("half the noise", 0.5), ("no noise", 0.0))
        }
    variants |= dict(list(BROKEN.items())[:1]) if quick else BROKEN | UNSEEN
    return [made for name, audit in variants.items() for made in measure_variant(name, audit, seeds)]


def measure_variant(name: str, audit: Audit, seeds: range) -> list[Figure]:
    """Return the figures of one variant."""
    found = [audit(seed) for seed in seeds]
    fallen = sum(each.violated for each in found)
    bounds = [max(each.lower_bound, each.lower_bound_fdp) for each in found]
    note = (
        f"claimed {found[0].epsilon_pld:.2f}, refuted in {fallen} of {len(found)} seeds, {found[0].num_canaries} "
        f"canaries, {min(bounds):.2f} to {max(bounds):.2f}, "
        f"{statistics.median(each.lower_bound for each in found):.2f} without any assumption"
    )
    return [
        figure(f"audit/{name}", bounds, "eps", note),
        figure(f"audit/{name}, time", [each.seconds for each in found], "s"),
    ]


def _seeded(count: int, share: float) -> Audit:
    """Return the audit of a claim of which a share of the noise is real."""
    canaries = GradientCanaries(count=count, records=4)

    def audit(seed: int, **options: Any) -> AuditResult:
        if share > 0.0:
            noise = share * EVERYBODY.noise_multiplier
            return audited(EVERYBODY, seed, canaries=canaries, noise_multiplier=noise, **options)
        with noised_by(no_noise):
            return audited(EVERYBODY, seed, canaries=canaries, **options)

    return audit
