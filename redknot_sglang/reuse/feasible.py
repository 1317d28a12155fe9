# SPDX-License-Identifier: Apache-2.0
"""Whether a server's pools can ever hold a segmented request beside its segments."""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS

from redknot_sglang.config import RedKnotError
from redknot_sglang.pool.probe import WHY_NO_PROBES
from redknot_sglang.reuse.plan import Plan
from redknot_sglang.seams.model_config import UNBOUNDED_WINDOW


def why_impossible(tree: Any, req: Any, plan: Plan) -> str | None:
    """Why the server can never run a segmented request, and what would help; None if it can.

    tree: the HeadClassRadixCache.
    """
    allocator, heads = tree.token_to_kv_pool_allocator, tree.local_heads
    pool = allocator.get_kvcache()
    if isinstance(pool.rotation, RedKnotError):
        return f"segmented mode needs relocation, and {pool.rotation}; use redknot_mode exact"
    if plan.repair.probes and pool.probes is None:
        return f"repair policy {plan.repair.name} {WHY_NO_PROBES}; or use redknot_repair boundary:K or none"
    paths = plan.paths(req.full_untruncated_fill_ids, 0)
    keys = {path.key.tobytes(): path for path in paths}
    # Segments that are computed after one lead share it in the tree.
    lead = max((path.origin for path in keys.values()), default=0)
    kept = lead + sum(len(path.key) - path.origin for path in keys.values())
    # As SGLang counts it: room for all that is there, which after a retraction is part of the answer as well, and of a
    # long answer for the next part only.
    left = max(0, req.sampling_params.max_new_tokens - len(req.output_ids))
    own = len(req.full_untruncated_fill_ids) + min(left, CLIP_MAX_NEW_TOKENS)
    needed = own + kept + 1
    remedy = "start with --redknot-segment-length at the usual length of a segment"
    if plan.repair.probes:
        remedy += ", or use redknot_repair boundary:K or none, which keep only a window of each"
    tails = lead * plan.repair.probes + sum(
        len(path.key) - path.origin if path.whole else heads.sink + min(len(path.key), heads.window)
        for path in keys.values()
    )
    local = tails + tree.sliding_window_size + 2 * heads.window
    if tree.sliding_window_size < UNBOUNDED_WINDOW and local >= allocator.size_swa:
        return (
            f"this segmented request needs {local} local KV slots at a time, {tails} of them for its "
            f"segments, and the server has {allocator.size_swa}: use redknot_mode exact or fewer segments, or "
            f"{remedy}"
        )
    if needed < allocator.size_full:
        return None
    return (
        f"this segmented request needs {needed} KV slots, {own} of its own beside {kept} of its "
        f"segments, and the server has {allocator.size_full}: use redknot_mode exact, fewer or shorter "
        "segments, lower max_new_tokens, or raise --max-total-tokens or --redknot-kv-budget"
    )
