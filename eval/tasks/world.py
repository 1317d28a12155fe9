# SPDX-License-Identifier: Apache-2.0
"""A world: random facts of every family, one per line in documents, with the place of each fact known.

Every fact is a line `A B C` whose key `A B` stands right before its value `C`; that is the form a small model
learns to look up (see eval/NOTES.md). Worlds are made of token ids with numpy, because training wants
millions of tokens a second; `examples.py` turns them into text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from . import vocabulary as vocab
from .documents import HEADER_TOKENS, MIN_DOCUMENT_TOKENS, Ids, Rng, bare_ids, spaced_ids, write_documents

_MANAGER, _VAR, _CODE, _BOX, _THEME = (vocab.token_id(w) for w in ("manager", "var", "code", "box", "theme"))
_NAMES, _LABELS, _NUMBERS = spaced_ids(vocab.NAMES), spaced_ids(vocab.LABELS), spaced_ids(vocab.NUMBERS)
_CITIES, _COLORS, _OBJECTS = spaced_ids(vocab.CITIES), spaced_ids(vocab.COLORS), spaced_ids(vocab.OBJECTS)
_THEMES, _ORDINALS, _ATTRIBUTES = (
    spaced_ids(vocab.THEMES),
    bare_ids(vocab.ORDINALS),
    bare_ids(tuple(vocab.ATTRIBUTES)),
)
_VALUES = tuple(spaced_ids(pool) for pool in vocab.ATTRIBUTES.values())

# Share of the fact lines that each kind gets; the rest are code definitions and their uses.
_SHARE = {"attribute": 0.42, "manager": 0.12, "visit": 0.15, "variable": 0.13}
_MAX_LABELS = {"variable": 180, "box": 150}


@dataclass
class World:
    """Documents and the facts in them.

    facts: [n, 3] ids of A, B, C; place: [n, 2] document and offset of C in it, -1 where a fact did not fit.
    items: for each family the tuples of fact rows that one question needs, in the order the answer walks
    them.
    references: (use, definition) rows in which the value of `use` stands for the value of `definition`.
    """

    documents: list[Ids] = field(default_factory=list)
    facts: Ids = field(default_factory=lambda: np.empty((0, 3), np.int16))
    place: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 2), np.int32))
    items: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    references: list[tuple[int, int]] = field(default_factory=list)


class _Facts:
    """Growing table of facts: ids, whether `more` follows, and the key that orders them over documents."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: list[tuple[Ids, NDArray[np.bool_], NDArray[np.float64]]] = []

    def add(
        self, a: Ids | int, b: Ids, c: Ids, order: NDArray[np.float64], more: NDArray[np.bool_] | None = None
    ) -> range:
        rows = np.empty((len(b), 3), np.int16)
        rows[:, 0], rows[:, 1], rows[:, 2] = a, b, c
        self._parts.append((rows, np.zeros(len(b), bool) if more is None else more, order))
        first, self.count = self.count, self.count + len(b)
        return range(first, self.count)

    def stacked(self) -> tuple[Ids, NDArray[np.bool_], NDArray[np.float64]]:
        rows, more, order = zip(*self._parts, strict=True)
        return np.concatenate(rows), np.concatenate(more), np.concatenate(order)


def build_world(rng: Rng, document_tokens: list[int], prose_share: float) -> World:
    """A world whose documents have exactly the given token counts.

    prose_share: part of the tokens that is prose without facts, 0 to 1. Raises ValueError for a document
    shorter than `MIN_DOCUMENT_TOKENS`.
    """
    if min(document_tokens) < MIN_DOCUMENT_TOKENS:
        raise ValueError(f"a document needs at least {MIN_DOCUMENT_TOKENS} tokens, got {min(document_tokens)}")
    body = sum(document_tokens) - HEADER_TOKENS * len(document_tokens)
    lines = max(8, int(body * (1 - prose_share) / 4.1))
    facts, world, labels = _Facts(), World(), rng.permutation(_LABELS)
    themes = _add_themes(rng, facts, world, labels[: len(document_tokens)])
    labels = labels[len(document_tokens) :]
    attributes = _add_attributes(rng, facts, world, max(3, int(lines * _SHARE["attribute"])))
    _add_managers(rng, facts, world, attributes, max(1, int(lines * _SHARE["manager"])))
    _add_visits(rng, facts, world, max(1, int(lines * _SHARE["visit"] / 3)))
    wanted = min(_MAX_LABELS["variable"], max(2, int(lines * _SHARE["variable"])))
    _add_variables(rng, facts, world, labels[:wanted])
    boxes = min(_MAX_LABELS["box"], max(2, int(lines * (1 - sum(_SHARE.values())) * 0.65)))
    _add_codes(rng, facts, world, labels[wanted : wanted + boxes])
    world.facts, more, order = facts.stacked()
    world.documents, world.place = write_documents(
        rng,
        document_tokens,
        world.facts[: len(themes)],
        world.facts[len(themes) :],
        more[len(themes) :],
        order[len(themes) :],
    )
    _keep_answerable(world)
    return world


def _add_themes(rng: Rng, facts: _Facts, world: World, labels: Ids) -> range:
    """One theme per document, named outright or by the label of an earlier document whose theme is named."""
    n = len(labels)
    values = rng.choice(_THEMES, n)
    refers = rng.random(n) < 0.5
    refers[0] = False
    direct = np.flatnonzero(~refers)
    source = direct[(rng.random(n) * np.searchsorted(direct, np.arange(n))).astype(int)]
    rows = facts.add(_THEME, labels, np.where(refers, labels[source], values), np.full(n, -1.0))
    world.items["lookup"] = [(rows[i],) for i in direct.tolist()]
    world.references = [(rows[i], rows[source[i]]) for i in np.flatnonzero(refers).tolist()]
    return rows


def _add_attributes(rng: Rng, facts: _Facts, world: World, count: int) -> range:
    people = rng.choice(_NAMES, min(len(_NAMES), max(4, int(count * rng.uniform(0.3, 1.2)))), replace=False)
    count = min(count, len(people) * 4)
    pairs = rng.choice(len(people) * len(_ATTRIBUTES), count, replace=False)
    kind, who = np.divmod(pairs, len(people))
    values = np.empty(count, np.int16)
    for k, pool in enumerate(_VALUES):
        chosen = kind == k
        values[chosen] = rng.choice(pool, int(chosen.sum()))
    rows = facts.add(_ATTRIBUTES[kind], people[who], values, rng.random(count))
    world.items["lookup"] += [(r,) for r in rows]
    world.items["_person"] = list(zip(people[who].tolist(), rows, strict=True))
    return rows


def _add_managers(rng: Rng, facts: _Facts, world: World, attributes: range, count: int) -> None:
    """`manager X Y` where Y has attributes; the question asks for an attribute of X's manager."""
    known = world.items.pop("_person")
    picked = [known[i] for i in rng.integers(len(known), size=count)]
    staff = rng.choice(_NAMES, min(count, len(_NAMES)), replace=False)
    pairs = [(s, boss, row) for s, (boss, row) in zip(staff.tolist(), picked, strict=False) if s != boss]
    rows = facts.add(
        _MANAGER,
        np.array([p[0] for p in pairs], np.int16),
        np.array([p[1] for p in pairs], np.int16),
        rng.random(len(pairs)),
    )
    world.items["twohop"] = [(row, pair[2]) for row, pair in zip(rows, pairs, strict=True)]


def _add_visits(rng: Rng, facts: _Facts, world: World, people: int) -> None:
    """Two to four numbered values of one name; every line but the last says that there is one more."""
    names = rng.choice(_NAMES, min(people, len(_NAMES)), replace=False)
    counts = rng.integers(2, len(_ORDINALS) + 1, len(names))
    ends = np.cumsum(counts)
    ordinal = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    more = ordinal + 1 < np.repeat(counts, counts)
    rows = facts.add(
        _ORDINALS[ordinal],
        np.repeat(names, counts),
        rng.choice(_CITIES, len(more)),
        rng.random(len(more)),
        more,
    )
    world.items["multivalue"] = [tuple(rows[e - c : e]) for e, c in zip(ends.tolist(), counts.tolist(), strict=True)]


def _add_variables(rng: Rng, facts: _Facts, world: World, labels: Ids) -> None:
    """Chains of two to four variables: the first holds a number, each next one names the one before."""
    link = np.empty(len(labels), np.int16)
    chains: list[tuple[int, ...]] = []
    start = 0
    while start + 2 <= len(labels):
        stop = min(len(labels), start + int(rng.integers(2, 5)))
        link[start], link[start + 1 : stop] = rng.choice(_NUMBERS), labels[start : stop - 1]
        chains.append(tuple(range(stop - 1, start - 1, -1)))
        start = stop
    rows = facts.add(_VAR, labels[:start], link[:start], rng.random(start))
    world.items["tracking"] = [tuple(rows[i] for i in chain) for chain in chains]


def _add_codes(rng: Rng, facts: _Facts, world: World, boxes: Ids) -> None:
    """Colours get a meaning, then boxes a colour: what a box means is known only from the code."""
    colors = rng.choice(_COLORS, min(len(_COLORS), max(2, len(boxes) // 3)), replace=False)
    defined = rng.random(len(colors)) * 0.6
    rows = facts.add(_CODE, colors, rng.choice(_OBJECTS, len(colors)), defined)
    which = rng.integers(len(colors), size=len(boxes))
    used = defined[which] + (1 - defined[which]) * rng.random(len(boxes))
    uses = facts.add(_BOX, boxes, colors[which], used)
    world.references += [(use, rows[w]) for use, w in zip(uses, which.tolist(), strict=True)]


def _keep_answerable(world: World) -> None:
    """Drop what did not fit into the documents, and references that do not cross from an earlier document."""
    document = world.place[:, 0].tolist()
    for family, items in world.items.items():
        world.items[family] = [item for item in items if all(document[row] >= 0 for row in item)]
    world.references = [(use, source) for use, source in world.references if 0 <= document[source] < document[use]]
    world.items["crossdoc"] = list(world.references)
