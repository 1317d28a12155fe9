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
    """Bytes of one slot of each class, on one rank or on all together (`ranks.py`).

    global_slot: K and V of one token for all global heads, over all layers.
    local_slot: the same for the local heads.
    probe: what a local slot takes besides, for probes (`probe.py`).
    draft: what a global slot takes besides, for a draft model (`draft_model.py`).
    """

    global_slot: int
    local_slot: int
    probe: int = 0
    draft: int = 0

    @property
    def whole_global(self) -> int:
        """All bytes of a global slot."""
        return self.global_slot + self.draft

    @property
    def local(self) -> int:
        """All bytes of a local slot."""
        return self.local_slot + self.probe

    @property
    def stock(self) -> int:
        """Bytes of a token in stock SGLang, without a draft model."""
        return self.global_slot + self.local_slot


@dataclass(frozen=True)
class PoolSlots:
    """Usable slots of each class, the dummy slot not counted."""

    global_slots: int
    local_slots: int


@dataclass(frozen=True)
class Segments:
    """Segments (documents to be reused) for which the cache is to have room.

    length: tokens of one segment, or None if few are expected.
    whole: whether a cached segment keeps local slots of all its tokens, as `blend` needs, and not of sink and window
        only.
    tokens: tokens of all of them, beside running requests; None if unknown.
    """

    length: int | None = None
    whole: bool = False
    tokens: int | None = None


NO_SEGMENTS = Segments()


def class_bytes(
    head_map: HeadMap, head_dim: int, itemsize: int, probe_width: int = 0, probe_itemsize: int | None = None
) -> ClassBytes:
    """Bytes of a slot of each class.

    head_map: this rank's share of the head map.
    head_dim: elements of one head's K, and of its V.
    itemsize: bytes of an element.
    probe_width: query heads whose rows are kept for probes.
    probe_itemsize: bytes of an element of these rows, and of queries of retrieval heads; None for `itemsize`.
    """
    per_head, per_query = (2 * head_dim * size for size in (itemsize, probe_itemsize or itemsize))
    layers = range(head_map.num_layers)
    return ClassBytes(
        global_slot=per_head * sum(head_map.num_global(layer) for layer in layers),
        local_slot=per_head * sum(head_map.num_local(layer) for layer in layers),
        # Queries alone of retrieval heads, where a probe keeps queries and outputs.
        probe=per_query * probe_width + per_query // 2 * len(head_map.retrieval),
    )


def local_slots_per_sequence(head_map: HeadMap, draft: int = 0) -> int:
    """Local slots that a running sequence holds at most: sink, the window at its prompt's end, and `decode_window`.

    draft: tokens of a draft of speculative decoding, 0 without it, here and below.
    """
    return head_map.sink + head_map.window + decode_window(head_map, draft)


def decode_window(head_map: HeadMap, draft: int = 0) -> int:
    """Local slots that decoding adds to those of the prompt at most: one window, what left it since the last pass that
    frees such slots, `free_interval` steps ago, and `slots_ahead`.
    """
    return head_map.window + max(DECODE_FREE_INTERVAL, draft) + slots_ahead(draft)


def slots_ahead(draft: int) -> int:
    """Slots of each class that SGLang has for a request behind its text while it decodes: for two drafts, since it may not know yet
    how many tokens of the one before are accepted.
    """
    return 2 * draft


def free_interval(draft: int) -> int:
    """Decode steps between two such passes: as many tokens as DECODE_FREE_INTERVAL, if all of a draft are accepted."""
    return max(1, DECODE_FREE_INTERVAL // max(1, draft))


def least_slots(head_map: HeadMap, draft: int = 0) -> int:
    """The fewest slots of each class with which one request can run at all, its prompt in chunks of a few tokens."""
    return 2 + slots_ahead(draft) if head_map.all_global else local_slots_per_sequence(head_map, draft) + 8


def holding_a_request(head_map: HeadMap, slots: PoolSlots, draft: int = 0) -> PoolSlots:
    """Returns `slots` as they are. Raises RedKnotError if not even one request can run in them.

    head_map: of this rank.
    slots: slots of each class.
    """
    least = least_slots(head_map, draft)
    if min(slots.global_slots, slots.local_slots) < least:
        raise RedKnotError(
            f"KV memory gives {slots.global_slots} global and {slots.local_slots} local slots, one request needs {least}; "
            "raise --redknot-kv-budget, --max-total-tokens or --mem-fraction-static"
        )
    return slots


def split_budget(
    head_map: HeadMap,
    cost: ClassBytes,
    budget: int,
    context_length: int,
    chunk: int,
    segments: Segments = NO_SEGMENTS,
    draft: int = 0,
) -> PoolSlots:
    """Slots of each class for a number of bytes.

    head_map: of this rank.
    cost: bytes of a slot of each class.
    budget: bytes for both classes.
    context_length: tokens of the expected request, prompt and answer.
    chunk: tokens of a prefill chunk. Two chunks of a request can be in flight, and all their tokens have local slots
        then, so the local pool gets room for them beside the requests; at most a quarter of the budget.
    segments: documents for which the cache is to have room.
    draft: tokens of a draft of speculative decoding, 0 without it.
    Raises RedKnotError if segments leave no room for a request.
    """
    if head_map.all_global:
        slots = budget // (cost.whole_global + cost.probe)
        return PoolSlots(slots, slots)
    in_flight = min(2 * chunk, int(_CHUNK_SHARE * budget / cost.local)) if cost.local else 2 * chunk
    ratio = _local_ratio(head_map, context_length, segments, draft)

    def beside(held: PoolSlots) -> PoolSlots:
        rest = budget - (in_flight + held.local_slots) * cost.local - held.global_slots * cost.whole_global
        global_slots = int(rest / (cost.whole_global + ratio * cost.local))
        return PoolSlots(global_slots, int(global_slots * ratio) + in_flight)

    found = _with_segments(head_map, segments, ratio, beside, draft)
    # A rank whose heads are all global pays nothing for local slots. Others do, and one that holds no more of them than
    # global ones takes no more bytes than this one.
    return found if cost.local_slot else PoolSlots(found.global_slots, min(found.global_slots, found.local_slots))


def local_for_global(
    head_map: HeadMap,
    global_slots: int,
    context_length: int,
    chunk: int,
    segments: Segments = NO_SEGMENTS,
    draft: int = 0,
) -> PoolSlots:
    """Slots of each class where the number of global ones is given, by `--max-total-tokens`.

    global_slots: usable global slots.
    The other parameters, and what is raised, are those of `split_budget`.
    """
    if head_map.all_global:
        return PoolSlots(global_slots, global_slots)
    ratio = _local_ratio(head_map, context_length, segments, draft)

    def beside(held: PoolSlots) -> PoolSlots:
        rest = global_slots - held.global_slots
        return PoolSlots(rest, int(rest * ratio) + 2 * chunk)

    local_slots = _with_segments(head_map, segments, ratio, beside, draft).local_slots
    return PoolSlots(global_slots, min(global_slots, local_slots))


def segments_for(config: RedKnotConfig) -> Segments:
    """The segments that a server's flags tell it to expect; its repair policy decides how many local slots they keep.

    config: the server's settings.
    """
    whole = config.expects_segments and config.repair is not None and parse_repair(config.repair).keeps_whole
    return Segments(config.segment_length, whole, config.segment_tokens)


def _with_segments(
    head_map: HeadMap, segments: Segments, ratio: float, beside: Callable[[PoolSlots], PoolSlots], draft: int
) -> PoolSlots:
    """Slots of the segments and of what is left beside them. Raises RedKnotError if that does not hold one request.

    ratio: local slots for each global one that segments take if neither `whole` nor `length` says how many.
    beside: from the slots of the segments, the slots that are left for requests.
    """

    def held(tokens: int) -> PoolSlots:
        tail = head_map.sink + head_map.window
        if segments.whole:
            return PoolSlots(tokens, tokens)
        if segments.length:
            return PoolSlots(tokens, min(tokens, tail * ceil(tokens / segments.length)))
        return PoolSlots(tokens, ceil(tokens * ratio))

    def too_many(tokens: int) -> bool:
        left = beside(held(tokens))
        return min(left.global_slots, left.local_slots) < least_slots(head_map, draft)

    if segments.tokens and too_many(segments.tokens):
        fit = max(0, bisect_left(range(segments.tokens), True, key=too_many) - 1)
        raise RedKnotError(
            f"--redknot-segment-tokens {segments.tokens} leave no room for a request, {fit} would; lower it or raise "
            "--redknot-kv-budget, --max-total-tokens or --mem-fraction-static"
        )
    kept = held(segments.tokens or 0)
    own = beside(kept)
    return PoolSlots(kept.global_slots + own.global_slots, kept.local_slots + own.local_slots)


def _local_ratio(head_map: HeadMap, context_length: int, segments: Segments, draft: int) -> float:
    """Local slots for each global slot: as requests of the expected length take, or as cached segments take if that is
    more.

    If nothing says how many tokens of segments there will be, those that keep local slots of all tokens are taken to
    fill half of the global pool, and requests the other half.
    """
    shares = [local_slots_per_sequence(head_map, draft) / context_length]
    if segments.tokens is None and segments.whole:
        shares.append(0.5)
    elif segments.tokens is None and segments.length:
        shares.append((head_map.sink + head_map.window) / segments.length)
    return min(1.0, max(shares))
