# SPDX-License-Identifier: Apache-2.0
"""Drafts as chains: of a tree the longest branch."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.chains import PADDING, Ints, chains_of

SIZE = 6
# The parent of each node behind the first.
TREES = st.tuples(*(st.integers(0, node) for node in range(SIZE - 1)))


def mask_of(parents: tuple[int, ...]) -> Ints:
    """Which nodes are above which."""
    mask = np.eye(SIZE, dtype=np.int64)
    for node, parent in enumerate(parents, start=1):
        mask[node] |= mask[parent]
    return mask


@given(trees=st.lists(TREES, min_size=1, max_size=4))
def test_the_longest_branch_of_each_tree(trees: list[tuple[int, ...]]) -> None:
    tokens = np.arange(1, 1 + SIZE * len(trees))
    masks = [mask_of(parents) for parents in trees]
    chains, mask = chains_of(tokens, np.concatenate([mask.reshape(-1) for mask in masks]), SIZE)
    assert np.array_equal(mask.reshape(-1, SIZE, SIZE), np.stack([np.tri(SIZE, dtype=np.int64)] * len(trees)))
    for chain, own, parents in zip(chains.reshape(-1, SIZE), tokens.reshape(-1, SIZE), trees, strict=True):
        branches = []
        for leaf in range(SIZE):
            branch = [leaf]
            while branch[0]:
                branch.insert(0, parents[branch[0] - 1])
            branches.append(branch)
        longest = max(branches, key=len)
        assert chain.tolist() == [own[node] for node in longest] + [PADDING] * (SIZE - len(longest))


def test_a_chain_stays_what_it_is() -> None:
    tokens, mask = np.array([7, 5, 3]), np.tri(3, dtype=np.int64).reshape(-1)
    chains, above = chains_of(tokens, mask, 3)
    assert chains.tolist() == [7, 5, 3] and above.tolist() == mask.tolist()
