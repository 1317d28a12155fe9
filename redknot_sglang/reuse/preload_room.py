# SPDX-License-Identifier: Apache-2.0
"""Whether the server can use segments that a client wants computed ahead of time, and has room for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from redknot_sglang.errors import RedKnotError
from redknot_sglang.plan.policies import WITH_WINDOWS, WITHOUT_PROBES, parse_repair
from redknot_sglang.pool.probe import WHY_NO_PROBES
from redknot_sglang.reuse.model_facts import ModelFacts
from redknot_sglang.seams.model_config import UNBOUNDED_WINDOW


class Sized(Protocol):
    """A segment to preload: its tokens, the lead that it is computed after, the repair policy that it is for, and
    whether local heads keep all of its rows.
    """

    @property
    def lead(self) -> Sequence[int]: ...
    @property
    def tokens(self) -> Sequence[int]: ...
    @property
    def whole(self) -> bool: ...
    @property
    def repair(self) -> str: ...


def check_room(tree: Any, facts: ModelFacts, longest: int, segments: Sequence[Sized]) -> None:
    """Check that requests could use these segments and that the pools can hold all of them at the same time.

    tree: the HeadClassRadixCache.
    facts: what segmented mode has to know of the model.
    longest: a prompt of this many tokens or more is too long for the server.
    segments: all with the same lead.
    Raises RedKnotError if not, with the reason and what would help.
    """
    allocator = tree.token_to_kv_pool_allocator
    pool = allocator.get_kvcache()
    if facts.rotation is None:
        raise RedKnotError(
            f"segments need relocation, and {facts.why_not}: send requests in exact mode, without preloading"
        )
    if not segments:
        return
    if parse_repair(segments[0].repair).probes and pool.probes is None:
        raise RedKnotError(f"repair policy {segments[0].repair} {WHY_NO_PROBES}; or use repair {WITHOUT_PROBES}")
    lead, most = len(segments[0].lead), max(len(segment.tokens) for segment in segments)
    if lead + most >= longest:
        raise RedKnotError(
            f"a segment has {lead + most} tokens, its lead included, and the server takes prompts below {longest}: "
            "split it, or raise --context-length, --max-total-tokens or --redknot-kv-budget"
        )
    for head_class, alone, together, slots in _needs(tree, allocator, segments):
        if alone >= slots:
            raise RedKnotError(
                f"a segment of {lead + most} tokens, its lead included, needs {alone} {head_class} KV slots and the server "
                f"has {slots}: split it, preload for a repair policy that keeps a window of it only ({WITH_WINDOWS}), "
                "or raise --max-total-tokens or --redknot-kv-budget"
            )
        if together >= slots:
            raise RedKnotError(
                f"these {len(segments)} segments need {together} {head_class} KV slots and the server has {slots}: send "
                "fewer at a time"
            )


def _needs(tree: Any, allocator: Any, segments: Sequence[Sized]) -> list[tuple[str, int, int, int]]:
    """Per class its name, slots that the longest segment needs, slots that all need, and slots there are."""
    lead, sizes = len(segments[0].lead), [len(segment.tokens) for segment in segments]
    needs = [("global", lead + max(sizes) + 1, lead + sum(sizes) + 1, allocator.size_full)]
    if tree.sliding_window_size < UNBOUNDED_WINDOW:
        heads = tree.local_heads
        if segments[0].whole:
            alone, together = lead + max(sizes), lead + sum(sizes)
        else:
            kept = [min(lead + size, heads.sink + heads.window) for size in sizes]
            alone, together = max(kept), sum(kept)
        # What a running request needs, as `SegmentAdmission` counts it.
        own = tree.sliding_window_size + 2 * heads.window
        needs.append(("local", alone + own, together + own, allocator.size_swa))
    return needs
