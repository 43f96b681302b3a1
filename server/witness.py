"""The server as a witness of the sites' ledgers: it keeps the heads that come with updates, and hands them back.

An update of a site with a ledger carries a receipt: a signed head, and proofs that the update was paid for and that the
ledger still contains all it contained at the head kept before. A site that sent one must go on sending them. Heads
of other sites travel with requests and come back with updates, so that a server which was replaced, or never saw a
site's other studies, learns of them from whoever remembers more.

Guarantees (tests/unit/server/test_witness.py): a rolled-back, forked or foreign ledger is named and its update refused;
nothing that a site says about another site can make an honest update count less.

It does not know what a site's key ought to be: the first head of a site decides, unless enrolment says more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from client.contract import MAX_HEADS, Update
from privacy.errors import PlanError
from privacy.heads import Head
from server.admission import RejectionCode

MAX_HANDED = 4096
_OTHERS = 16
"""Heads of other sites in one request; which ones changes from round to round."""


class Witness:
    """Heads of the ledgers of some sites.

    Args:
        sites: Enrolled sites.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        self._sites = tuple(sorted(sites))
        self._kept: dict[str, Head] = {}
        self._handed: dict[tuple[str, str], Head] = {}
        self._told: dict[str, int] = {}
        self._ring: dict[str, int] | None = None  # sites that have a head -> place, sorted; None: to be made
        self._order: list[str] = []

    def heads_for(self, site: str, round_: int) -> tuple[Head, ...]:
        """Return what goes with a request: all that is known of the site's own ledger, and some others' to keep."""
        own = self._kept.get(site)
        mine = [] if own is None else [own, *self._remembered(own)]
        self._told[site] = max((head.size for head in mine), default=0)
        others = [self._kept[other] for other in self._neighbours(site, round_)]
        return tuple([*mine, *others][:MAX_HEADS])

    def _neighbours(self, site: str, round_: int) -> list[str]:
        """Return which others' heads go to a site in a round, without looking at all of them for each site."""
        if self._ring is None:
            self._ring = {
                other: index for index, other in enumerate(sorted(set(self._sites) & set(self._kept)))
            }
            self._order = list(self._ring)
        own = self._ring.get(site)
        count = len(self._order) - (own is not None)  # places in the ring without the site itself
        places = ((round_ * _OTHERS + step) % count for step in range(min(_OTHERS, count)))
        return [self._order[place + (own is not None and place >= own)] for place in places]

    def fault(self, site: str, update: Update) -> RejectionCode | None:
        """Return what is wrong with the receipt of an update, None if nothing is."""
        known, receipt = self._kept.get(site), update.receipt
        if receipt is None:
            return None if known is None else RejectionCode.RECEIPT_MISSING
        found = receipt.fault(
            run=update.run_id,
            round_=update.round,
            base=update.base_hash,
            update=update.update_hash,
            known=known,
        )
        if found is not None:
            return RejectionCode(found.value)
        if receipt.head.size < self._told.get(site, 0):
            return RejectionCode.ROLLED_BACK  # it was shown a larger one before it signed
        claimed = {(each.sampling_probability, each.noise_multiplier) for each in update.claim.releases}
        paid = {(each.sampling_probability, each.noise_multiplier) for each in receipt.releases()}
        return None if paid <= claimed else RejectionCode.CLAIM

    def take(self, site: str, update: Update) -> None:
        """Keep the heads that came with an admitted update."""
        if update.receipt is not None:
            self._ring = self._ring if site in self._kept else None
            self._kept[site] = update.receipt.head
        for head in update.heads:
            key = head.dataset, head.key
            known = self._handed.get(key)
            is_new = known is None and len(self._handed) < MAX_HANDED
            if (is_new or (known is not None and head.size > known.size)) and head.is_signed():
                self._handed[key] = head

    def state(self) -> dict[str, list[dict[str, object]]]:
        """Return what a checkpoint must keep: heads of each site under its name, handed ones under an empty name."""
        kept = {site: [head.to_dict()] for site, head in self._kept.items()}
        return {**kept, "": [head.to_dict() for head in self._handed.values()]}

    def restore(self, state: Mapping[str, Sequence[object]]) -> None:
        """Go on from a state.

        Raises:
            PlanError: it holds something else than heads.
        """
        found: object = state
        if not isinstance(found, Mapping) or not all(
            isinstance(items, list | tuple) for items in found.values()
        ):
            raise PlanError("kept heads", ["must be lists of heads under the names of sites"])
        heads = {site: [Head.from_dict(item) for item in items] for site, items in state.items()}
        self._handed = {(head.dataset, head.key): head for head in heads.pop("", [])}
        self._kept = {site: own[0] for site, own in heads.items() if own}
        self._ring = None

    def _remembered(self, own: Head) -> list[Head]:
        """Return what sites have handed back of the ledger of a head."""
        found = self._handed.get((own.dataset, own.key))
        return [] if found is None else [found]
