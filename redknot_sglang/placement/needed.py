# SPDX-License-Identifier: Apache-2.0
"""Which KV of a prompt its answer needs, as pure functions."""

from __future__ import annotations

from redknot_sglang.heads import HeadMap
from redknot_sglang.plan.spans import Spans, union
from redknot_sglang.pool.sizing import ClassBytes, decode_window


def needed_local(length: int, head_map: HeadMap) -> Spans:
    """Positions of which local heads still see KV when a prompt is done: the sinks, and what the row behind the prompt sees.

    That row is itself the W-th of its window. A map without local heads has no window, and none is left out.

    length: tokens of the prompt.
    head_map: the whole model's, by which all ranks decide alike.
    """
    if head_map.all_global:
        return union([(0, length)])
    return union([(0, min(head_map.sink, length)), (tail_start(length, head_map), length)])


def tail_start(length: int, head_map: HeadMap) -> int:
    """The first position behind the sinks of which local heads still see KV. Parameters as in `needed_local`."""
    return 0 if head_map.all_global else max(0, length - head_map.window + 1)


def size_of(spans: Spans) -> int:
    """How many positions they hold."""
    return sum(end - start for start, end in spans)


def wire_bytes(length: int, head_map: HeadMap, cost: ClassBytes) -> tuple[int, int]:
    """Bytes of KV that go from prefill to decode for one prompt: of the global class, and of the local one.

    length: tokens of the prompt.
    head_map: the whole model's.
    cost: bytes of a slot of each class, on all ranks together.
    """
    return length * cost.global_slot, size_of(needed_local(length, head_map)) * cost.local_slot


def most_local(tokens: int, head_map: HeadMap) -> int:
    """Local slots that a request on a decode server holds at most, which has no prompt's tail to keep for others.

    tokens: of its prompt and of the longest answer that it may give.
    head_map: the whole model's.
    """
    return tokens if head_map.all_global else min(tokens, head_map.sink + decode_window(head_map))
