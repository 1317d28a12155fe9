# SPDX-License-Identifier: Apache-2.0
"""Admission of segmented requests, one chunk at a time.

A segmented request reuses documents (segments) that are cached, and copies (*relocates*) their KV to slots of its own.
SGLang's scheduler admits it like any other request: the relocated part counts as a cached prefix, and its slots are
taken off SGLang's own budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import sleep
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redknot_sglang.kernels.host_copy import to_device
from redknot_sglang.plan.gather import Stretch
from redknot_sglang.plan.plan import Plan
from redknot_sglang.plan.request import state_of
from redknot_sglang.plan.spans import Flags, Span, positions_of, spans_of
from redknot_sglang.pool.relocation import move_rows
from redknot_sglang.radix.local_locks import unmap
from redknot_sglang.reuse.feasible import why_impossible
from redknot_sglang.reuse.host import load_own_path, settle
from redknot_sglang.reuse.model_facts import ModelFacts
from redknot_sglang.reuse.probe import Choice, choose_rows
from redknot_sglang.reuse.selection import DocumentSelection
from redknot_sglang.reuse.sources import SegmentSources, is_idle, pieces_of
from redknot_sglang.reuse.stored import StoredPaths
from redknot_sglang.seams.sglang import AddReqResult, EvictParams

# Requests of a pass whose rows are asked for while a forward runs: a few chunks' worth. More would only keep the host busy.
_CHOICES_AHEAD = 4
# Seconds.
_GIVE_WAY = 0.0005


class SegmentAdmission:
    """Carries out the plans of segmented requests while SGLang's scheduler admits them.

    tree: the HeadClassRadixCache.
    facts: what segmented mode has to know of the model.
    There is one per scheduler. All tensor-parallel ranks make the same decisions.
    """

    def __init__(self, tree: Any, facts: ModelFacts) -> None:
        self._tree, self._facts = tree, facts
        self.allocator = tree.token_to_kv_pool_allocator
        self._pool = self.allocator.get_kvcache()
        self.sources = SegmentSources(tree)
        self._adder: Any = None
        self._asked = 0
        self._gave_way = False
        self._selection = DocumentSelection(tree, facts, self.sources.isolated)
        self._stored = StoredPaths(tree)

    def admit(self, adder: Any, req: Any, call: Callable[[], Any]) -> Any:
        """In place of `PrefillAdder.add_one_req`, which admits one waiting request. Returns what that returns.

        adder: SGLang's PrefillAdder of this scheduling pass.
        req: SGLang's Req.
        call: runs the original.
        A request whose segments have to be computed first is passed over and stays in the queue.
        """
        if self._adder is not adder:
            self._adder, self._asked, self._gave_way = adder, 0, False
        result = self._admit(adder, req, call)
        if result is AddReqResult.NO_TOKEN and is_idle(adder):
            # Nothing runs that would make room: only locks can.
            self.sources.release_waiting(but=req)
        return result

    def request_ended(self, req: Any) -> None:
        """A request has ended, as the tree tells its listeners: its locks on segments are given up or handed on."""
        self.sources.ended(req)

    def slots_changed(self) -> None:
        """Slots have been freed or taken, as the tree tells its listeners. Nothing to do: every pass looks at all that
        wait.
        """

    def begin_pass(self) -> None:
        """A scheduling pass begins. Loads from host memory that still wait for a forward are started now."""
        settle(self._pool, self._facts, self.sources.isolated)
        self._stored.ask_ahead(self.sources.isolated)

    def take_preempted(self) -> list[Any]:
        """Running requests that this pass has preempted, if it then admitted nobody; else none.

        SGLang puts preempted requests back into the queue only after a pass that admits somebody. Without RedKnot, a
        pass that preempts always does.
        """
        adder, self._adder = self._adder, None
        return [] if adder is None or adder.can_run_list else list(adder.preempt_list)

    def extend_chunk(self, adder: Any, req: Any, call: Callable[[], Any]) -> Any:
        """In place of `PrefillAdder.add_chunked_req`, which admits a request's next chunk. Parameters as in `admit`."""
        plan = state_of(req).plan
        start = len(req.prefix_indices)
        admitted = len(adder.can_run_list)
        if plan is not None and plan.reuses(start):
            rows = min(adder.rem_chunk_tokens, int(adder.rem_total_tokens))
            result = self._extend(adder, req, plan, start, rows, call)
        else:
            result = call()
        if len(adder.can_run_list) == admitted:
            # Nobody is admitted past an unfinished chunk, so a request that waits with locks would wait for this one.
            self.sources.make_room()
        return result

    def _admit(self, adder: Any, req: Any, call: Callable[[], Any]) -> Any:
        state = state_of(req)
        plan = state.plan
        state.loaded = 0, 0
        if self._stored.must_wait(req):
            self._give_way(adder)
            return AddReqResult.CONTINUE
        if plan is not None and not plan.repair.selects:
            load_own_path(self._tree, adder, req)
        if plan is not None and plan.repair.selects:
            waits = self._select(adder, req, plan)
            if waits is not None:
                return waits
            if self._stored.must_wait(req):
                self.sources.release(req)
                return AddReqResult.CONTINUE
            plan = None
        start, length = len(req.prefix_indices), len(req.full_untruncated_fill_ids)
        state.dead = []
        if not req.retracted_stain:
            state.start = start
        if plan is None or not plan.reuses(start):
            self.sources.release(req)
            result = call()
            if not req.retracted_stain:
                # SGLang may have loaded more of it.
                state.start = len(req.prefix_indices)
            return result
        if not self._is_possible(req, plan):
            return AddReqResult.CONTINUE
        waits = self.sources.gather(adder, req, plan, start)
        if waits is not None:
            return waits
        if plan.undecided(start):
            chosen = self._choose(req, plan, start)
            if chosen is None:
                self.sources.refused(adder, req)
                return AddReqResult.CONTINUE if self._asked < _CHOICES_AHEAD else AddReqResult.OTHER
            plan = state.plan = chosen
        rows = adder.rem_chunk_tokens
        return self._extend(adder, req, plan, start, length if rows is None else rows, call)

    def _give_way(self, adder: Any) -> None:
        """Where nobody runs, leave the interpreter to the threads that read the store, once in a pass: else it spins here."""
        if not self._gave_way and is_idle(adder):
            self._gave_way = True
            sleep(_GIVE_WAY)

    def _is_possible(self, req: Any, plan: Plan) -> bool:
        """Whether the server can ever run a segmented request; ends it with the reason if not."""
        # A request that waits is asked in every pass, and what it needs grows with its answer only, after a retraction.
        state, length = state_of(req), len(req.full_untruncated_fill_ids)
        if state.feasible_at == length:
            return True
        problem = why_impossible(self._tree, req, plan, self._facts)
        if problem is not None:
            state.plan = None
            req.set_finish_with_abort(problem)
            return False
        state.feasible_at = length
        return True

    def _select(self, adder: Any, req: Any, plan: Plan) -> Any:
        """Leave only the segments that the text behind them asks for in a request's prompt.

        Returns None once that has happened, the request being one of exact mode from then on; else what to tell
        SGLang's scheduler.
        """
        if len(plan.segments) <= plan.repair.documents:
            self._selection.apply(req, plan, range(len(plan.segments)))
            return None
        if not self._is_possible(req, plan):
            return AddReqResult.CONTINUE
        reserved = adder.rem_total_token_offset
        waits = self.sources.gather(adder, req, plan, 0)
        if waits is AddReqResult.CONTINUE:
            ahead = self._chosen_ahead(adder, req, plan)
            if ahead is None:
                return waits
            # What was kept free for it is for itself now.
            adder.rem_total_token_offset = reserved
            self._selection.apply(req, plan, ahead)
            return None
        if waits is not None:
            return waits
        chosen = self._selection.chosen(req, plan)
        if chosen is None:
            self._asked += 1
            self.sources.refused(adder, req)
            return AddReqResult.CONTINUE if self._asked < _CHOICES_AHEAD else AddReqResult.OTHER
        self._selection.apply(req, plan, chosen)
        return None

    def _chosen_ahead(self, adder: Any, req: Any, plan: Plan) -> Sequence[int] | None:
        """Ask for the documents right behind the forward that computes the last path they need, mostly that of the question.

        Otherwise the device would stand idle from its end until the scheduler has looked at its result. Returns the choice if
        nobody else could run meanwhile; else None, and the request goes on when its paths are in the tree.
        """
        state = state_of(req)
        if state.documents is None:
            pieces = self.sources.soon(adder, req, plan, 0)
            if pieces is None:
                return None
            state.documents = self._selection.ask(plan, pieces)
        return state.documents.chosen() if self.sources.is_alone(adder, req) else None

    def _choose(self, req: Any, plan: Plan, start: int) -> Plan | None:
        """The plan with the repaired rows of the segments behind `start`; None if those are asked of the device only
        now.

        A forward under way is queued before the question. To wait for both would leave the device idle until the next
        batch is made, so that the request is passed over once while there is one. What was chosen stays right if its
        segments are evicted meanwhile: computed again they are the same.
        """
        undecided = plan.undecided(start)
        state = state_of(req)
        choice, state.choice = state.choice, None
        if choice is None or choice.segments != undecided:
            choice = self._ask(req, plan, undecided)
            if self.sources.isolated.is_forward_under_way:
                state.choice = choice
                self._asked += 1
                return None
        return plan.choosing(choice.rows())

    def _ask(self, req: Any, plan: Plan, undecided: list[Span]) -> Choice:
        state = state_of(req)
        pieces = [piece for piece in pieces_of(state.sources) if piece.span[0] < undecided[-1][1]]
        settle(self._pool, self._facts, self.sources.isolated)
        self.sources.isolated.wait_for_forwards()
        assert self._facts.arithmetic is not None, "admitted without a rotation"
        state.probed_flops = self._facts.arithmetic.probed(positions_of(undecided))
        mapping = self.allocator.full_to_swa_index_mapping
        return choose_rows(self._pool, self._facts, mapping, plan.repair.count, pieces, undecided)

    def _extend(self, adder: Any, req: Any, plan: Plan, start: int, rows: int, call: Callable[[], Any]) -> Any:
        """Let SGLang admit the request as if what is relocated were cached; then make it so.

        SGLang may cut the chunk further than `rows`; the relocated part then ends earlier as well.
        """
        length = len(req.full_untruncated_fill_ids)
        found = self._fitting(adder, plan, start, length, rows)
        if found is None:
            self.sources.refused(adder, req)
            return AddReqResult.NO_TOKEN if req.req_pool_idx is None else req
        stretch, local_rows = found
        moved, local = len(stretch.moved), int(local_rows.sum())
        tree_slots, chunk = req.prefix_indices, adder.rem_chunk_tokens
        adder.rem_total_token_offset += moved
        adder.cur_rem_token_offset += moved
        adder.rem_swa_token_offset += local
        if stretch.stop < length:
            adder.rem_chunk_tokens = len(stretch.rows)
        req.prefix_indices = torch.cat([tree_slots, tree_slots.new_zeros(moved)])
        admitted = len(adder.can_run_list)
        result = call()
        if stretch.stop < length:
            adder.rem_chunk_tokens += chunk - len(stretch.rows)
        adder.rem_total_token_offset -= moved
        adder.cur_rem_token_offset -= moved
        adder.rem_swa_token_offset -= local
        if len(adder.can_run_list) == admitted:
            req.prefix_indices = tree_slots
            self.sources.refused(adder, req)
            return result
        if req.extend_range.length != len(stretch.rows):
            stretch = self._stretch(plan, start, length, req.extend_range.length)
            local_rows = self._local_rows(plan, stretch)
        req.prefix_indices = torch.cat([tree_slots, self._relocate(req, plan, stretch, local_rows)])
        req.set_extend_range(len(req.prefix_indices), stretch.stop)
        assert req.extend_range.length == len(stretch.rows)
        state_of(req).stretch = stretch
        self.sources.keep(req, plan.sources(stretch.stop))
        return result

    def _fitting(self, adder: Any, plan: Plan, start: int, length: int, rows: int) -> tuple[Stretch, Flags] | None:
        """The longest stretch tried of at most `rows` computed rows that the free slots hold, and which of its
        relocated rows have local slots; None if there is none.
        """
        while rows > 0:
            stretch = self._stretch(plan, start, length, rows)
            local_rows = self._local_rows(plan, stretch)
            computed = len(stretch.rows)
            local = int(local_rows.sum()) + computed
            if len(stretch.moved) + computed < adder.rem_total_tokens and local < adder.rem_swa_tokens:
                return stretch, local_rows
            if adder.rem_chunk_tokens is None:
                return None
            rows = min(rows, computed) // 2
        return None

    def _stretch(self, plan: Plan, start: int, length: int, rows: int) -> Stretch:
        stop = plan.stretch(start, length, rows)
        return Stretch(start, stop, plan.moved(start, stop), plan.computed(start, stop))

    def _local_rows(self, plan: Plan, stretch: Stretch) -> Flags:
        heads = self._tree.local_heads
        return plan.local_rows(stretch.start, stretch.stop, heads.window, heads.sink)

    def _relocate(self, req: Any, plan: Plan, stretch: Stretch, seen: Flags) -> Tensor:
        """Allocate slots for the relocated positions and queue their job; returns them, int64 [moved], in order."""
        moved, device = stretch.moved, req.prefix_indices.device
        if not len(moved):
            return torch.empty(0, dtype=torch.int64, device=device)
        state = state_of(req)
        sources = sorted(state.sources.items())
        begins, stops = np.array([span for span, _ in sources]).T
        counts = np.searchsorted(moved, stops) - np.searchsorted(moved, begins)
        assert counts.sum() == len(moved), "a relocated row has no source"
        kept = [source.slots for _, source in sources]
        ends = np.cumsum([len(slots) for slots in kept])
        which = np.repeat(np.arange(len(sources)), counts)
        origins = moved - begins[which] + plan.origin
        # One copy to the device instead of many small ones.
        rows = np.stack([np.r_[0, ends[:-1]][which] + origins, origins, moved])
        at, origin, position = to_device(rows, device, torch.int64)
        local = to_device(np.flatnonzero(seen), device, torch.int64)
        targets = self._allocate(len(moved), local)
        mapping = self.allocator.full_to_swa_index_mapping
        self._pool.relocations.add(move_rows(torch.cat(kept)[at], targets, origin, position, local, mapping))
        state.dead += spans_of(moved[~seen])
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
        slots = slots.long()
        unmap(mapping, slots)
        mapping[slots[local]] = local_slots.to(mapping.dtype)
        return slots
