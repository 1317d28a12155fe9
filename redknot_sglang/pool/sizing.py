# SPDX-License-Identifier: Apache-2.0
"""How many slots each head class gets from a byte budget. Pure arithmetic.

The split aims at one sequence length, the expected context: both pools run out together when that many sequences of
that length are held, each with one global slot per token and a fixed number of local slots.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from redknot_sglang.config import RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.heads import HeadMap
from redknot_sglang.plan.policies import parse_repair

# Decode steps between two passes that free what left the windows. SGLang's own default of 128 would double the local
# slots of a sequence at usual windows.
DECODE_FREE_INTERVAL = 32
# The share of the budget that chunks in flight may take; beyond it the scheduler cuts chunks.
_CHUNK_SHARE = 0.25


@dataclass(frozen=True)
class ClassBytes:
    """Bytes of one slot of each class on one rank: K and V of that class's heads over all layers.

    probe: what else a local slot takes, for probes.
    """

    global_slot: int
    local_slot: int
    probe: int = 0

    @property
    def local(self) -> int:
        """All bytes of a local slot."""
        return self.local_slot + self.probe

    @property
    def stock(self) -> int:
        """Bytes of a token in stock SGLang."""
        return self.global_slot + self.local_slot


@dataclass(frozen=True)
class PoolSlots:
    """Usable slots of each class, the dummy slot not counted."""

    global_slots: int
    local_slots: int


@dataclass(frozen=True)
class Segments:
    """Segments that the cache is to hold.

    length: tokens of one, None if few are expected. whole: they keep local slots of all tokens, not sink and window.
    tokens: of all, beside running sequences; None if unknown.
    """

    length: int | None = None
    whole: bool = False
    tokens: int | None = None


NO_SEGMENTS = Segments()


def class_bytes(head_map: HeadMap, head_dim: int, itemsize: int, probe_width: int = 0) -> ClassBytes:
    """Bytes per slot for this rank's head map, `head_dim` values of `itemsize` bytes for each of K and V.

    probe_width: query heads that are kept for probes.
    """
    per_head = 2 * head_dim * itemsize
    layers = range(head_map.num_layers)
    return ClassBytes(
        global_slot=per_head * sum(head_map.num_global(layer) for layer in layers),
        local_slot=per_head * sum(head_map.num_local(layer) for layer in layers),
        probe=per_head * probe_width,
    )


def local_slots_per_sequence(head_map: HeadMap) -> int:
    """Local slots that a running sequence holds at most: sink, the window at the prompt's end, the decode window."""
    return head_map.sink + head_map.window + decode_window(head_map)


def decode_window(head_map: HeadMap) -> int:
    """Local slots that a decoding sequence adds to its prompt's at most: its window, and what the last pass left."""
    return head_map.window + DECODE_FREE_INTERVAL


def least_slots(head_map: HeadMap) -> int:
    """The fewest slots of each class with which a single request can run, a few tokens a chunk."""
    return 2 if head_map.all_global else local_slots_per_sequence(head_map) + 8


def holding_a_request(head_map: HeadMap, slots: PoolSlots) -> PoolSlots:
    """The same slots. Raises RedKnotError if no single request can run in them."""
    least = least_slots(head_map)
    if min(slots.global_slots, slots.local_slots) < least:
        raise RedKnotError(
            f"KV memory gives {slots.global_slots} global and {slots.local_slots} local slots, one request needs {least}; "
            "raise --redknot-kv-budget, --max-total-tokens or --mem-fraction-static"
        )
    return slots


def widest(head_map: HeadMap, ranks: int, head_dim: int, itemsize: int, probe_width: int = 0) -> ClassBytes:
    """Bytes per slot of the tensor-parallel rank with the most per global slot: every rank must have the same slots.

    head_map: of the whole model. ranks: how many share it. The others are those of `class_bytes`.
    """
    costs = (class_bytes(head_map.shard(rank, ranks), head_dim, itemsize, probe_width) for rank in range(ranks))
    return max(costs, key=lambda cost: cost.global_slot)


def split_budget(
    head_map: HeadMap,
    cost: ClassBytes,
    budget: int,
    context_length: int,
    chunk: int,
    segments: Segments = NO_SEGMENTS,
) -> PoolSlots:
    """Slots per class for `budget` bytes. Raises RedKnotError if they do not hold the segments beside one request.

    context_length: tokens of the expected sequence. chunk: tokens of a prefill chunk. Two chunks of one request can be
    in flight, wholly live, so the local pool gets room for them beside the sequences; at most a quarter of the budget.
    """
    if head_map.all_global:
        slots = budget // (cost.global_slot + cost.probe)
        return PoolSlots(slots, slots)
    in_flight = min(2 * chunk, int(_CHUNK_SHARE * budget / cost.local)) if cost.local else 2 * chunk
    ratio = _local_ratio(head_map, context_length, segments)

    def beside(held: PoolSlots) -> PoolSlots:
        rest = budget - (in_flight + held.local_slots) * cost.local - held.global_slots * cost.global_slot
        global_slots = int(rest / (cost.global_slot + ratio * cost.local))
        return PoolSlots(global_slots, int(global_slots * ratio) + in_flight)

    found = _with_segments(head_map, segments, ratio, beside)
    # A rank whose heads are all global pays nothing for local slots. Others do, and one that holds no more of them than
    # global ones takes no more bytes than this one.
    return found if cost.local else PoolSlots(found.global_slots, min(found.global_slots, found.local_slots))


def local_for_global(
    head_map: HeadMap, global_slots: int, context_length: int, chunk: int, segments: Segments = NO_SEGMENTS
) -> PoolSlots:
    """Slots per class when the number of global slots is given (`--max-total-tokens`). Raises as `split_budget`."""
    if head_map.all_global:
        return PoolSlots(global_slots, global_slots)
    ratio = _local_ratio(head_map, context_length, segments)

    def beside(held: PoolSlots) -> PoolSlots:
        rest = global_slots - held.global_slots
        return PoolSlots(rest, int(rest * ratio) + 2 * chunk)

    local_slots = _with_segments(head_map, segments, ratio, beside).local_slots
    return PoolSlots(global_slots, min(global_slots, local_slots))


def segments_for(config: RedKnotConfig) -> Segments:
    """What the flags say of segments. Some repair policies have them keep local slots of all tokens."""
    whole = config.expects_segments and parse_repair(config.repair).keeps_whole
    return Segments(config.segment_length, whole, config.segment_tokens)


def _with_segments(
    head_map: HeadMap, segments: Segments, ratio: float, beside: Callable[[PoolSlots], PoolSlots]
) -> PoolSlots:
    """All slots, of the segments and of what is left `beside` them, at least those of one request."""

    def held(tokens: int) -> PoolSlots:
        tail = head_map.sink + head_map.window
        if segments.whole:
            return PoolSlots(tokens, tokens)
        if segments.length:
            return PoolSlots(tokens, min(tokens, tail * ceil(tokens / segments.length)))
        return PoolSlots(tokens, ceil(tokens * ratio))

    def too_many(tokens: int) -> bool:
        left = beside(held(tokens))
        return min(left.global_slots, left.local_slots) < least_slots(head_map)

    if segments.tokens and too_many(segments.tokens):
        fit = max(0, bisect_left(range(segments.tokens), True, key=too_many) - 1)
        raise RedKnotError(
            f"--redknot-segment-tokens {segments.tokens} leave no room for a request, {fit} would; lower it or raise "
            "--redknot-kv-budget, --max-total-tokens or --mem-fraction-static"
        )
    kept = held(segments.tokens or 0)
    own = beside(kept)
    return PoolSlots(kept.global_slots + own.global_slots, kept.local_slots + own.local_slots)


def _local_ratio(head_map: HeadMap, context_length: int, segments: Segments) -> float:
    """Local slots per global slot: of sequences of the expected length, or of cached segments if that is more.

    How many tokens of segments there will be may be unknown. Those that keep all local slots then get half of the global
    ones, the other half are requests' own.
    """
    shares = [local_slots_per_sequence(head_map) / context_length]
    if segments.tokens is None and segments.whole:
        shares.append(0.5)
    elif segments.tokens is None and segments.length:
        shares.append((head_map.sink + head_map.window) / segments.length)
    return min(1.0, max(shares))
