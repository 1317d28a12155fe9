# SPDX-License-Identifier: Apache-2.0
"""Segmented requests and the host tier, which is host memory behind the GPU's.

What a segmented request needs from the host is loaded before the request is admitted.
"""

from __future__ import annotations

from typing import Any

import torch

from redknot_sglang.reuse.isolated import IsolatedPrefills
from redknot_sglang.reuse.model_facts import ModelFacts


def load_own_path(tree: Any, adder: Any, req: Any) -> None:
    """Load a segmented request's own cached prefix from the host, as far as its match found one there.

    Its plan then begins behind what was loaded. If there is no room for all of it, nothing is loaded, and the request
    goes on from what is on the device.

    tree: the HeadClassRadixCache.
    adder: SGLang's PrefillAdder of this scheduling pass.
    req: SGLang's Req, already matched with the tree. Afterwards SGLang takes it for a request with nothing on the host.
    """
    if not req.needs_host_load_back():
        return
    missing, last = len(req.full_untruncated_fill_ids) - len(req.prefix_indices), req.last_node
    # As for SGLang's own loads, the room is what is left beside what it has on the device, which the load locks.
    lock = tree.inc_lock_ref(last)
    if missing < adder.rem_total_tokens and req.swa_host_hit_length < adder.rem_swa_tokens:
        slots = req.prefix_indices
        req.prefix_indices = torch.cat([slots, tree.load_found(req)])
        req.cache_protected_len = len(req.prefix_indices)
    tree.dec_lock_ref(last, lock.to_dec_params())
    req.best_match_node = req.last_node
    req.host_hit_length = req.swa_host_hit_length = 0


def settle(pool: Any, facts: ModelFacts, isolated: IsolatedPrefills) -> None:
    """Start the loads from the host that are queued, and have all that reads KV on the device wait for them.

    Loads are usually started by the next forward. This is for what reads KV before it, such as a probe.

    pool: the HeadClassPool.
    facts: what segmented mode has to know of the model.
    isolated: knows the CUDA stream of forwards. All that writes KV is queued there, behind the forwards that are under
        way.
    """
    queue = pool.relocations
    if not queue.has_loads:
        return
    with isolated.behind_forwards():
        queue.run(pool, facts.rotation)
        queue.wait()
