# SPDX-License-Identifier: Apache-2.0
"""Segmented requests and the host tier: what they read there is loaded before they are admitted."""

from __future__ import annotations

from typing import Any

import torch

from redknot_sglang.reuse.isolated import IsolatedPrefills
from redknot_sglang.reuse.model_facts import ModelFacts
from redknot_sglang.seams.sglang import InitLoadBackParams


def load_own_path(tree: Any, adder: Any, req: Any) -> None:
    """Load what a segmented request's match found of its own path on the host, so that its plan begins behind that.

    tree: the HeadClassRadixCache.
    adder: of this pass. Without room for all of it nothing is loaded, and the request goes on from what is on the device.
    req: SGLang's Req, matched. For SGLang it has nothing on the host from now on.
    """
    if not req.needs_host_load_back():
        return
    missing, last = len(req.full_untruncated_fill_ids) - len(req.prefix_indices), req.last_node
    # As for SGLang's own loads, the room is what is left beside what it has on the device, which the load locks.
    lock = tree.inc_lock_ref(last)
    if missing < adder.rem_total_tokens and req.swa_host_hit_length < adder.rem_swa_tokens:
        params = InitLoadBackParams(req.best_match_node, req.host_hit_length, req=req)
        slots, req.last_node = tree.init_load_back(params)
        req.prefix_indices = torch.cat([req.prefix_indices, slots])
        req.cache_protected_len = len(req.prefix_indices)
    tree.dec_lock_ref(last, lock.to_dec_params())
    req.best_match_node = req.last_node
    req.host_hit_length = req.swa_host_hit_length = 0


def settle(pool: Any, facts: ModelFacts, isolated: IsolatedPrefills) -> None:
    """Begin the loads that wait for a forward, and have forwards and what reads KV beside them wait for those.

    pool: the HeadClassPool.
    facts: of the model.
    isolated: the isolated prefills, which know the stream of forwards. All that writes KV does so behind what runs there.
    """
    queue = pool.relocations
    if not queue.has_loads:
        return
    with isolated.behind_forwards():
        queue.run(pool, facts.rotation)
        queue.wait()
