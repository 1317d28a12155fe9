# SPDX-License-Identifier: Apache-2.0
"""Admission of segmented requests: look segments up, have missing ones computed, give a request its relocated slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.managers.schedule_policy import AddReqResult
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from torch import Tensor

from redknot_sglang.config import RedKnotError
from redknot_sglang.pool.relocation import move_rows, row_indices
from redknot_sglang.radix.spans import Span, clip, gaps
from redknot_sglang.reuse.gather import Stretch
from redknot_sglang.reuse.isolated import IsolatedPrefills
from redknot_sglang.reuse.options import plan_of
from redknot_sglang.reuse.plan import Plan
from redknot_sglang.seams.model_config import UNBOUNDED_WINDOW


@dataclass
class Source:
    """A segment in the tree, locked. slots: its global slots, int64 [tokens of its key]."""

    slots: Tensor
    node: Any
    lock: Any


class SegmentAdmission:
    """Turns plans into prefix slots and relocation jobs, under SGLang's own admission budgets.

    tree: the HeadClassRadixCache. One per scheduler; every tensor-parallel rank makes the same decisions.
    """

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self.allocator = tree.token_to_kv_pool_allocator
        self._pool = self.allocator.get_kvcache()
        self.isolated = IsolatedPrefills(self._cached)
        self._pinned: tuple[Any, dict[Span, Source]] | None = None

    # ---- the scheduler's calls --------------------------------------------------------------------------------------

    def admit(self, adder: Any, req: Any, call: Callable[[], Any]) -> Any:
        """`PrefillAdder.add_one_req`; `call` runs the original. Returns its result.

        A request whose segments have to be computed first is passed over and waits in the queue.
        """
        plan = plan_of(req)
        start, length = len(req.prefix_indices), len(req.full_untruncated_fill_ids)
        req.redknot_dead = []
        if plan is None:
            result = call()
            if result is AddReqResult.NO_TOKEN:
                self.yield_locks(adder, req)
            return result
        if not clip(plan.reused, start, length):
            self.release(req)
            return call()
        problem = self._impossible(req, plan)
        if problem is not None:
            req.redknot_plan = None
            req.set_finish_with_abort(problem)
            return AddReqResult.CONTINUE
        if not self._gather_sources(adder, req, plan, start):
            return AddReqResult.CONTINUE
        rows = adder.rem_chunk_tokens
        return self._extend(adder, req, start, length if rows is None else rows, call)

    def extend_chunk(self, adder: Any, req: Any, call: Callable[[], Any]) -> Any:
        """`PrefillAdder.add_chunked_req` for a request with a plan whose first chunk has run."""
        start, length = len(req.prefix_indices), len(req.full_untruncated_fill_ids)
        if not clip(req.redknot_plan.reused, start, length):
            self.release(req)
            return call()
        return self._extend(adder, req, start, min(adder.rem_chunk_tokens, int(adder.rem_total_tokens)), call)

    def release(self, req: Any) -> None:
        """Drop the locks on a request's segments, if it holds any."""
        sources = req.__dict__.pop("redknot_sources", None)
        if self._pinned is not None and self._pinned[0] is req:
            sources, self._pinned = self._pinned[1], None
        for source in (sources or {}).values():
            self._unlock(source)

    def left_queue(self, queue: list[Any]) -> None:
        """Requests were aborted while queued; `queue` is what is left."""
        if self._pinned is not None and all(req is not self._pinned[0] for req in queue):
            self.release_pinned()
        self.isolated.dropped(queue)

    def yield_locks(self, adder: Any, req: Any) -> None:
        """`req` got no room: if nothing runs that would make room, the request that waits with locks gives them up."""
        idle = not adder.can_run_list and (adder.running_batch is None or adder.running_batch.is_empty())
        if idle and self._pinned is not None and self._pinned[0] is not req:
            self.release_pinned()

    def release_pinned(self) -> None:
        """The request that waits with locks gives them up; it looks its segments up again when its turn comes."""
        if self._pinned is not None:
            self.release(self._pinned[0])

    # ---- sources ----------------------------------------------------------------------------------------------------

    def _gather_sources(self, adder: Any, req: Any, plan: Plan, start: int) -> bool:
        """Lock all segments of which the request relocates rows; False if some have to be computed first.

        The first request that waits keeps the locks on what is there already, so that computing one of its segments
        cannot evict another for ever. Nobody else holds locks while waiting.
        """
        first = self._pinned is None or self._pinned[0] is req
        sources = self._pinned[1] if self._pinned is not None and first else {}
        tokens = req.full_untruncated_fill_ids
        missing: dict[Any, Any] = {}
        for segment in plan.sources(start):
            if segment in sources:
                continue
            key = plan.segment_key(tokens, segment)
            source = self._lock(key, req.extra_key)
            if source is None:
                missing[key.tobytes()] = key
            else:
                sources[segment] = source
        if not missing:
            self._pinned = None if first else self._pinned
            req.redknot_sources = sources
            return True
        self._wait(adder, req, sources)
        self.isolated.request(req, missing.values())
        return False

    def _match(self, key: Any, extra_key: str | None) -> Any:
        return self._tree.match_prefix(MatchPrefixParams(key=RadixKey(key, extra_key)))

    def _cached(self, key: Any, extra_key: str | None) -> bool:
        return len(self._match(key, extra_key).device_indices) == len(key)

    def _lock(self, key: Any, extra_key: str | None) -> Source | None:
        match = self._match(key, extra_key)
        if len(match.device_indices) != len(key):
            return None
        return Source(match.device_indices, match.last_device_node, self._tree.inc_lock_ref(match.last_device_node))

    def _unlock(self, source: Source) -> None:
        self._tree.dec_lock_ref(source.node, source.lock.to_dec_params())

    def _impossible(self, req: Any, plan: Plan) -> str | None:
        """Why the request can never run, or None."""
        if isinstance(self._pool.rotation, RedKnotError):
            return f"segmented mode needs relocation, and {self._pool.rotation}; use redknot_mode exact"
        tokens = req.full_untruncated_fill_ids
        keys = {key.tobytes(): len(key) for key in (plan.segment_key(tokens, segment) for segment in plan.sources(0))}
        own = len(req.origin_input_ids) + req.sampling_params.max_new_tokens
        needed = own + sum(keys.values()) + 1
        heads = self._tree.local_heads
        tails = sum(heads.sink + min(count, heads.window) for count in keys.values())
        local = tails + self._tree.sliding_window_size + 2 * heads.window
        if self._tree.sliding_window_size < UNBOUNDED_WINDOW and local >= self.allocator.size_swa:
            return (
                f"this segmented request needs {local} local KV slots at a time, {tails} of them for the tails of its "
                f"segments, and the server has {self.allocator.size_swa}: use redknot_mode exact or fewer segments, or "
                "start with --redknot-segment-length at the usual length of a segment"
            )
        if needed < self.allocator.size_full:
            return None
        return (
            f"this segmented request needs {needed} KV slots, {own} of its own beside {sum(keys.values())} of its "
            f"segments, and the server has {self.allocator.size_full}: use redknot_mode exact, fewer or shorter "
            "segments, or raise --max-total-tokens or --redknot-kv-budget"
        )

    # ---- slots ------------------------------------------------------------------------------------------------------

    def _extend(self, adder: Any, req: Any, start: int, rows: int, call: Callable[[], Any]) -> Any:
        """Let SGLang admit the request as if what is relocated were cached; then make it so.

        SGLang may cut the chunk further than `rows`; the relocated part then ends earlier as well.
        """
        plan: Plan = req.redknot_plan
        length = len(req.full_untruncated_fill_ids)
        stretch = self._fitting(adder, plan, start, length, rows)
        if stretch is None:
            self._refuse(adder, req)
            return AddReqResult.NO_TOKEN if req.req_pool_idx is None else req
        moved, local = stretch.num_moved, self._local_count(plan, stretch)
        tree_slots, chunk = req.prefix_indices, adder.rem_chunk_tokens
        adder.rem_total_token_offset += moved
        adder.cur_rem_token_offset += moved
        adder.rem_swa_token_offset += local
        if stretch.stop < length:
            adder.rem_chunk_tokens = stretch.num_rows
        req.prefix_indices = torch.cat([tree_slots, tree_slots.new_zeros(moved)])
        admitted = len(adder.can_run_list)
        result = call()
        if stretch.stop < length:
            adder.rem_chunk_tokens += chunk - stretch.num_rows
        adder.rem_total_token_offset -= moved
        adder.cur_rem_token_offset -= moved
        adder.rem_swa_token_offset -= local
        if len(adder.can_run_list) == admitted:
            req.prefix_indices = tree_slots
            self._refuse(adder, req)
            return result
        stretch = self._stretch(plan, start, length, req.extend_range.length)
        req.prefix_indices = torch.cat([tree_slots, self._relocate(req, plan, stretch)])
        req.set_extend_range(len(req.prefix_indices), stretch.stop)
        assert req.extend_range.length == stretch.num_rows
        req.redknot_stretch = stretch
        for segment in [segment for segment in req.redknot_sources if segment[1] <= stretch.stop]:
            self._unlock(req.redknot_sources.pop(segment))
        return result

    def _fitting(self, adder: Any, plan: Plan, start: int, length: int, rows: int) -> Stretch | None:
        """The longest stretch tried of at most `rows` computed rows that the free slots hold; None if there is none."""
        while rows > 0:
            stretch = self._stretch(plan, start, length, rows)
            local = self._local_count(plan, stretch) + stretch.num_rows
            if stretch.num_moved + stretch.num_rows < adder.rem_total_tokens and local < adder.rem_swa_tokens:
                return stretch
            if adder.rem_chunk_tokens is None:
                return None
            rows = min(rows, stretch.num_rows) // 2
        return None

    def _refuse(self, adder: Any, req: Any) -> None:
        """No room in this pass; the next chunk of a request waits with what the request has."""
        if req.req_pool_idx is None:
            self._wait(adder, req, req.__dict__.pop("redknot_sources", {}))

    def _wait(self, adder: Any, req: Any, sources: dict[Span, Source]) -> None:
        """The request stays in the queue: the first one that waits keeps its locks, if that is within the budgets.

        What this pass has admitted already may count on evicting what the locks hold.
        """
        if self._pinned is None:
            self._pinned = (req, sources)
        elif self._pinned[0] is not req:
            for source in sources.values():
                self._unlock(source)
        if adder.rem_total_tokens <= 0 or adder.rem_swa_tokens <= 0:
            self.release_pinned()

    def _stretch(self, plan: Plan, start: int, length: int, rows: int) -> Stretch:
        stop = plan.stretch(start, length, rows)
        return Stretch(start, stop, clip(plan.reused, start, stop), plan.computed(start, stop))

    def _local_count(self, plan: Plan, stretch: Stretch) -> int:
        return sum(end - start for start, end in self._local_rows(plan, stretch))

    def _local_rows(self, plan: Plan, stretch: Stretch) -> list[Span]:
        heads = self._tree.local_heads
        return plan.local_rows(stretch.start, stretch.stop, heads.window, heads.sink)

    def _relocate(self, req: Any, plan: Plan, stretch: Stretch) -> Tensor:
        """Allocate slots for the relocated positions and queue their job; returns them, int64 [moved], in order."""
        if not stretch.moved:
            return torch.empty(0, dtype=torch.int64, device=req.prefix_indices.device)
        local_spans = self._local_rows(plan, stretch)
        moved = row_indices(stretch.moved)
        local = torch.isin(moved, row_indices(local_spans)).nonzero().flatten()
        targets = self._allocate(len(moved), local)
        parts = []
        for segment, source in req.redknot_sources.items():
            for a, b in clip(stretch.moved, *segment):
                first = plan.origin + a - segment[0]
                parts.append((a, source.slots[first : first + b - a], torch.arange(first, first + b - a)))
        parts.sort(key=lambda part: part[0])
        device = targets.device
        slots, origins = torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts]).to(device)
        assert len(slots) == len(targets), "a relocated row has no source"
        mapping = self.allocator.full_to_swa_index_mapping
        self._pool.relocations.add(move_rows(slots, targets, origins, moved.to(device), local.to(device), mapping))
        dead = [part for span in stretch.moved for part in gaps(local_spans, *span)]
        req.redknot_dead = [*req.redknot_dead, *dead]
        return targets

    def _allocate(self, count: int, local: Tensor) -> Tensor:
        allocator = self.allocator
        lacking = count - allocator.full_available_size(), len(local) - allocator.swa_available_size()
        if max(lacking) > 0:
            self._tree.evict(EvictParams(num_tokens=max(0, lacking[0]), swa_num_tokens=max(0, lacking[1])))
        slots = allocator.full_attn_allocator.alloc(count)
        local_slots = allocator.swa_attn_allocator.alloc(len(local))
        if slots is None or local_slots is None:
            raise RuntimeError(f"admission promised {count} global and {len(local)} local slots that are not there")
        mapping = allocator.full_to_swa_index_mapping
        mapping[slots] = 0
        mapping[slots[local.to(slots.device)]] = local_slots.to(mapping.dtype)
        return slots.to(torch.int64)
