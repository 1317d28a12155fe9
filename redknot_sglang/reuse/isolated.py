# SPDX-License-Identifier: Apache-2.0
"""Isolated prefills: requests of the scheduler's own that compute segments nobody has computed yet.

An isolated prefill is an ordinary request whose prompt is the segment (after the lead if so configured) and whose
answer nobody reads. It is batched, chunked and cached like any other, and however many requests want a segment, one
isolated prefill computes it. Scout passes (`reuse/scout.py`) are such requests, too.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from redknot_sglang.radix.spans import Span

_PREFIX = "redknot-segment-"
Identity = tuple[str | None, bytes]


@dataclass(frozen=True)
class IsolatedPath:
    """What an isolated prefill computes: a segment (None: a scout pass), its key, the namespace that it goes to, and
    whether local heads keep all of its rows.
    """

    segment: Span | None
    key: array[int]
    extra_key: str | None
    whole: bool

    @property
    def identity(self) -> Identity:
        """The same for the same path of another request."""
        return self.extra_key, self.key.tobytes()


class IsolatedPrefills:
    """The isolated prefills under way. scheduler: SGLang's, set before requests are admitted."""

    def __init__(self) -> None:
        self._under_way: dict[Identity, Any] = {}
        self._count = 0
        self.scheduler: Any = None

    def request(self, req: Any, missing: Iterable[IsolatedPath]) -> set[Span]:
        """Put an isolated prefill for each missing path into the queue right behind `req`.

        Returns the segments for which there is one now and was none before.
        """
        fresh, behind = set(), []
        for path in missing:
            if path.identity in self._under_way:
                continue
            prefill = self._make(req, path.key)
            prefill.extra_key = path.extra_key
            prefill.redknot_identity = path.identity
            prefill.redknot_scout, prefill.redknot_whole = path.segment is None, path.whole
            self._under_way[path.identity] = prefill
            behind.append(prefill)
            if path.segment is not None:
                fresh.add(path.segment)
        if behind:
            # The scheduler is walking the queue: it comes to them in this very pass.
            queue = self.scheduler.waiting_queue
            at = next(i for i, waiting in enumerate(queue) if waiting is req)
            queue[at + 1 : at + 1] = behind
        return fresh

    def done(self, req: Any) -> None:
        """A request has ended; no-op unless it was an isolated prefill."""
        self._under_way.pop(req.__dict__.get("redknot_identity"), None)

    def dropped(self, waiting: Iterable[Any]) -> None:
        """Requests were aborted while queued; isolated prefills among them are no longer under way."""
        left = {id(req) for req in waiting}
        for identity, req in list(self._under_way.items()):
            if req.req_pool_idx is None and id(req) not in left:
                del self._under_way[identity]

    def wait_for_forwards(self) -> None:
        """Have the current stream wait for the forwards that are under way: they may still write what it reads next."""
        stream = getattr(self.scheduler, "forward_stream", None)
        if stream is not None and torch.cuda.is_available():
            torch.cuda.current_stream().wait_stream(stream)

    def _make(self, req: Any, key: array[int]) -> Any:
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.sampling.sampling_params import SamplingParams

        scheduler = self.scheduler
        params = SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True)
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
        scheduler.init_req_max_new_tokens(prefill)
        prefill.time_stats.set_wait_queue_entry_time()
        return prefill


def is_scout(req: Any) -> bool:
    """Whether the request is a scout pass."""
    return bool(req.__dict__.get("redknot_scout"))


def is_isolated(req: Any) -> bool:
    """Whether nobody waits for this request's answer."""
    return "redknot_identity" in req.__dict__
