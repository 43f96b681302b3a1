"""Who sees what of a site, and the epsilon against each: the server, the other sites, the public.

The default claims one figure for all three. A site's update of several local steps is a function of its own
noised sums, so whatever is computed from updates (global models, the final model, what the public downloads) is
post-processing and spends nothing more, without trust in anybody. It does not spend less either:

- Averaging does not amplify. Local training of several steps is no linear query, so the noise of other sites
  does not add to a site's own in any way that is proven.
- Hiding all but the final model does not amplify either, as far as is known: the bounds for hidden intermediate
  models need convex losses, and the loss of a VAE is not convex.

One exception is proven. If each round has exactly one local step of plain SGD, all with equal step size, divisor,
clip and noise, averaged with equal weights, then a global model shows the *sum* of the sites' noised sums. An
observer who knows what t sites added (its own, and those that collude with it) still has the noise of the other
H - t in its way: the noise multiplier against it is sigma sqrt(H - t). This needs that nobody shows it single
updates, and treats the rounding of updates (float32; the grid of the noise) as nothing.

What it does not do: check that the run was like that (facts come from the plan), amplification because a site
was not asked in a round (it knows, and so does the server), or central privacy of whole sites.

References:
    Dwork & Roth 2014, proposition 2.1 (post-processing); Chourasia, Ye, Shokri 2021, arXiv:2102.05855 and
    Altschuler & Talwar 2022, arXiv:2205.13710 (hidden models, convex losses); Kairouz, Liu, Steinke 2021,
    arXiv:2102.06387 (noise of the sites that adds up).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from privacy.accounting import FINAL_INTERVAL, EpsilonPair, epsilons
from privacy.errors import PlanError
from privacy.fields import integer_problem
from privacy.releases import Release

AdversaryName = Literal["server", "other-site", "public"]

ADVERSARIES: tuple[AdversaryName, ...] = get_args(AdversaryName)

_FACTS = ("plain_sgd", "equal_plans", "equal_weights", "server_keeps_updates")


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Public facts of a run, from its plan; the defaults claim nothing.

    Attributes:
        num_sites: H >= 1, the least number of sites whose updates were averaged in any round.
        num_colluding: t, 1 to H: sites that pool what they know against one site, the observer included.
        local_steps: Steps of a site in one round, >= 1.
        plain_sgd: The local optimiser is SGD without momentum or state, with the same step size at each site.
        equal_plans: Every site has the same divisor, clip bound and noise multiplier.
        equal_weights: The server averages with equal weights, and by nothing but a mean.
        server_keeps_updates: The server shows single updates to nobody: an assumption about people.
    """

    num_sites: int
    num_colluding: int = 1
    local_steps: int
    plain_sgd: bool = False
    equal_plans: bool = False
    equal_weights: bool = False
    server_keeps_updates: bool = False

    def __post_init__(self) -> None:
        problems = [
            *integer_problem("num_sites", self.num_sites, low=1),
            *integer_problem("local_steps", self.local_steps, low=1),
        ]
        if not problems:
            problems += integer_problem("num_colluding", self.num_colluding, low=1, high=self.num_sites)
        problems += [
            f"{name} must be true or false, got {getattr(self, name)!r:.60}"
            for name in _FACTS
            if not isinstance(getattr(self, name), bool)
        ]
        if problems:
            raise PlanError("federation", problems)

    @property
    def is_linear(self) -> bool:
        """Return whether a global model is a known function of the sum of the noised sums, and nothing else."""
        return self.local_steps == 1 and self.plain_sgd and self.equal_plans and self.equal_weights


@dataclass(frozen=True, kw_only=True)
class AdversaryView:
    """What one adversary sees of a site, and what that costs the site's patients.

    Attributes:
        name: Who.
        sees: Which of the site's releases, in a sentence.
        epsilon: Upper bounds by both accountants.
        assumption: What has to be true for the figure, in plain sentences.
    """

    name: AdversaryName
    sees: str
    epsilon: EpsilonPair
    assumption: str


def view_adversaries(
    releases: Sequence[Release],
    delta: float,
    federation: Federation,
    *,
    interval: float = FINAL_INTERVAL,
) -> tuple[AdversaryView, ...]:
    """Return the views of the server, of another site and of the public, in this order.

    Args:
        releases: What the site released in this run; another run has a federation, and views, of its own.
        delta: In (0, 1).
        federation: How the run was done.
        interval: Grid of the PLD.

    Raises:
        PlanError: delta is out of range, or the history mixes neighbouring relations.

    Guarantees:
        No figure is below the server's unless the federation is linear, the server keeps updates to itself
        and two honest sites or more remain (tests/unit/privacy/test_adversaries.py).
    """
    own = epsilons(releases, delta, interval=interval)
    server = AdversaryView(name="server", sees=_SERVER_SEES, epsilon=own, assumption=_SERVER_ASSUMES)
    honest = federation.num_sites - federation.num_colluding
    if not (federation.is_linear and federation.server_keeps_updates and honest >= 2):
        why = _why_not_less(federation, honest)
        return (
            server,
            AdversaryView(name="other-site", sees=_SITES_SEE, epsilon=own, assumption=f"{_NO_TRUST} {why}"),
            AdversaryView(name="public", sees=_PUBLIC_SEES, epsilon=own, assumption=_PUBLIC_ASSUMES),
        )
    covered = epsilons([_with_noise_of(release, honest) for release in releases], delta, interval=interval)
    assumes = _SUM_ASSUMES.format(
        sites=federation.num_sites, colluding=federation.num_colluding, honest=honest
    )
    return (
        server,
        AdversaryView(name="other-site", sees=_SITES_SEE, epsilon=covered, assumption=assumes),
        AdversaryView(
            name="public", sees=_PUBLIC_SEES, epsilon=covered, assumption=f"{_PUBLIC_OF_SUM} {assumes}"
        ),
    )


def _with_noise_of(release: Release, num_sites: int) -> Release:
    """Return a release whose noise is the sum of that of several sites."""
    return dataclasses.replace(release, noise_multiplier=release.noise_multiplier * math.sqrt(num_sites))


def _why_not_less(federation: Federation, honest: int) -> str:
    """Return why other sites' noise is not counted."""
    if not federation.is_linear:
        return (
            "The noise of other sites is not counted: that is proven only for one local step of plain SGD a "
            "round with equal plans and equal weights."
        )
    if not federation.server_keeps_updates:
        return "The noise of other sites is not counted: the server is not assumed to keep single updates to itself."
    return (
        f"The noise of other sites is not counted: {max(0, honest)} site(s) of {federation.num_sites} remain "
        "that do not collude, and it takes two."
    )


_NO_TRUST = (
    "Nobody has to be trusted: all that is seen is computed from the site's own noised sums, which are already "
    "private. It is assumed that the site's noise is secret and its software does what it says."
)
_SERVER_SEES = "Every update of the site, round by round."
_SERVER_ASSUMES = (
    f"{_NO_TRUST} The server may keep everything, deviate from the protocol and publish what it has."
)
_SITES_SEE = "Every global model: the site's update averaged with those of the other sites, round by round."
_PUBLIC_SEES = "The final model only."
_PUBLIC_ASSUMES = (
    f"{_NO_TRUST} Seeing less surely reveals no more, but how much less is known for convex losses only, which "
    "this is not; so the figure of the server is printed."
)
_PUBLIC_OF_SUM = (
    "The final model is computed from the global models, so the figure against other sites holds; a smaller one "
    "is known for convex losses only."
)
_SUM_ASSUMES = (
    "Each round shows only the sum of all sites' noised sums. It is assumed that the server shows single updates "
    "to nobody and does not collude, that at most {colluding} of {sites} sites pool what they know, that the other "
    "{honest} really add their noise in every round, and that rounding of the updates reveals nothing. If the "
    "server shows single updates, the figure of the server holds instead."
)
