# SPDX-License-Identifier: Apache-2.0
"""Drafts of speculative decoding as chains.

A *draft* is what somebody guesses that a request's answer goes on with, D tokens with the answer's last one before them. The model
computes them all at once (it *verifies* them) and accepts those that it would have chosen. SGLang's n-gram corpus guesses trees:
several tokens may follow one. A row of a tree sees its own branch only, but a row of ours sees all positions before its own (or
a window of them), so of a tree one branch is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]

# What a chain that is shorter than a draft is filled up with; accepted only if the model chooses it, like every token.
PADDING = 0


def chains_of(tokens: Ints, mask: Ints, size: int) -> tuple[Ints, Ints]:
    """The longest branch of each tree, and of several the one whose last node has the lowest number.

    tokens: int [B * D], the nodes of B trees, a node behind its parent; node 0 is the answer's last token.
    mask: int [B * D * D], 1 where the second node is the first one or above it, else 0.
    size: D.
    Returns both for the chains, in the same shapes.
    """
    nodes, trees = tokens.reshape(-1, size), mask.reshape(-1, size, size).astype(bool)
    deepest = trees.sum(-1).argmax(-1)
    branch = trees[np.arange(len(trees)), deepest]
    order = np.argsort(~branch, axis=-1, kind="stable")
    chains = np.take_along_axis(nodes, order, axis=-1)
    chains[np.arange(size) >= branch.sum(-1)[:, None]] = PADDING
    return chains.reshape(-1), np.tile(np.tri(size, dtype=mask.dtype).reshape(-1), len(trees))
