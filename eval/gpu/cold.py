# SPDX-License-Identifier: Apache-2.0
"""Step `cold`: time to first token of a prompt of which nothing is cached."""

from __future__ import annotations

from eval.gpu.ask import NotMeasured, generate, noise
from eval.gpu.results import Cell
from eval.servers import flush

# Kernels and host paths are those of longer prompts; a warm-up of 128K tokens would take eleven seconds a side.
MOST_WARM_UP = 32768


def measure(url: str, side: str, length: int, vocabulary: int, n: int) -> Cell:
    """n prompts of `length` random tokens, one at a time, the cache flushed before each.

    Raises requests.HTTPError, OSError, NotMeasured.
    """
    flush(url)
    generate(url, [noise(vocabulary, min(length, MOST_WARM_UP), "cold warm-up", length)], 1)
    samples = []
    for number in range(n):
        flush(url)
        reply = generate(url, [noise(vocabulary, length, "cold", length, number)], 1)
        if reply.cached != [0]:
            raise NotMeasured(f"{reply.cached[0]} tokens of a new prompt came from a flushed cache")
        samples.append(reply.seconds)
    return Cell("cold", side, "", length, "s", samples)
