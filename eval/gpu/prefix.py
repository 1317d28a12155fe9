# SPDX-License-Identifier: Apache-2.0
"""Step `prefix`: time to first token of a prompt that begins with a cached one."""

from __future__ import annotations

from collections.abc import Sequence

from eval.gpu.ask import generate, must_be_cached, noise
from eval.gpu.results import Cell

WARM_UP = 2


def cached_prompt(vocabulary: int, length: int, number: int = 0) -> list[int]:
    """The prompt that steps `prefix` and `decode` have in the cache; several differ by number."""
    return noise(vocabulary, length, "prefix", length, number)


def measure(url: str, side: str, length: int, vocabulary: int, n: int, new: Sequence[int]) -> list[Cell]:
    """A cell for each number of new tokens behind `length` cached ones; n different tails each.

    Raises requests.HTTPError, NotMeasured.
    """
    prompt = cached_prompt(vocabulary, length)
    generate(url, [prompt], 1)
    cells = []
    for count in new:
        samples = []
        for number in range(WARM_UP + n):
            tail = noise(vocabulary, count, "tail", length, count, number)
            reply = generate(url, [prompt + tail], 1)
            must_be_cached(reply, length)
            samples.append(reply.seconds)
        cells.append(Cell("prefix", side, f"+{count}", length, "s", samples[WARM_UP:], {"cached": reply.cached[0]}))
    return cells


def boundary_rows(segments: int, repaired: int, tail: int) -> int:
    """Rows that `boundary:repaired` computes of a prompt whose segments and lead are cached."""
    return segments * repaired + tail
