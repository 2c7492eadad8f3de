"""Digests: golden chains, and the tree held against the sentence that defines it."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import digest
from tests.core.examples import example


def merkle_tree_hash(leaves: list[bytes]) -> bytes:
    """MTH as RFC 9162 §2.1.1 defines it: split at the largest power of two below n."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    left = 1
    while 2 * left < len(leaves):
        left *= 2
    return hashlib.sha256(
        b"\x01" + merkle_tree_hash(leaves[:left]) + merkle_tree_hash(leaves[left:])
    ).digest()


def test_the_golden_chain_is_computed_from_its_leaves():
    previous = digest.FIRST
    for revision in example("digest", "chain")["revisions"]:
        root = digest.root([leaf.encode() for leaf in revision["leaves"]])
        previous = digest.chained(previous, root, revision["revision"], revision["cause"])

        assert root.hex() == revision["root"]
        assert previous.hex() == revision["digest"]


def test_every_leaf_of_the_golden_chain_is_canonical():
    for revision in example("digest", "chain")["revisions"]:
        for leaf in revision["leaves"]:
            assert digest.canonical(json.loads(leaf)) == leaf.encode()


def test_the_golden_chain_has_every_kind_of_leaf_as_it_is_made_here():
    made = {
        "row": lambda *rest: digest.row_leaf(*rest),
        "catalogue": digest.catalogue_leaf,
        "definition": digest.definition_leaf,
        "edge": digest.edge_leaf,
        "epoch": digest.epoch_leaf,
    }
    leaves = [leaf for revision in example("digest", "chain")["revisions"] for leaf in revision["leaves"]]

    assert [made[json.loads(leaf)[0]](*json.loads(leaf)[1:]).decode() for leaf in leaves] == leaves
    assert {json.loads(leaf)[0] for leaf in leaves} == set(made)


def test_the_golden_trees_have_their_roots():
    for tree in example("digest", "trees")["roots"]:
        assert digest.root([leaf.encode() for leaf in tree["leaves"]]).hex() == tree["root"]


@given(st.lists(st.binary(max_size=4), max_size=70))
def test_the_root_is_the_merkle_tree_hash_of_the_sorted_leaves(leaves):
    assert digest.root(leaves) == merkle_tree_hash(sorted(leaves))


@given(st.lists(st.binary(max_size=4), max_size=20), st.randoms())
def test_the_order_of_a_batch_does_not_change_its_root(leaves, random):
    shuffled = list(leaves)
    random.shuffle(shuffled)

    assert digest.root(shuffled) == digest.root(leaves)


def test_an_empty_batch_has_the_hash_of_nothing():
    assert digest.root([]) == digest.EMPTY_ROOT == hashlib.sha256(b"").digest()


@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
    st.integers(1, 2**63 - 1),
    st.sampled_from(digest.CAUSES),
)
def test_a_digest_covers_the_one_before_the_batch_the_number_and_the_cause(previous, root, revision, cause):
    written = b"trueboard/1" + previous + root + revision.to_bytes(8, "big") + cause.encode()

    assert digest.chained(previous, root, revision, cause) == hashlib.sha256(written).digest()


@pytest.mark.parametrize("case", example("digest", "canonical")["cases"], ids=lambda case: case["canonical"])
def test_a_golden_value_has_its_canonical_form(case):
    assert digest.canonical(case["value"]) == case["canonical"].encode()


characters = st.characters(exclude_categories=["Cs"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(characters, max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(characters, max_size=3), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(values)
def test_canonical_json_reads_back_as_what_it_was_made_of(value):
    assert json.loads(digest.canonical(value)) == value


@given(st.dictionaries(st.text(characters, max_size=3), st.integers(), max_size=6), st.randoms())
def test_the_order_of_keys_does_not_change_the_canonical_form(value, random):
    pairs = list(value.items())
    random.shuffle(pairs)

    assert digest.canonical(dict(pairs)) == digest.canonical(value)


@pytest.mark.parametrize("value", [1.0, [0.5], {"a": float("nan")}, b"bytes", {1, 2}])
def test_what_has_no_place_in_a_ledger_has_no_canonical_form(value):
    with pytest.raises(TypeError, match="no canonical form"):
        digest.canonical(value)


@given(
    points=st.integers(-(2**63 - 1), 2**63 - 1),
    seq=st.integers(0, 2**31),
    version=st.text(characters, max_size=8),
)
def test_the_leaf_of_a_row_is_its_canonical_json(points, seq, version):
    row = ("0b1e", "a:1", seq, "judged", "jump", "held", points, -5, 7, version)

    assert digest.row_leaf(*row) == digest.canonical(["row", *row])
