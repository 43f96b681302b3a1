"""What audits find: true claims at several numbers of canaries, and training with planted bugs.

Not about speed but about power: the same runs that `tests/statistical/test_audit_power.py` judges, with more seeds.
"""

from __future__ import annotations

from collections.abc import Callable

from privacy.audit import AuditResult
from privacy.canaries import GradientCanaries
from tests.benchmarks.figures import Figure, figure
from tests.support.broken import BROKEN, EVERYBODY, audited


def measure(*, quick: bool) -> list[Figure]:
    """Return the largest refuted epsilon of each variant, and how often its claim fell."""
    seeds = range(2) if quick else range(10)
    counts = (100,) if quick else (100, 400, 1600)
    variants: dict[str, Callable[[int], AuditResult]] = {}
    for count in counts:
        variants |= {
            f"{name}, {count} canaries": _seeded(count, share)
            for name, share in (("true claim", 1.0), ("half the noise", 0.5))
        }
    broken = dict(list(BROKEN.items())[:1]) if quick else BROKEN
    return [
        made for name, audit in (variants | broken).items() for made in measure_variant(name, audit, seeds)
    ]


def measure_variant(name: str, audit: Callable[[int], AuditResult], seeds: range) -> list[Figure]:
    """Return the figures of one variant."""
    found = [audit(seed) for seed in seeds]
    fallen = sum(each.violated for each in found)
    bounds = [max(each.lower_bound, each.lower_bound_fdp) for each in found]
    note = f"claimed {found[0].epsilon_pld:.2f}, refuted in {fallen} of {len(found)} seeds"
    return [
        figure(f"audit/{name}", bounds, "eps", note),
        figure(f"audit/{name}, time", [each.seconds for each in found], "s"),
    ]


def _seeded(count: int, share: float) -> Callable[[int], AuditResult]:
    """Return the audit of a claim of which a share of the noise is real."""
    noise = share * EVERYBODY.noise_multiplier
    canaries = GradientCanaries(count=count, records=4)
    return lambda seed: audited(EVERYBODY, seed, canaries=canaries, noise_multiplier=noise)
