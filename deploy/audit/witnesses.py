"""What others kept, held against a ledger: the claims that a server admitted, and the heads of the ledger itself.

A claim may say less than the ledger, never more: an update that came too late has left all the same, so its cost stays
in the ledger though no admitted claim says so. A head that somebody kept must be in the ledger still, else entries were
cut off or written anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from deploy.audit.document import Check, Claims
from privacy.accounting import Release, merge_releases
from privacy.claim import Claim
from privacy.errors import AccountingError, PlanError
from privacy.heads import Head
from privacy.replay import State
from server.report.words import small, up


def check_claim(
    site: str,
    claim: str | None,
    history: Sequence[Release],
    *,
    claims: Claims,
    unit: str = "patient",
    delta: float,
) -> Check:
    """Hold the claim that the server kept against what the site says it has spent in the same run.

    Args:
        site: Whose.
        claim: Canonical JSON, None if the server has none.
        history: Of the run, by the site's own record.
        claims: What the record promises.
        unit: Whom the record protects.
        delta: Of the record.
    """
    if claim is None:
        text = f"The server kept no claim of {site}: none of its updates was admitted."
        return Check(name="claim", site=site, status="not-provided", text=text)
    try:
        said = Claim.from_json(claim)
    except PlanError as error:
        text = f"What the server kept as the claim of {site} is none: {error}"
        return Check(name="claim", site=site, status="violated", text=text)
    left = rest_after(history, said.releases)
    details = _figures(said, delta)
    if fault := _contradiction(site, said, claims=claims, unit=unit, is_beginning=left is not None):
        return Check(name="claim", site=site, status="violated", text=fault, details=details)
    text = f"What {site} claimed to the server is exactly what its own record says."
    if left:
        text = (
            f"What {site} claimed to the server is in its own record, which holds {left:,} steps more: of updates that "
            "came too late, were not admitted or never left. They count."
        )
    return Check(name="claim", site=site, status="ok", text=text, details=details)


def _contradiction(site: str, said: Claim, *, claims: Claims, unit: str, is_beginning: bool) -> str:
    """Return how a claim contradicts a site's own record, empty if it does not."""
    if said.site != site or said.unit != unit:
        return f"The claim kept for {site} is of {said.site}, for each {said.unit}; its record is for each {unit}."
    if said.kind == "dp" and claims != "dp":
        return f"{site} claimed differential privacy to the server, and its own record says: {claims}."
    if not is_beginning:
        return (
            f"{site} has told the server of releases that are not in its own record: the record is cut, or the claim "
            "is of other parameters."
        )
    return ""


def _figures(said: Claim, delta: float) -> tuple[str, ...]:
    """Return what a claim comes to."""
    if not said.releases:
        return ()
    try:
        pair = said.epsilons()
    except AccountingError as error:
        return (str(error),)
    other = "" if said.delta == delta else f"; the record counts at delta {small(delta)}"
    return (f"claimed: PLD {up(pair.pld)}, RDP {up(pair.rdp)} at delta {small(said.delta)}{other}",)


def rest_after(history: Sequence[Release], claim: Sequence[Release]) -> int | None:
    """Return how many steps of a history come after those of a claim, None if the claim is not its beginning."""
    left = list(merge_releases(history))
    for said in merge_releases(claim):
        if not left or dataclasses.replace(left[0], steps=said.steps) != said or left[0].steps < said.steps:
            return None
        more = left[0].steps - said.steps
        left[:1] = [dataclasses.replace(left[0], steps=more)] if more else []
    return sum(release.steps for release in left)


def check_heads(site: str, state: State, heads: Iterable[Head], *, witness: str) -> Check:
    """Hold heads that others kept against a ledger.

    Args:
        site: Whose ledger.
        state: After its last entry that holds.
        heads: Of whatever ledgers, from whomever.
        witness: Who kept them, as in "the server".
    """
    own = [head for head in heads if head.dataset == state.genesis.dataset]
    signed = [head for head in own if head.key in state.keys and head.is_signed()]
    lost = [head for head in signed if head.size > state.size]
    other = [head for head in signed if head.size <= state.size and not state.contains(head)]
    if lost:
        most = max(head.size for head in lost)
        text = (
            f"Entries of the ledger of {site} are gone: {witness} has seen {most:,} of them and {state.size:,} are "
            "here. An older copy was put back, or the end cut off."
        )
        return Check(name="heads", site=site, status="violated", text=text)
    if other:
        text = (
            f"The ledger of {site} was written anew: its first {other[0].size:,} entries are not those that {witness} "
            "has seen and the site's own key has signed."
        )
        return Check(name="heads", site=site, status="violated", text=text)
    if not signed:
        found = (
            ""
            if not own
            else ", but only heads that no key of this ledger has signed, which anybody can make up"
        )
        text = (
            f"Nobody outside has a head of the ledger of {site}{found}. Without one, a cut-off end would not be "
            "noticed: ask the server or another site for the last head it kept."
        )
        return Check(name="heads", site=site, status="not-provided", text=text)
    size = max(head.size for head in signed)
    since = state.size - size
    text = (
        f"Nothing that {witness} has seen of the ledger of {site} is gone: its first {size:,} entries are those of "
        "the head that was kept."
    )
    more = f"{since:,} entries were added since" if since else "nothing was added since"
    return Check(name="heads", site=site, status="ok", text=text, details=(more,))
