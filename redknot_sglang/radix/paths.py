# SPDX-License-Identifier: Apache-2.0
"""Paths of the tree seen from outside a request: how much of one could be reused, and freeing what only it holds."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from redknot_sglang.seams.sglang import BASE_COMPONENT_TYPE, RadixKey


def nodes_along(tree: Any, key: RadixKey) -> list[tuple[Any, int]]:
    """Nodes whose tokens begin the path `key`, each with how many of its tokens do; only the last may have fewer.

    Neither splits nodes nor makes them recently used, as matching does.
    """
    node, found = tree.tree_core.root_node, []
    while len(key) and (child := node.children.get(key.child_key(1))) is not None:
        matched = child.key.match(key)
        found.append((child, matched))
        if matched < len(child.key):
            break
        node, key = child, key[matched:]
    return found


@dataclass(frozen=True)
class _Beginning:
    """The first tokens of a node, which a match would make a node of its own."""

    component_data: Any
    key: range


def reusable_tokens(tree: Any, key: RadixKey, whole: bool) -> int:
    """Length of the longest prefix of `key` that a match would return. whole: as a whole path."""
    with tree.local_heads.scope.within(whole=whole):
        valid = tree.local_heads.create_match_validator(match_device_only=True)
    reusable = at = 0
    for node, matched in nodes_along(tree, key):
        if node.component_data[BASE_COMPONENT_TYPE].value is None:
            break
        at += matched
        if valid(node if matched == len(node.key) else _Beginning(node.component_data, range(matched))):
            reusable = at
    return reusable


def free_unheld(tree: Any, key: RadixKey, held: Set[int]) -> int:
    """Free the path `key` from its end up to the first node that something else needs; returns the tokens freed.

    Needed are nodes that a request has locked, that other paths go on from, and those whose ids are in `held`.
    """
    freed = 0
    for node, matched in reversed(nodes_along(tree, key)):
        own = matched == len(node.key) and node.id not in held
        if not own or node not in tree.tree_core.evictable_device_leaves:
            break
        tree._evict_device_leaf(node.id, dict.fromkeys(tree.tree_components, 0))
        freed += matched
    return freed
