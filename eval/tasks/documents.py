# SPDX-License-Identifier: Apache-2.0
"""Facts and prose, as token ids, written line by line into documents of exactly the wanted sizes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import vocabulary as vocab

Ids = NDArray[np.int16]
Rng = np.random.Generator

HEADER_TOKENS = 8
MIN_DOCUMENT_TOKENS = 24
_THEME_OFFSET = 6
_LINE_WIDTH = 8
_EMPTY = -1


def spaced_ids(words: tuple[str, ...]) -> Ids:
    """Ids of the words as they stand after a space."""
    return np.array([vocab.token_id(" " + w) for w in words], np.int16)


def bare_ids(words: tuple[str, ...]) -> Ids:
    """Ids of the words as they stand at the start of a line."""
    return np.array([vocab.encode(w)[0] for w in words], np.int16)


_NEWLINE, _COLON = (vocab.encode(mark)[0] for mark in "\n:")
_MORE, _REPORT = vocab.token_id(" more"), vocab.token_id("Report")
_STARTS = bare_ids(vocab.PROSE_STARTS)
_ADJECTIVES, _NOUNS = spaced_ids(vocab.PROSE_ADJECTIVES), spaced_ids(vocab.PROSE_NOUNS)
_VERBS, _LINKS = spaced_ids(vocab.PROSE_VERBS), spaced_ids(vocab.PROSE_LINKS)


def write_documents(
    rng: Rng, sizes: list[int], themes: Ids, facts: Ids, more: NDArray[np.bool_], order: NDArray[np.float64]
) -> tuple[list[Ids], NDArray[np.int32]]:
    """Documents of `sizes` tokens: a header with its theme each, then facts and prose in their order.

    themes [documents, 3] and facts [n, 3] are ids of A, B, C; `more` marks facts that say so at their end;
    `order` ascends over the documents. Returns the documents and, for themes and then facts, the document and
    the offset in it of C, [documents + n, 2], -1 for a fact that did not fit.
    """
    lines = np.full((len(facts), _LINE_WIDTH), _EMPTY, np.int16)
    lines[:, :3], lines[:, 3] = facts, np.where(more, _MORE, _NEWLINE)
    lines[more, 4] = _NEWLINE
    missing = sum(sizes) - HEADER_TOKENS * len(sizes) - int((lines != _EMPTY).sum())
    prose = _prose(rng, max(0, missing // 7) + 1)
    fact_of_line = np.argsort(np.concatenate([order, rng.random(len(prose))]), kind="stable")  # prose: >= len(facts)
    lines = np.concatenate([lines, prose])[fact_of_line]
    filled = lines != _EMPTY
    ends = np.concatenate([[0], np.cumsum(filled.sum(1))])
    stream = lines[filled]
    place = np.full((len(themes) + len(facts), 2), -1, np.int32)
    documents = []
    first = 0
    for number, size in enumerate(sizes):
        last = int(np.searchsorted(ends, ends[first] + size - HEADER_TOKENS, side="right")) - 1
        rest = rng.choice(_NOUNS, size - HEADER_TOKENS - int(ends[last] - ends[first]))
        rest[-1:] = _NEWLINE
        documents.append(np.concatenate([_header(themes[number]), stream[ends[first] : ends[last]], rest]))
        place[number] = number, _THEME_OFFSET
        held = fact_of_line[first:last]
        is_fact = held < len(facts)
        offsets = HEADER_TOKENS + ends[first:last] - ends[first] + 2
        place[len(themes) + held[is_fact]] = np.stack([np.full(is_fact.sum(), number), offsets[is_fact]], 1)
        first = last
    return documents, place


def _header(theme: Ids) -> Ids:
    """`Report LABEL:` and the line of the document's theme."""
    word, label, value = theme
    return np.array([_REPORT, label, _COLON, _NEWLINE, word, label, value, _NEWLINE], np.int16)


def _prose(rng: Rng, count: int) -> Ids:
    """[count, 8] lines of prose of six or eight tokens, padded with `_EMPTY`."""
    lines = np.full((count, _LINE_WIDTH), _EMPTY, np.int16)
    long = rng.random(count) < 0.5
    for column, pool in enumerate((_STARTS, _ADJECTIVES, _NOUNS, _VERBS)):
        lines[:, column] = rng.choice(pool, count)
    lines[:, 4] = np.where(long, rng.choice(_LINKS, count), rng.choice(_NOUNS, count))
    lines[:, 5] = np.where(long, rng.choice(_ADJECTIVES, count), _NEWLINE)
    lines[long, 6], lines[long, 7] = rng.choice(_NOUNS, int(long.sum())), _NEWLINE
    return lines
