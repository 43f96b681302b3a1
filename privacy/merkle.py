"""The Merkle tree of RFC 6962 over the bodies of ledger entries: root, inclusion and consistency proofs.

Who keeps one root can later be shown, by a proof of logarithmic length, that one entry was in the ledger
(inclusion) and that a newer ledger contains everything the older one did (consistency), without seeing any
other entry.

Guarantees (tests/unit/privacy/test_merkle.py): a proof verifies for exactly the leaf, sizes and roots that it
was made for; `Frontier` gives the same root as the recursive definition.

References:
    RFC 6962, section 2.1; RFC 9162, sections 2.1.3.2 and 2.1.4.2 for the verification of proofs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

HASH_BYTES = 32


def leaf_hash(body: bytes) -> bytes:
    """Return the hash of one entry: SHA-256(0x00 || body)."""
    return hashlib.sha256(b"\x00" + body).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of two subtrees: SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """A growing tree, kept as the roots of its complete subtrees: appending costs O(log n)."""

    def __init__(self, leaves: Sequence[bytes] = ()) -> None:
        """Start from leaf hashes."""
        self.size = 0
        self._peaks: list[tuple[int, bytes]] = []  # (number of leaves, root), largest first
        for leaf in leaves:
            self.append(leaf)

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash at the right end."""
        count, root = 1, leaf
        while self._peaks and self._peaks[-1][0] == count:
            root = node_hash(self._peaks.pop()[1], root)
            count *= 2
        self._peaks.append((count, root))
        self.size += 1

    def root(self) -> bytes:
        """Return the hash of the whole tree.

        Raises:
            ValueError: the tree is empty; a ledger has at least its first entry.
        """
        if not self._peaks:
            raise ValueError("an empty ledger has no root")
        root = self._peaks[-1][1]
        for _, left in reversed(self._peaks[:-1]):
            root = node_hash(left, root)
        return root

    def copy(self) -> Frontier:
        """Return an independent copy."""
        made = Frontier()
        made.size, made._peaks = self.size, list(self._peaks)
        return made


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Return the hash of a tree of leaf hashes, at least one."""
    return Frontier(leaves).root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the audit path of leaf `index` in the tree of all `leaves` (RFC 6962, section 2.1.1).

    Raises:
        ValueError: there is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise ValueError(f"leaf {index} is not in a tree of {len(leaves)}")
    if len(leaves) == 1:
        return ()
    split = _split(len(leaves))
    if index < split:
        return (*inclusion_proof(leaves[:split], index), root_of(leaves[split:]))
    return (*inclusion_proof(leaves[split:], index - split), root_of(leaves[:split]))


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Return whether `proof` shows that `leaf` is number `index` in the tree of `size` leaves with `root`."""
    if not 0 <= index < size:
        return False
    node, last, found = index, size - 1, leaf
    for part in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            found = node_hash(part, found)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            found = node_hash(found, part)
        node, last = node >> 1, last >> 1
    return last == 0 and found == root


def consistency_proof(leaves: Sequence[bytes], old_size: int) -> tuple[bytes, ...]:
    """Return the proof that the tree of the first `old_size` leaves is part of that of all (RFC 6962, section 2.1.2).

    Raises:
        ValueError: `old_size` is not in 1..number of leaves.
    """
    if not 1 <= old_size <= len(leaves):
        raise ValueError(f"no proof from size {old_size} to {len(leaves)}")
    return _consistency(leaves, old_size, complete=True)


def verify_consistency(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Return whether `proof` shows that the tree with `new_root` begins with all leaves of that with `old_root`."""
    if not 1 <= old_size <= new_size:
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    parts = list(proof)
    if old_size & (old_size - 1) == 0:
        parts.insert(0, old_root)  # a complete subtree is its own first part
    if not parts:
        return False
    node, last = old_size - 1, new_size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = parts[0]
    for part in parts[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old, new = node_hash(part, old), node_hash(part, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, part)
        node, last = node >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root


def _split(size: int) -> int:
    """Return the largest power of two below `size` >= 2."""
    return 1 << ((size - 1).bit_length() - 1)


def _consistency(leaves: Sequence[bytes], old_size: int, *, complete: bool) -> tuple[bytes, ...]:
    """Return SUBPROOF(old_size, leaves, complete) of RFC 6962."""
    if old_size == len(leaves):
        return () if complete else (root_of(leaves),)
    split = _split(len(leaves))
    if old_size <= split:
        return (*_consistency(leaves[:split], old_size, complete=complete), root_of(leaves[split:]))
    return (
        *_consistency(leaves[split:], old_size - split, complete=False),
        root_of(leaves[:split]),
    )
