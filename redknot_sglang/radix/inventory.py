# SPDX-License-Identifier: Apache-2.0
"""What a tree holds, for people: as JSON types, of bounded size, found in bounded time, and without changing anything.

Nodes that follow each other without a fork are one *piece*: of a prompt that nobody shares, all of it. What more than one path begins
with is a piece of its own. A piece that ends a document says so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from redknot_sglang.plan.identity import is_whole, own_part
from redknot_sglang.plan.plan import SEGMENT_START
from redknot_sglang.radix.ages import CLASSES
from redknot_sglang.radix.stored_marks import is_stored
from redknot_sglang.radix.uses import FRACTION
from redknot_sglang.seams.sglang import ComponentType

TIERS = ("device", "host")
_DOCUMENT = "document"
_LOOKED_AT = 2000  # nodes, which takes some milliseconds
_PIECES = 200
_NEXT = 10
_SHOWN = 32  # tokens of a piece whose text is shown
_DIGITS = 96  # as in `uses.py`: bits of a rank behind its point


def mark_document(node: Any) -> None:
    """Note that a document's path ends here."""
    node.component_data[ComponentType.FULL].metadata[_DOCUMENT] = True


def tenant_label(tenant: str, named: bool) -> str | None:
    """What a tenant is called. tenant: its own part of the namespace. named: whether it may be named; else it is 8 digits of a hash."""
    if not tenant:
        return None
    return tenant if named else hashlib.sha256(b"redknot tenant\0" + tenant.encode()).hexdigest()[:8]


@dataclass
class _Piece:
    """Nodes that follow each other. start: position of the first. behind: the piece before, by its number."""

    start: int
    behind: int | None
    nodes: list[Any] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + sum(len(node.key) for node in self.nodes)


class Inventory:
    """Reads one tree.

    tree: the HeadClassRadixCache.
    named: whether tenants are named, and the first tokens of pieces are told.
    """

    def __init__(self, tree: Any, named: bool) -> None:
        self._tree, self._named = tree, named
        self._core = tree.tree_core

    def read(self) -> dict[str, Any]:
        """See docs/tiers.md for what it has."""
        pieces, looked_at = self._pieces()
        numbers = {node.id: piece.nodes[-1].id for piece in pieces for node in piece.nodes}
        entries = [self._entry(piece) for piece in pieces]
        kept = sorted(entries, key=_tokens, reverse=True)[:_PIECES]
        gone = sorted(entries, key=_tokens, reverse=True)[_PIECES:]
        keeper = self._tree.keeper
        return {
            "policy": "redknot" if keeper is not None else type(self._core.eviction_strategy).__name__,
            "clock": self._tree.ages.now,
            "half_life": None if keeper is None else keeper.retention.clock.half_life,
            "tenants": self._tenants(entries),
            "pieces": sorted(
                kept, key=lambda entry: (entry["tenant"] or "", entry["kind"], entry["end"], entry["piece"])
            ),
            "next": {
                tier: {
                    name: [self._next(node, kind, numbers) for node in self._first(kind, tier == "host")]
                    for name, kind in CLASSES.items()
                }
                for tier in TIERS
            },
            "left_out": {
                "pieces": len(gone),
                "tokens": sum(entry["end"] - entry["start"] for entry in gone),
                # The root is no piece of anything.
                "nodes": len(self._core._node_arena) - 1 - looked_at,
            },
        }

    def _pieces(self) -> tuple[list[_Piece], int]:
        """All pieces of as many nodes as are looked at, and how many these are."""
        pieces: list[_Piece] = []
        todo = [(child, 0, None) for child in reversed(self._core.root_node.children.values())]
        looked_at = 0
        while todo and looked_at < _LOOKED_AT:
            node, start, behind = todo.pop()
            piece = _Piece(start, behind)
            pieces.append(piece)
            while True:
                piece.nodes.append(node)
                looked_at += 1
                if len(node.children) != 1 or _is_document(node) or looked_at >= _LOOKED_AT:
                    break
                (node,) = node.children.values()
            end = piece.end
            todo += [(child, end, node.id) for child in reversed(node.children.values())]
        return pieces, looked_at

    def _entry(self, piece: _Piece) -> dict[str, Any]:
        last = piece.nodes[-1]
        tenant, ours = own_part(last.key.extra_key)
        entry = {
            "piece": last.id,
            "behind": piece.behind,
            "tenant": tenant_label(tenant, self._named),
            "kind": _kind(last, ours),
            "whole": is_whole(last.key.extra_key),
            "start": piece.start,
            "end": piece.end,
            "classes": {name: self._class(piece.nodes, kind) for name, kind in CLASSES.items()},
        }
        if self._named:
            entry["tokens"] = _first_tokens(piece.nodes)
        return entry

    def _class(self, nodes: list[Any], kind: Any) -> dict[str, Any]:
        """Of one head class. `used`, `age` and `rank` are of what is used most, last, and stays longest among its nodes; `over`: whether
        the lifetimes of all are.
        """
        keeper = self._tree.keeper
        held = {"device": 0, "host": 0, "both": 0, "locked": 0, "stored": 0}
        clears = None if self._tree.store is None else self._tree.store.clears
        for node in nodes:
            data, tokens = node.component_data[kind], len(node.key)
            on = data.value is not None, data.host_value is not None
            held["both" if all(on) else "device" if on[0] else "host"] += tokens if any(on) else 0
            held["stored"] += tokens if clears is not None and is_stored(node, kind, clears) else 0
            held["locked"] += tokens if data.lock_ref or data.host_lock_ref else 0
        counted = [self._counted(node, kind) for node in nodes if _has(node, kind)]
        if not counted:
            return {**held, "used": None, "age": None, "rank": None, "over": None}
        return {
            **held,
            "used": max((one["used"] for one in counted if one["used"] is not None), default=None),
            "age": min(one["age"] for one in counted),
            "rank": max((one["rank"] for one in counted if one["rank"] is not None), default=None),
            "over": None if keeper is None else all(one["over"] for one in counted),
        }

    def _counted(self, node: Any, kind: Any) -> dict[str, Any]:
        """Uses of late, tokens since the last one, and the rank as a logarithm of two: one more is twice as much worth."""
        keeper, age = self._tree.keeper, self._tree.ages.age(node, kind)
        if keeper is None:
            return {"used": None, "age": age, "rank": None, "over": None}
        is_global = kind is ComponentType.FULL
        uses = (keeper.global_uses if is_global else keeper.local_uses)(node)
        rank = (keeper.global_rank if is_global else keeper.local_rank)(node)
        used = keeper.retention.clock.decayed(uses) / (1 << FRACTION)
        return {
            "used": round(used, 2),
            "age": age,
            "rank": round(rank[0] / (1 << _DIGITS), 2),
            "over": keeper.retention.is_over(uses),
        }

    def _first(self, kind: Any, on_host: bool) -> list[Any]:
        if on_host and not self._tree.has_host_tier:
            return []
        nodes: list[Any] = self._tree.components[kind].first_to_go(_NEXT, on_host)
        return nodes

    def _next(self, node: Any, kind: Any, numbers: dict[int, int]) -> dict[str, Any]:
        tenant, _ = own_part(node.key.extra_key)
        start, above = 0, node.parent
        while above is not self._core.root_node:
            start, above = start + len(above.key), above.parent
        return {
            # None of a node that was not looked at.
            "piece": numbers.get(node.id),
            "tenant": tenant_label(tenant, self._named),
            "start": start,
            "end": start + len(node.key),
            **self._counted(node, kind),
        }

    def _tenants(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of each tenant what its pieces hold, the one with most first."""
        found: dict[str | None, dict[str, Any]] = {}
        for entry in entries:
            tenant = found.setdefault(
                entry["tenant"],
                {
                    "tenant": entry["tenant"],
                    "pieces": 0,
                    "documents": 0,
                    "tokens": {name: dict.fromkeys(TIERS, 0) for name in CLASSES},
                },
            )
            tenant["pieces"] += 1
            tenant["documents"] += entry["kind"] == _DOCUMENT
            for name, held in entry["classes"].items():
                for tier in TIERS:
                    tenant["tokens"][name][tier] += held[tier] + held["both"]
        return sorted(found.values(), key=lambda tenant: -sum(sum(t.values()) for t in tenant["tokens"].values()))


def _is_document(node: Any) -> bool:
    return _DOCUMENT in node.component_data[ComponentType.FULL].metadata


def _has(node: Any, kind: Any) -> bool:
    data = node.component_data[kind]
    return data.value is not None or data.host_value is not None


def _kind(node: Any, ours: str) -> str:
    """`document`, `question`, `prompt`, or `segmented prompt` with the repair policy of its plan. ours: of the namespace."""
    if ours == "asking":
        return "question"
    if _is_document(node):
        return _DOCUMENT
    return f"segmented prompt ({ours})" if ours and ours != "whole" else "prompt"


def _tokens(entry: dict[str, Any]) -> tuple[int, int]:
    held = entry["classes"].values()
    # Of equal ones the older.
    return sum(one["device"] + one["host"] + one["both"] for one in held), -entry["piece"]


def _first_tokens(nodes: list[Any]) -> list[int]:
    found: list[int] = []
    for node in nodes:
        found += [token % SEGMENT_START for token in node.key.token_ids[: min(len(node.key), _SHOWN - len(found))]]
        if len(found) >= _SHOWN:
            break
    return found
