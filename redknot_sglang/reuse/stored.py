# SPDX-License-Identifier: Apache-2.0
"""Requests and the storage tier: what they could reuse is asked for before they are admitted, once for each request."""

from __future__ import annotations

from typing import Any

from redknot_sglang.plan.identity import namespace_of
from redknot_sglang.plan.request import RequestState, is_isolated, state_of
from redknot_sglang.radix.paths import reusable_tokens
from redknot_sglang.reuse.isolated import IsolatedPrefills
from redknot_sglang.seams.sglang import RadixKey

# Requests at the head of the queue for which the store is asked ahead of their turn.
_AHEAD = 16


class StoredPaths:
    """Asks the store for the paths of requests. tree: the HeadClassRadixCache."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree

    def ask_ahead(self, isolated: IsolatedPrefills) -> None:
        """Ask for what requests in the queue want, so that it is on its way while they wait for room.

        isolated: the isolated prefills, which know the queue.
        """
        if self._tree.store is not None:
            for req in isolated.waiting[:_AHEAD]:
                self.must_wait(req)

    def must_wait(self, req: Any) -> bool:
        """Whether something that a request wants is on its way from the store, and may still come in time.

        Asks for it at the first call. An isolated prefill asks for nothing: the request that it is for has.
        """
        store = self._tree.store
        if store is None or is_isolated(req):
            return False
        state = state_of(req)
        stages = self._stages(req, state)
        while True:
            if not all(job.is_settled for job in state.fetches):
                return bool(store.patience.waits)
            number = stages.index(state.asked) + 1 if state.asked in stages else 0
            if number == len(stages):
                break
            state.asked = stages[number]
            state.fetches = self._begin(req, state)
        if state.plan is None:
            # SGLang's answers say how much of a prompt came from where.
            req.storage_hit_length = sum(job.loaded for job in state.fetches)
        return False

    @staticmethod
    def _stages(req: Any, state: RequestState) -> list[str | int]:
        """What is asked for, one behind the other."""
        if state.plan is None:
            # A policy that selects makes the prompt a shorter one, of exact mode, which is asked for then.
            return [len(req.origin_input_ids)]
        return ["segments"] if state.plan.repair.selects else ["own path", "segments"]

    def _begin(self, req: Any, state: RequestState) -> list[Any]:
        plan, tokens = state.plan, req.full_untruncated_fill_ids or req.origin_input_ids
        if plan is None:
            wanted = [(req.extra_key, tokens)]
        else:
            namespace, key = (req.extra_key or "") + plan.identity, plan.key(tokens)
            wanted = [(namespace, key)]
            if state.asked == "segments":
                start = 0 if plan.repair.selects else reusable_tokens(self._tree, RadixKey(key, namespace), False)
                paths = plan.paths(tokens, min(start, len(tokens) - 1))
                wanted = [(namespace_of(req.extra_key, path.whole, path.asks), path.key) for path in paths]
        jobs = [self._tree.fetch(key, namespace) for namespace, key in wanted]
        return [job for job in jobs if job is not None]
