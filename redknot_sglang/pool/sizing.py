# SPDX-License-Identifier: Apache-2.0
"""How many slots each head class gets from a byte budget. Pure arithmetic.

The split aims at one sequence length, the expected context: both pools run out together when that many sequences of
that length are held, each with one global slot per token and a fixed number of local slots.
"""

from __future__ import annotations

from dataclasses import dataclass

from redknot_sglang.config import RedKnotConfig
from redknot_sglang.heads import HeadMap
from redknot_sglang.reuse.repair import parse_repair

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


def split_budget(
    head_map: HeadMap, cost: ClassBytes, budget: int, context_length: int, chunk: int, segment_length: int | None = None
) -> PoolSlots:
    """Slots per class for `budget` bytes.

    context_length: tokens of the expected sequence. segment_length: tokens of the expected segment, if segments are
    what the cache is to hold. chunk: tokens of a prefill chunk. Two chunks of one request can be
    in flight, wholly live, so the local pool gets room for them beside the sequences; at most a quarter of the budget.
    """
    if head_map.all_global:
        slots = budget // (cost.global_slot + cost.probe)
        return PoolSlots(slots, slots)
    in_flight = min(2 * chunk, int(_CHUNK_SHARE * budget / cost.local))
    ratio = _local_ratio(head_map, context_length, segment_length)
    global_slots = int((budget - in_flight * cost.local) / (cost.global_slot + ratio * cost.local))
    return PoolSlots(global_slots, int(global_slots * ratio) + in_flight)


def local_for_global(
    head_map: HeadMap, global_slots: int, context_length: int, chunk: int, segment_length: int | None = None
) -> PoolSlots:
    """Slots per class when the number of global slots is given (`--max-total-tokens`)."""
    if head_map.all_global:
        return PoolSlots(global_slots, global_slots)
    local_slots = int(global_slots * _local_ratio(head_map, context_length, segment_length)) + 2 * chunk
    return PoolSlots(global_slots, min(global_slots, local_slots))


def segment_length_for(config: RedKnotConfig, head_map: HeadMap) -> int | None:
    """Tokens of a segment by which the local pool is sized, or None if the cache is not to hold segments.

    Under a repair policy that probes, segments keep local slots of all tokens. Half of the global slots are then matched
    by local ones, those of segments; the other half are requests' own.
    """
    if config.expects_segments and parse_repair(config.repair).probes:
        return 2 * (head_map.sink + head_map.window)
    return config.segment_length


def _local_ratio(head_map: HeadMap, context_length: int, segment_length: int | None) -> float:
    """Local slots per global slot: of sequences of the expected length, or of cached segments if that is more."""
    sequences = local_slots_per_sequence(head_map) / context_length
    segments = (head_map.sink + head_map.window) / segment_length if segment_length else 0.0
    return min(1.0, max(sequences, segments))
