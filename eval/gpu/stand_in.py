# SPDX-License-Identifier: Apache-2.0
"""A stand-in of a decode step, to see what other work on the GPU costs it: products of few rows, which read weights."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

# Weights that a step reads, as square matrices in bf16 (1 GiB); rows of a batch; most steps beside one piece of work.
_MATRICES, _WIDTH, _ROWS, _MOST_STEPS = 32, 4096, 4, 600


class Step:
    """The stand-in of a decode step, as a CUDA graph on a stream of its own. alone_ms: its time where nothing is copied."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._weights = [torch.randn(_WIDTH, _WIDTH, dtype=torch.bfloat16, device="cuda") for _ in range(_MATRICES)]
        rows = torch.randn(_ROWS, _WIDTH, dtype=torch.bfloat16, device="cuda")
        rows @ self._weights[0]
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._products = [rows @ matrix for matrix in self._weights]
        self.alone_ms = statistics.median(length for _, length in self._times(self.queue(100))[20:])

    def queue(self, steps: int) -> list[Any]:
        """Start so many steps. Returns events: one before the first, one after each."""
        events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        with torch.cuda.stream(self._stream):
            events[0].record()
            for event in events[1:]:
                self._graph.replay()
                event.record()
        return events

    @staticmethod
    def _times(events: list[Any]) -> list[tuple[float, float]]:
        """Of each step when it began, in ms after the first one, and how long it took."""
        events[-1].synchronize()
        at = [events[0].elapsed_time(event) for event in events]
        return [(begin, end - begin) for begin, end in pairwise(at)]

    def beside(self, work: Callable[[], tuple[Any, Any]], expected_ms: float) -> list[float]:
        """Milliseconds of the steps that ran wholly while something else did.

        work: does it, and returns timing events at both of its ends, which are over.
        expected_ms: how long it takes by itself.
        """
        events = self.queue(min(_MOST_STEPS, 20 + int(1.5 * expected_ms / self.alone_ms)))
        begin, end = work()
        first, last = events[0].elapsed_time(begin), events[0].elapsed_time(end)
        return [length for at, length in self._times(events) if first <= at and at + length <= last]
