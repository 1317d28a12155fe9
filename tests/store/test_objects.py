# SPDX-License-Identifier: Apache-2.0
"""What a path's objects are called, what is in them, and how many there are."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.store import objects
from redknot_sglang.store.objects import BLOCK, Kind, Reach, digests

CONTEXT = bytes(32)
TOKENS = st.lists(st.integers(0, (1 << 41) - 1), min_size=1, max_size=200)


def names(context: bytes, namespace: str, tokens: list[int]) -> bytes:
    return digests(context, namespace, np.array(tokens, dtype=np.int64), [len(tokens)])[0]


@given(TOKENS, st.data())
def test_the_name_of_a_beginning_is_that_of_the_path_cut_there(tokens: list[int], data: st.DataObject) -> None:
    ends = sorted(data.draw(st.sets(st.integers(0, len(tokens)), min_size=1, max_size=6)))
    together = digests(CONTEXT, "tenant", np.array(tokens, dtype=np.int64), ends)
    assert together == [names(CONTEXT, "tenant", tokens[:end]) for end in ends]


@given(TOKENS, TOKENS, st.text(max_size=8), st.text(max_size=8))
def test_other_tokens_and_other_namespaces_have_other_names(
    tokens: list[int], others: list[int], namespace: str, other: str
) -> None:
    assert (names(CONTEXT, namespace, tokens) == names(CONTEXT, other, others)) is (
        (namespace, tokens) == (other, others)
    )


def test_a_name_is_what_it_was() -> None:
    """A store outlives this code: whoever changes names loses what is in it."""
    salt = b"tenant"
    expected = hashlib.sha256(bytes(range(32)) + len(salt).to_bytes(8, "little") + salt)
    expected.update(b"".join(token.to_bytes(8, "little", signed=True) for token in (5, 1 << 40)))
    found = digests(bytes(range(32)), "tenant", np.array([5, 1 << 40, 7]), [2])
    assert found == [expected.digest()]
    piece = objects.mark(found[0], 2)
    assert piece.name == f"redknot-{expected.hexdigest()}-m"


def test_the_end_of_a_namespace_is_no_token() -> None:
    # "a" followed by the bytes of a token would else be a longer namespace.
    token = int.from_bytes(b"bbbbbbbb", "little")
    assert names(CONTEXT, "a", [token, 1]) != names(CONTEXT, "abbbbbbbb", [1])


def test_names_depend_on_what_is_served() -> None:
    assert names(CONTEXT, "", [1]) != names(bytes(range(32)), "", [1])


@pytest.mark.parametrize("whole", [False, True])
@given(end=st.integers(1, 3000), window=st.sampled_from((1, 64, 256, 1 << 31)), sink=st.sampled_from((0, 4, 70)))
def test_objects_of_a_path_hold_each_row_that_it_needs(whole: bool, end: int, window: int, sink: int) -> None:
    reach = Reach(window, sink)
    pieces = [objects.block(b"", at, whole) for at in objects.block_ends(end)]
    pieces.append(objects.end_piece(b"", end, whole, reach))
    rows: list[set[int]] = [set(), set()]
    for piece in pieces:
        for kind, spans in enumerate(piece.rows):
            positions = [at for span in spans for at in range(*span)]
            assert len(positions) == len(set(positions)) == piece.counts[kind]
            rows[kind] |= set(positions)
    assert rows[0] == set(range(end))
    seen = set(range(end)) if whole else {at for at in range(end) if at < sink or at >= end - window}
    assert rows[1] == seen == {at for span in objects.local_rows(end, whole, reach) for at in range(*span)}


def test_a_mark_stands_where_the_block_with_its_end_begins() -> None:
    assert [objects.mark_of(end) for end in (1, 127, 128, 129, 255, 256)] == [0, 0, 128, 128, 128, 256]
    assert objects.mark(b"", 64).counts == (0, 0) and objects.mark(b"", 64).kind is Kind.MARK
    assert list(objects.block_ends(BLOCK * 2 + 1)) == [BLOCK, 2 * BLOCK]
