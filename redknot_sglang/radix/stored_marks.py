# SPDX-License-Identifier: Apache-2.0
"""Which nodes' KV the store has, as far as this server knows without asking: what it has written or read itself.

The store, or another server, may have removed it since.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redknot_sglang.plan.spans import Spans, clip
from redknot_sglang.seams.sglang import ComponentType

_STORED = "stored"
_CLASSES = (ComponentType.FULL, ComponentType.SWA)


def mark_stored(path: Iterable[tuple[Any, int]], spans: tuple[Spans, Spans], clears: int) -> None:
    """Note that the store has some of a path; of a node it must be all.

    path: nodes from the root on, each with its number of tokens.
    spans: positions whose global rows, and whose local rows, the store has.
    clears: how often this server had emptied the store when it was asked.
    """
    start = 0
    for node, tokens in path:
        stop = start + tokens
        for component, held in zip(_CLASSES, spans, strict=True):
            if sum(b - a for a, b in clip(held, start, stop)) == len(node.key):
                node.component_data[component].metadata[_STORED] = clears
        start = stop


def unmark(path: Iterable[Any]) -> None:
    """Something of a path was not in the store, or could not be read. path: its nodes."""
    for node in path:
        for component in _CLASSES:
            node.component_data[component].metadata.pop(_STORED, None)


def is_stored(node: Any, component: Any, clears: int) -> bool:
    """Whether the store has a node's KV of one head class. clears: how often this server has emptied the store."""
    return bool(node.component_data[component].metadata.get(_STORED) == clears)


def split_marks(upper: Any, lower: Any) -> None:
    """A node was split: the store has both halves if it had the node. upper: the new node. lower: what is left of the old one."""
    for component in _CLASSES:
        marks = lower.component_data[component].metadata
        if _STORED in marks:
            upper.component_data[component].metadata[_STORED] = marks[_STORED]
