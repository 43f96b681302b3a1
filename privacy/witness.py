"""Heads that others kept, held against a site's own ledger: how a restored old copy or a second version is found out.

A chain cannot show that its end was cut off, nor that another chain was signed with the same key. Who has kept
one head can. The server and the other sites keep the heads that come with updates and hand them back with every
request.
"""

from __future__ import annotations

from collections.abc import Iterable

from privacy.errors import RefusalCode, RefusedError
from privacy.heads import Head
from privacy.replay import State


def check_witnesses(state: State, heads: Iterable[Head]) -> None:
    """Refuse to go on with a ledger that is older than, or another than, one that somebody has seen.

    Heads that this site's keys have not signed are ignored: anybody could make them up.

    Args:
        state: Of the site's own ledger.
        heads: Of whatever ledgers, from whomever.

    Raises:
        RefusedError: entries are missing, or the ledger was written anew: nothing may be signed. Nothing is written
            either: one more entry would be one more fork.
    """
    for head in heads:
        if head.dataset != state.genesis.dataset or head.key not in state.keys or not head.is_signed():
            continue
        if head.size > state.size:
            raise RefusedError(
                RefusalCode.ROLLED_BACK,
                f"somebody has seen {head.size} entries of this ledger and it has {state.size}: an older copy was put "
                "back; restore the newest one",
            )
        if not state.contains(head):
            raise RefusedError(
                RefusalCode.FORKED,
                f"the first {head.size} entries are not those that somebody has seen: this ledger was written anew",
            )
