# SPDX-License-Identifier: Apache-2.0
"""Isolated prefills: requests that the scheduler makes itself, to compute segments (documents) that are not cached yet.

An isolated prefill is an ordinary request whose prompt is one segment (behind the prompt's lead, if so configured).
Nobody reads its answer. It is batched, chunked and cached like any other. However many requests want a segment, one
isolated prefill computes it. Where a probe has to choose rows (`reuse/probe.py`), the text between segments is computed
in this way as well.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from redknot_sglang.plan.identity import Identity, identity_of
from redknot_sglang.plan.plan import Path
from redknot_sglang.plan.request import state_of
from redknot_sglang.plan.spans import Span

_PREFIX = "redknot-segment-"


class IsolatedPrefills:
    """The isolated prefills that are queued or running.

    scheduler: SGLang's Scheduler; has to be set before requests are admitted.
    """

    def __init__(self) -> None:
        self._under_way: dict[Identity, Any] = {}
        self._count = 0
        self.scheduler: Any = None

    def request(self, req: Any, missing: Iterable[Path]) -> set[Span]:
        """Put an isolated prefill for each missing path into the queue right behind `req`.

        req: the request that needs them.
        Returns the spans of its prompt for which there is one now and was none before.
        """
        fresh, behind = set(), []
        for path in missing:
            identity = identity_of(req, path)
            prefill = self._under_way.get(identity)
            if prefill is None:
                prefill = self._make(req, path.key)
                prefill.extra_key = identity[0]
                state = state_of(prefill)
                state.identity, state.whole, state.asks = identity, path.whole, path.asks
                self._under_way[identity] = prefill
                behind.append(prefill)
                fresh.add(path.span)
            if path.asks:
                state_of(req).asking = state_of(prefill)
        if behind:
            # The scheduler is walking the queue: it comes to them in this very pass.
            queue = self.waiting
            at = next(i for i, waiting in enumerate(queue) if waiting is req)
            queue[at + 1 : at + 1] = behind
        return fresh

    def are_under_way(self, identities: Iterable[Identity]) -> bool:
        """Whether one of these paths is being computed, or about to be."""
        return any(identity in self._under_way for identity in identities)

    def has_begun(self, identity: Identity) -> bool:
        """Whether a path's isolated prefill has been admitted and has KV slots."""
        prefill = self._under_way.get(identity)
        return prefill is not None and prefill.req_pool_idx is not None

    def slots_under_way(self, identity: Identity, admitted: Iterable[Any]) -> Tensor | None:
        """Global slots of a path, int64 [tokens], if the forward under way computes the last of its rows; else None.

        admitted: requests that this pass has admitted so far, whose forward has not begun.
        """
        prefill = self._under_way.get(identity)
        if prefill is None or prefill is self.scheduler.chunked_req or any(prefill is req for req in admitted):
            return None
        if not any(prefill is req for batch, _ in getattr(self.scheduler, "result_queue", ()) for req in batch.reqs):
            return None
        tokens = len(prefill.origin_input_ids)
        slots: Tensor = self.scheduler.req_to_token_pool.req_to_token[prefill.req_pool_idx, :tokens].long()
        return slots

    def end_unwanted(self) -> None:
        """End the isolated prefills that no waiting request wants any more, because all that wanted them were aborted.

        One in the queue leaves it. One between two chunks ends before its next chunk, like a client's request that is
        aborted. One whose last chunk is being computed ends by itself.
        """
        if not self._under_way:
            return
        wanted = {identity for req in self.waiting for identity in state_of(req).awaited}
        for identity, prefill in list(self._under_way.items()):
            if identity in wanted:
                continue
            if prefill is self.scheduler.chunked_req:
                self.scheduler._pending_chunked_abort_req = prefill
            elif any(prefill is req for req in self.waiting):
                self.waiting[:] = [req for req in self.waiting if req is not prefill]
                del self._under_way[identity]

    def uses_adapter(self, lora_id: str | None) -> bool:
        """Whether some isolated prefill is computed with this LoRA adapter. lora_id: SGLang's id of it."""
        return any(prefill.lora_id == lora_id for prefill in self._under_way.values())

    def done(self, req: Any) -> None:
        """A request has ended. If it was an isolated prefill, it is under way no longer."""
        identity = state_of(req).identity
        if identity is not None:
            self._under_way.pop(identity, None)

    def dropped(self, waiting: Iterable[Any]) -> None:
        """Requests in the queue were aborted. Isolated prefills among them are under way no longer.

        waiting: the requests that are left in the queue.
        """
        left = {id(req) for req in waiting}
        for identity, req in list(self._under_way.items()):
            if req.req_pool_idx is None and id(req) not in left:
                del self._under_way[identity]

    @property
    def waiting(self) -> list[Any]:
        """The scheduler's queue."""
        return self.scheduler.waiting_queue if self.scheduler is not None else []

    @property
    def is_forward_under_way(self) -> bool:
        """Whether the scheduler has launched a batch whose results it has not looked at."""
        return bool(getattr(self.scheduler, "result_queue", None))

    @property
    def is_sending(self) -> bool:
        """Whether requests that have left the batch hold locks until their KV is on a decode server."""
        return bool(getattr(self.scheduler, "disagg_prefill_inflight_queue", None))

    def wait_for_forwards(self) -> None:
        """Have the current stream wait for the forwards that are under way: they may still write what it reads next."""
        stream = getattr(self.scheduler, "forward_stream", None)
        if stream is not None and torch.cuda.is_available():
            torch.cuda.current_stream().wait_stream(stream)

    @contextmanager
    def behind_forwards(self) -> Iterator[None]:
        """What is queued on the device in this block runs behind the forwards that are under way and before the next
        one.
        """
        stream = getattr(self.scheduler, "forward_stream", None)
        if stream is None or not torch.cuda.is_available():
            yield
            return
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield

    def _make(self, req: Any, key: array[int]) -> Any:
        from redknot_sglang.seams.sglang import FAKE_BOOTSTRAP_HOST, FakeKVSender, Req, SamplingParams

        scheduler = self.scheduler
        # No answer: under overlap scheduling SGLang would begin to decode one before it knows that the prefill has ended.
        params = SamplingParams(max_new_tokens=0, temperature=0.0, ignore_eos=True)
        params.normalize(None)
        self._count += 1
        prefill = Req(
            f"{_PREFIX}{self._count}",
            "",
            key,
            params,
            lora_id=req.lora_id,
            eos_token_ids=scheduler.model_config.hf_eos_token_id,
            vocab_size=scheduler.model_config.vocab_size,
            priority=req.priority,
        )
        prefill.tokenizer = scheduler.tokenizer
        bootstrap = scheduler.disagg_prefill_bootstrap_queue
        if bootstrap is not None:
            # On a prefill server every request sends its KV somewhere; that of warm-ups goes nowhere, and this one's as well.
            prefill.bootstrap_host = FAKE_BOOTSTRAP_HOST
            prefill.disagg_kv_sender = FakeKVSender(bootstrap.kv_manager, "", -1, [], 0)
        # None: SGLang's default of 0 has logits computed of all its rows where a batch mate asks for log-probabilities.
        prefill.logprob_start_len = -1
        scheduler.init_req_max_new_tokens(prefill)
        prefill.time_stats.set_wait_queue_entry_time()
        return prefill
