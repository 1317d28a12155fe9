# SPDX-License-Identifier: Apache-2.0
"""Questions about a path of the tree without a request: how much of it could be reused, and freeing it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from redknot_sglang.seams.sglang import BASE_COMPONENT_TYPE, RadixKey


def nodes_along(tree: Any, key: RadixKey) -> list[tuple[Any, int]]:
    """The nodes along a path as far as it is in the tree, each with how many of its tokens the path has.

    Only the last may have more tokens than that. Unlike SGLang's matching this splits no nodes, and does not count as use.

    tree: the HeadClassRadixCache.
    key: the path's tokens and namespace.
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
    """Stands for the first tokens of a node, of which a match would make a node of its own."""

    component_data: Any
    key: range


def reusable_tokens(tree: Any, key: RadixKey, whole: bool) -> int:
    """Tokens of the longest prefix of a path that a match would return.

    tree: the HeadClassRadixCache.
    key: the path's tokens and namespace.
    whole: whether all tokens of the prefix must have local slots, as segments under `blend` need.
    """
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
    """Free a path from its end upward, as far as nothing else needs it; returns the number of tokens freed.

    Needed by others are nodes that a request has locked, and nodes from which another path branches off.

    tree: the HeadClassRadixCache.
    key: the path's tokens and namespace.
    held: ids of nodes to keep in any case.
    """
    freed = 0
    for node, matched in reversed(nodes_along(tree, key)):
        own = matched == len(node.key) and node.id not in held
        if not own or node not in tree.tree_core.evictable_device_leaves:
            break
        tree._evict_device_leaf(node.id, dict.fromkeys(tree.tree_components, 0))
        freed += matched
    return freed
