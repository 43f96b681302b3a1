"""The tree against RFC 6962's own examples and a definition written anew; proofs verify for what they were made for."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.merkle import (
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

INPUTS = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
"""The leaves of the test vectors of Certificate Transparency (google/certificate-transparency, merkletree)."""
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
LEAVES = tuple(leaf_hash(bytes.fromhex(text)) for text in INPUTS)
SIZES = range(1, 18)


def leaves(count: int) -> tuple[bytes, ...]:
    return tuple(leaf_hash(str(number).encode()) for number in range(count))


def defined_root(hashes: tuple[bytes, ...]) -> bytes:
    """Return MTH as section 2.1 of RFC 6962 defines it."""
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    left, right = defined_root(hashes[:split]), defined_root(hashes[split:])
    return hashlib.sha256(b"\x01" + left + right).digest()


@pytest.mark.parametrize("size", range(1, 9))
def test_the_roots_of_certificate_transparency(size: int):
    assert root_of(LEAVES[:size]).hex() == ROOTS[size - 1]


def test_leaves_and_nodes_are_hashed_apart():
    assert leaf_hash(b"ab") == hashlib.sha256(b"\x00ab").digest()
    assert node_hash(b"a", b"b") == hashlib.sha256(b"\x01ab").digest()
    assert leaf_hash(b"\x01ab") != node_hash(b"a", b"b")


@pytest.mark.parametrize("size", SIZES)
def test_the_frontier_gives_the_root_of_the_definition(size: int):
    grown = Frontier()
    for number, leaf in enumerate(leaves(size), start=1):
        grown.append(leaf)
        assert grown.root() == defined_root(leaves(number))
        assert grown.size == number
    assert root_of(leaves(size)) == defined_root(leaves(size))


def test_a_copy_grows_by_itself():
    one = Frontier(leaves(3))
    two = one.copy()
    two.append(LEAVES[0])
    assert (one.size, one.root()) == (3, defined_root(leaves(3)))
    assert two.root() == defined_root((*leaves(3), LEAVES[0]))


def test_an_empty_tree_has_no_root_and_no_proofs():
    with pytest.raises(ValueError, match="an empty ledger has no root"):
        Frontier().root()
    with pytest.raises(ValueError, match="leaf 0 is not in a tree of 0"):
        inclusion_proof((), 0)
    with pytest.raises(ValueError, match="leaf -1 is not in a tree of 3"):
        inclusion_proof(leaves(3), -1)
    for old in (0, 4):
        with pytest.raises(ValueError, match=f"no proof from size {old} to 3"):
            consistency_proof(leaves(3), old)


def test_the_proofs_of_certificate_transparency():
    # Leaf 6 of 8, counted from 1, and growth from 6 to 8.
    assert [part.hex() for part in inclusion_proof(LEAVES, 5)] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert [part.hex() for part in consistency_proof(LEAVES, 6)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


@pytest.mark.parametrize("size", SIZES)
def test_an_inclusion_proof_verifies_for_its_leaf_its_number_its_size_and_its_root(size: int):
    hashes, root = leaves(size), root_of(leaves(size))
    for index in range(size):
        proof = inclusion_proof(hashes, index)
        assert verify_inclusion(hashes[index], index, size, proof, root)
        assert not verify_inclusion(LEAVES[0], index, size, proof, root)
        assert not verify_inclusion(hashes[index], index, size, proof, LEAVES[0])
        assert not verify_inclusion(hashes[index], index, size, (*proof, LEAVES[0]), root)
        for other in {*range(-1, size + 2)} - {index}:
            assert not verify_inclusion(hashes[index], other, size, proof, root)
        for place in range(len(proof)):
            assert not verify_inclusion(hashes[index], index, size, proof[:place] + proof[place + 1 :], root)
            bent = (*proof[:place], LEAVES[0], *proof[place + 1 :])
            assert not verify_inclusion(hashes[index], index, size, bent, root)


@pytest.mark.parametrize("size", SIZES)
def test_a_consistency_proof_verifies_for_its_sizes_and_roots(size: int):
    hashes, root = leaves(size), root_of(leaves(size))
    for old in range(1, size + 1):
        proof, before = consistency_proof(hashes, old), root_of(hashes[:old])
        assert verify_consistency(old, before, size, root, proof)
        assert not verify_consistency(old, LEAVES[0], size, root, proof)
        assert not verify_consistency(old, before, size, LEAVES[0], proof)
        assert not verify_consistency(old, before, size, root, (*proof, LEAVES[0]))
        for place in range(len(proof)):
            assert not verify_consistency(old, before, size, root, proof[:place] + proof[place + 1 :])
            bent = (*proof[:place], LEAVES[0], *proof[place + 1 :])
            assert not verify_consistency(old, before, size, root, bent)
        for other in {*range(-1, size + 2)} - {old}:
            assert not verify_consistency(other, before, size, root, proof)


@given(st.integers(2, 40), st.data())
def test_a_ledger_written_anew_cannot_be_shown_to_have_grown(size: int, data: st.DataObject):
    """One leaf of the old part is another: no proof that the new tree gives, for any size, links it to the old root."""
    old = data.draw(st.integers(1, size))
    changed = data.draw(st.integers(0, old - 1))
    hashes = leaves(size)
    anew = (*hashes[:changed], LEAVES[0], *hashes[changed + 1 :])
    before = root_of(hashes[:old])
    for claimed in range(1, size + 1):
        assert not verify_consistency(old, before, size, root_of(anew), consistency_proof(anew, claimed))


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=64), st.data())
def test_round_trips_of_any_leaves(bodies: list[bytes], data: st.DataObject):
    hashes = tuple(map(leaf_hash, bodies))
    index, old = data.draw(st.integers(0, len(bodies) - 1)), data.draw(st.integers(1, len(bodies)))
    assert verify_inclusion(
        hashes[index], index, len(bodies), inclusion_proof(hashes, index), defined_root(hashes)
    )
    assert verify_consistency(
        old,
        defined_root(hashes[:old]),
        len(bodies),
        defined_root(hashes),
        consistency_proof(hashes, old),
    )


def test_proofs_grow_with_the_logarithm():
    hashes = leaves(1000)
    assert max(len(inclusion_proof(hashes, index)) for index in (0, 511, 512, 999)) == 10
    assert max(len(consistency_proof(hashes, old)) for old in (1, 511, 512, 513, 999)) <= 11
