"""Stand-ins: how the patients of a public cohort play the sites of an experiment.

Some patients are pre-trained on, as the public cohort of the real run is; some stand in for the sites' own; some are
judged on, as the sites' test patients are. A public cohort of several hospitals gives the first from some and the
others from other hospitals, since in the real run the sites are not where the public data are from.

Pure: works on counts of patients. Equal counts and seed give the same parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from privacy.plan import PrivacyPlan
from vae.errors import DataError

Indices = npt.NDArray[np.int64]

SCORED = 0.25
"""Share of the hosts' patients that are held back to judge on, at least."""

FEWEST = 2
"""Patients that a stand-in needs."""


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """Who plays a site.

    Attributes:
        host: The public hospital whose patients they are.
        patients: Their indices there.
        asked: n of the site.
    """

    host: str
    patients: Indices
    asked: float


@dataclass(frozen=True, kw_only=True)
class Deal:
    """The parts of a public cohort.

    Attributes:
        start: Public hospital -> patients to pre-train on.
        standins: Site -> who plays it.
        scored: Public hospital -> patients to judge on.
    """

    start: Mapping[str, Indices]
    standins: Mapping[str, StandIn]
    scored: Mapping[str, Indices]

    @property
    def is_apart(self) -> bool:
        """Return whether stand-ins are of other hospitals than what is pre-trained on."""
        return not set(self.start) & set(self.scored)

    @property
    def is_full(self) -> bool:
        """Return whether every stand-in has as many patients as its site."""
        return all(len(one.patients) >= round(one.asked) for one in self.standins.values())


def deal(counts: Mapping[str, int], per_site: Mapping[str, float], *, seed: int) -> Deal:
    """Return the parts of a public cohort.

    Half of its hospitals (of a single one: half of its patients) are pre-trained on. The others, the hosts, are the
    larger ones, at most one a site. A quarter of their patients, and whoever is left over, are judged on.

    Args:
        counts: Public hospital -> its patients.
        per_site: Site of the experiment -> n.
        seed: Of the shuffle.

    Raises:
        DataError: the cohort is too small to play all sites.

    Guarantees:
        No patient is in two parts; the same for any order of `counts` (tests/unit/deploy/tune/test_standins.py).
    """
    rng = np.random.default_rng(seed)
    shuffled = {name: rng.permutation(counts[name]).astype(np.int64) for name in sorted(counts)}
    num_hosts = max(1, min(len(per_site), len(counts) // 2))
    hosts = sorted(shuffled, key=lambda name: -counts[name])[:num_hosts]
    if len(counts) == 1:
        half = len(shuffled[hosts[0]]) // 2
        start = {hosts[0]: np.sort(shuffled[hosts[0]][:half])}
        shuffled[hosts[0]] = shuffled[hosts[0]][half:]
    else:
        start = {name: np.sort(each) for name, each in shuffled.items() if name not in hosts}
    guests = {host: list(per_site)[index::num_hosts] for index, host in enumerate(hosts)}
    standins: dict[str, StandIn] = {}
    scored: dict[str, Indices] = {}
    for host in hosts:
        rest = shuffled[host]
        room = (len(rest) - max(1, round(SCORED * len(rest)))) // len(guests[host])
        if room < FEWEST or not len(next(iter(start.values()))):
            raise DataError(_too_few(counts, len(per_site)))
        for site in guests[host]:
            size = max(FEWEST, min(room, round(per_site[site])))
            standins[site] = StandIn(host=host, patients=np.sort(rest[:size]), asked=per_site[site])
            rest = rest[size:]
        scored[host] = np.sort(rest)
    return Deal(start=start, standins={site: standins[site] for site in per_site}, scored=scored)


def played(plan: PrivacyPlan, standin: StandIn) -> PrivacyPlan:
    """Return a site's plan as its stand-in trains by it: with the same noise on the mean gradient.

        q' = min(1, q n / m)    divisor' = q' m / b    sigma' = sigma divisor' / divisor

    for m patients in place of n, and b bands (1 without). A step then takes as many patients as at the site, the noise
    on their mean is the site's, sigma' C / divisor' = sigma C / divisor, and sigma itself stays where q' is below 1.
    What is not the same: the patients come round more often, and there are fewer to learn from.

    Args:
        plan: Of the site, by its public n, and with the divisor q n / b.
        standin: Who plays it.

    Guarantees:
        Equal noise on the mean for any m (tests/unit/deploy/tune/test_standins.py).
    """
    size = len(standin.patients)
    share = min(1.0, plan.sampling_probability * standin.asked / size)
    divisor = share * size / plan.bands
    return replace(
        plan,
        sampling_probability=share,
        divisor=divisor,
        noise_multiplier=plan.noise_multiplier * divisor / plan.divisor,
    )


def _too_few(counts: Mapping[str, int], sites: int) -> str:
    """Return what is wrong with a small cohort, and the way out."""
    return (
        f"public.data: {sum(counts.values())} patients of {len(counts)} public hospitals are too few to pre-train on "
        f"half, to play {sites} sites with {FEWEST} patients or more each, and to judge on a quarter of the rest; "
        "give a larger public cohort"
    )
