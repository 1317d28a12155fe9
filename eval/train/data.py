# SPDX-License-Identifier: Apache-2.0
"""Training batches: conversations over random worlds, and random spans to copy, as token ids.

One world is asked many questions in one conversation, so most of a batch's work is reused. Batches of one
call share their length and, if documents are isolated, the shape that `attention.py` relies on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.tasks import vocabulary as vocab
from eval.tasks.documents import MIN_DOCUMENT_TOKENS, Rng
from eval.tasks.examples import QUESTION_HEAD, SYSTEM_PROMPTS, TRAINING, split_tokens
from eval.tasks.questions import ask
from eval.tasks.world import World, build_world

ANSWER, COPY = 1, 2
"""Kinds of predicted tokens that count fully in the loss; all others are 0."""
RETRIEVE, REFERENCE, RESOLVED = 1, 2, 3
"""Kinds of gold attention: question to value, reference to definition, question to resolved reference."""

_FAMILY_WEIGHT = {"lookup": 0.26, "multivalue": 0.14, "tracking": 0.15, "twohop": 0.17, "crossdoc": 0.28}
_SYSTEM = [vocab.encode(text) for text in SYSTEM_PROMPTS]
_HEAD = vocab.encode(QUESTION_HEAD)
_BOS, _END, _SEG = (vocab.token_id(t) for t in (vocab.BOS, vocab.END, vocab.SEG))
_ROLE_SYSTEM, _ROLE_USER, _ROLE_ASSISTANT = (vocab.token_id(t) for t in (vocab.SYSTEM, vocab.USER, vocab.ASSISTANT))
_NEWLINE = vocab.encode("\n")[0]
_FIRST_WORD = next(i for i, t in enumerate(vocab.TOKENS) if isinstance(t, str) and t not in vocab.SPECIALS)
_WORDS_END = next(i for i, t in enumerate(vocab.TOKENS) if str(t).startswith("<|free_"))


@dataclass
class Batch:
    """tokens, kinds: [B, T + 1]; gold: int16 [B, R, 3] rows of (row, target, kind), kind 0 where unused.

    split, document: as in `attention.Layout`.
    """

    tokens: NDArray[np.int16]
    kinds: NDArray[np.int8]
    gold: NDArray[np.int16]
    split: int
    document: int


@dataclass(frozen=True)
class Mix:
    """What a batch may be: lengths with weights, and the shares of isolated batches and of copied spans."""

    lengths: tuple[tuple[int, float], ...]
    isolated: float
    copied: float


class _Sequence:
    """One sequence under construction."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.ids: list[int] = []
        self.kinds: list[int] = []
        self.gold: list[tuple[int, int, int]] = []

    def add(self, ids: list[int], kind: int = 0) -> None:
        self.ids += ids
        self.kinds += [kind] * len(ids)

    @property
    def full(self) -> bool:
        return len(self.ids) > self.length


def make_batch(rng: Rng, mix: Mix, tokens: int, window: int) -> Batch:
    """A batch of `tokens` tokens in all from `mix`; isolated documents are multiples of `window` long."""
    lengths, weights = zip(*mix.lengths, strict=True)
    length = int(rng.choice(lengths, p=np.array(weights) / sum(weights)))
    split = document = 0
    sizes = [s for s in (64, 128, 256, 512) if s % window == 0 and 3 * s <= length]
    if sizes and rng.random() < mix.isolated:
        document = int(rng.choice(sizes))
        split = document * max(2, int(rng.uniform(0.5, 0.85) * length / document))
    count, room = tokens // length, max(24, min(128, length // 8))
    batch = Batch(
        np.empty((count, length + 1), np.int16),
        np.empty((count, length + 1), np.int8),
        np.zeros((count, room, 3), np.int16),
        split,
        document,
    )
    for b in range(count):
        if split:
            sequence = _conversation(rng, length, [document] * (split // document))
        elif rng.random() < mix.copied:
            sequence = _copies(rng, length)
        else:
            sequence = _conversation(rng, length, None)
        batch.tokens[b] = sequence.ids[: length + 1]
        batch.kinds[b] = sequence.kinds[: length + 1]
        gold = [g for g in sequence.gold if g[0] < length]
        if len(gold) > room:
            gold = [gold[i] for i in rng.choice(len(gold), room, replace=False)]
        if gold:
            batch.gold[b, : len(gold)] = gold
    return batch


def _copies(rng: Rng, length: int) -> _Sequence:
    """A random span of words, again and again."""
    sequence = _Sequence(length)
    span = int(rng.integers(8, max(9, length // 2)))
    words = rng.integers(_FIRST_WORD, _WORDS_END, span).tolist()
    sequence.add([_BOS, *words])
    while not sequence.full:
        sequence.add(words, COPY)
    rows = rng.integers(span + 1, length, min(32, length // 8)).tolist()
    sequence.gold = [(row, row - span + 1, RETRIEVE) for row in rows]
    return sequence


def _conversation(rng: Rng, length: int, blocks: list[int] | None) -> _Sequence:
    """Documents and questions about them; the documents in isolated blocks of the given sizes, if any."""
    sequence = _Sequence(length)
    separator = [_SEG] if rng.random() < 0.3 else []
    in_system = blocks is None and rng.random() < 0.15
    prefix = [_BOS, _ROLE_SYSTEM, *_SYSTEM[int(rng.integers(len(_SYSTEM)))]]
    prefix += [_NEWLINE] if in_system else [_END, _ROLE_USER]
    sequence.add(prefix)
    if blocks is not None:
        sizes = [size - len(separator) for size in blocks]
        sizes[0] -= len(prefix)
        held_back = 0
    else:
        share = rng.uniform(0.35, 0.75) if length <= 512 else rng.uniform(0.5, 0.9)
        total = max(2 * MIN_DOCUMENT_TOKENS, int(length * share) - len(prefix))
        sizes = split_tokens(rng, total, *((96, 400) if total >= 1024 else (40, 160)))
        held_back = int(rng.integers(1, 3)) if len(sizes) > 3 and rng.random() < 0.35 else 0
    world = build_world(rng, sizes, rng.uniform(0.1, 0.5))
    starts: list[int] = []
    _give(sequence, world, starts, len(sizes) - held_back, separator)
    if in_system:
        sequence.add([_END, _ROLE_USER])
    resume = int(rng.uniform(len(sequence.ids), length)) if held_back else length + 1
    items = _shuffled_items(rng, world, len(starts), isolated=blocks is not None)
    while not sequence.full:
        # A fact asked twice could be copied from the first answer, so each is asked once while there are
        # others.
        items = items or _shuffled_items(rng, world, len(starts), isolated=blocks is not None)
        _question(rng, sequence, world, starts, items)
        if held_back and len(sequence.ids) > resume:
            _give(sequence, world, starts, len(sizes), separator)
            items, held_back = _shuffled_items(rng, world, len(starts), isolated=False), 0
    if blocks is None:
        sequence.gold += _reference_gold(world, starts)
    return sequence


def _give(sequence: _Sequence, world: World, starts: list[int], upto: int, separator: list[int]) -> None:
    """Write the documents up to number `upto` and note where each one starts."""
    for document in world.documents[len(starts) : upto]:
        sequence.add(separator)
        starts.append(len(sequence.ids))
        sequence.add(document.tolist())
    sequence.add(separator)


def _shuffled_items(rng: Rng, world: World, given: int, isolated: bool) -> dict[str, list[tuple[int, ...]]]:
    """Questions that the first `given` documents answer; none across documents if these are isolated."""
    document = world.place[:, 0].tolist()
    known: dict[str, list[tuple[int, ...]]] = {}
    for family in _FAMILY_WEIGHT:
        items = [item for item in world.items[family] if all(document[row] < given for row in item)]
        if items and not (isolated and family == "crossdoc"):
            known[family] = [items[i] for i in rng.permutation(len(items)).tolist()]
    return known


def _question(
    rng: Rng, sequence: _Sequence, world: World, starts: list[int], items: dict[str, list[tuple[int, ...]]]
) -> None:
    """One of `items`, taken out of it, with its answer, up to the role marker of the next user turn."""
    weights = np.cumsum([_FAMILY_WEIGHT[family] for family in items])
    family = list(items)[int(np.searchsorted(weights, rng.random() * weights[-1]))]
    asked = ask(world, family, items[family].pop())
    if not items[family]:
        del items[family]
    sequence.add([*_HEAD, *asked.question, _END, _ROLE_ASSISTANT])
    first = len(sequence.ids)
    for index, row in asked.steps:
        document, offset = world.place[row].tolist()
        kind = RESOLVED if family == "crossdoc" else RETRIEVE
        sequence.gold.append((first + index, starts[document] + offset, kind))
        if family == "multivalue":  # whether there is more stands right after the value
            sequence.gold.append((first + index + 1, starts[document] + offset + 1, RETRIEVE))
    sequence.add([*asked.answer, _END], ANSWER)
    sequence.add([_ROLE_USER])


def _reference_gold(world: World, starts: list[int]) -> list[tuple[int, int, int]]:
    """Each reference in the documents given, to what it stands for."""
    place = world.place.tolist()
    return [
        (starts[place[use][0]] + place[use][1], starts[place[source][0]] + place[source][1], REFERENCE)
        for use, source in world.references
        if place[use][0] < len(starts)
    ]


def training_rng(seed: int, worker: int) -> Rng:
    """Stream of one data worker; disjoint from every evaluation stream (see `eval/tasks/examples.py`)."""
    return np.random.default_rng(np.random.SeedSequence([TRAINING, seed, worker]))
