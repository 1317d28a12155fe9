# SPDX-License-Identifier: Apache-2.0
"""Looking up and freeing a path of the tree without a request: how much of it could be reused, and what of it can go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from redknot_sglang.seams.sglang import RadixKey


def nodes_along(tree: Any, key: RadixKey) -> list[tuple[Any, int]]:
    """The nodes along a path as far as it is in the tree, each with how many of its tokens the path has.

    Only the last may have more tokens than that. Unlike SGLang's matching this splits no nodes, and does not count as
    use.

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
    """Stands for the first tokens of a node. A match that ends within a node would split it there."""

    component_data: Any
    key: range


def reusable_tokens(tree: Any, key: RadixKey, whole: bool) -> int:
    """Tokens of the longest prefix of a path that a match would find, on the device or on the host.

    tree: the HeadClassRadixCache.
    key: the path's tokens and namespace.
    whole: whether all tokens of the prefix must have local slots, as segments under `blend` need.
    """
    with tree.local_heads.scope.within(whole=whole):
        valid = tree.local_heads.create_match_validator()
    reusable = at = 0
    for node, matched in nodes_along(tree, key):
        if node.evicted and not node.backuped:
            break
        at += matched
        if valid(node if matched == len(node.key) else _Beginning(node.component_data, range(matched))):
            reusable = at
    return reusable


def free_unheld(tree: Any, key: RadixKey, held: Set[int]) -> int:
    """Free a path from its end upward, on the device and on the host, as far as nothing else needs it.

    Returns the number of tokens freed.

    Needed by others are nodes that a request has locked, and nodes from which another path branches off.

    tree: the HeadClassRadixCache.
    key: the path's tokens and namespace.
    held: ids of nodes to keep in any case.
    """
    freed = 0
    for node, matched in reversed(nodes_along(tree, key)):
        if matched != len(node.key) or node.id in held or not _free(tree, node):
            break
        freed += matched
    return freed


def _free(tree: Any, node: Any) -> bool:
    """Free a node on the device and on the host if nothing needs it. Returns whether that was so."""
    tree_core, is_backed_up = tree.tree_core, node.backuped
    if node.children:
        return False
    if node in tree_core.evictable_device_leaves:
        tree._evict_device_leaf(node.id, dict.fromkeys(tree.tree_components, 0))
        if not is_backed_up:
            return True
    if node not in tree_core.evictable_host_leaves:
        return False
    frees: tuple[Any, Any] = defaultdict(list), defaultdict(list)
    tree_core._evict_host_leaf(node, defaultdict(int), *frees)
    tree._free_values(*frees)
    return True
