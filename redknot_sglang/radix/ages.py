# SPDX-License-Identifier: Apache-2.0
"""When cached KV was used last, in tokens: the tree's logical clock, and which nodes a request uses in which head class.

Time is the number of tokens that requests' prompts, and segments that they relocate, have brought since the process began or
the tree was emptied. There is no wall clock, so all tensor-parallel ranks see the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redknot_sglang.radix.local_locks import SINK
from redknot_sglang.seams.sglang import ComponentType

CLASSES = {"global": ComponentType.FULL, "local": ComponentType.SWA}
_NAMES = {component_type: name for name, component_type in CLASSES.items()}
_USED = "used_at"
# Told of KV that leaves: the tier (`device` or `host`), the head class, its tokens, and its age.
Told = Callable[[str, str, int, int], None]


def nodes_used(
    tree: Any, node: Any, boundaries: Sequence[int], whole: bool, counted: int
) -> tuple[list[Any], list[Any]]:
    """The nodes of a path that a request uses: those that it passes through, and those whose local KV it goes on from.

    tree: the HeadClassRadixCache.
    node: where the path ends.
    boundaries: positions, beside the end, before which a window of local KV is used; sinks always are.
    whole: whether all local KV of the path is.
    counted: position up to which the path's uses were counted before.
    Returns both kinds, the last node first.
    """
    # The next row is itself the last of its window.
    reach, root = tree.local_heads.window - 1, tree.tree_core.root_node
    end, above = 0, node
    while above is not root:
        end, above = end + len(above.key), above.parent
    passed, ended, stop = [], [], end
    while stop > counted:
        start = stop - len(node.key)
        passed.append(node)
        in_tail = any(start < boundary and stop > boundary - reach for boundary in (end, *boundaries))
        if whole or in_tail or node.component_data[ComponentType.SWA].metadata.get(SINK):
            ended.append(node)
        node, stop = node.parent, start
    return passed, ended


class Ages:
    """The clock of one tree.

    now: tokens brought so far.
    told: is told of KV that is evicted; None for nobody.
    """

    def __init__(self) -> None:
        self.now = 0
        self.told: Told | None = None
        self._evicting = False

    def admit(self, tokens: int) -> None:
        """A request, or a segment that it relocates, has brought so many tokens."""
        self.now += tokens

    def use(self, passed: Sequence[Any], ended: Sequence[Any]) -> None:
        """A request uses nodes now. passed, ended: as of `nodes_used`."""
        for component_type, nodes in ((ComponentType.FULL, passed), (ComponentType.SWA, ended)):
            for node in nodes:
                node.component_data[component_type].metadata[_USED] = self.now

    def begin(self, node: Any) -> None:
        """A node is new."""
        self.use((node,), (node,))

    def age(self, node: Any, component_type: Any) -> int:
        """Tokens since a node was used last in a head class; of one that no request has brought, since it was asked for first."""
        used: int = node.component_data[component_type].metadata.setdefault(_USED, self.now)
        return self.now - used

    @contextmanager
    def evicting(self) -> Iterator[None]:
        """What leaves within this block is evicted; what leaves elsewhere was deleted, or nobody needed it any more."""
        before, self._evicting = self._evicting, True
        try:
            yield
        finally:
            self._evicting = before

    def left(self, node: Any, component_type: Any, device_tokens: int, host_tokens: int) -> None:
        """So many tokens of a node have left the device and the host in a head class."""
        if not self._evicting or self.told is None:
            return
        for tier, tokens in (("device", device_tokens), ("host", host_tokens)):
            if tokens:
                self.told(tier, _NAMES[component_type], tokens, self.age(node, component_type))


def split_ages(upper: Any, lower: Any) -> None:
    """A node was split: both halves were used when it was. upper: the new node. lower: what is left of the old one."""
    for component_type in (ComponentType.FULL, ComponentType.SWA):
        marks = lower.component_data[component_type].metadata
        if _USED in marks:
            upper.component_data[component_type].metadata[_USED] = marks[_USED]
