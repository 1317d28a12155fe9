# SPDX-License-Identifier: Apache-2.0
"""Whether a server's pools can ever hold a segmented request beside its segments, and whether they can now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from redknot_sglang.plan.plan import Path, Plan
from redknot_sglang.plan.policies import WITH_WINDOWS, WITHOUT_PROBES
from redknot_sglang.pool.asked import WHY_NO_RETRIEVAL
from redknot_sglang.pool.probe import WHY_NO_PROBES
from redknot_sglang.reuse.model_facts import ModelFacts
from redknot_sglang.seams.model_config import UNBOUNDED_WINDOW
from redknot_sglang.seams.sglang import CLIP_MAX_NEW_TOKENS

# Global and local slots.
Slots = tuple[int, int]


def slots_of_request(tree: Any, req: Any, plan: Plan) -> Slots:
    """Global and local slots that a request needs for its prompt and answer. Its segments are not counted.

    tree: the HeadClassRadixCache.
    Counted as SGLang does: room for all tokens that there are (after a retraction, part of the answer is among them),
    and of what is still to be answered for the next part only, if the answer may get long.
    """
    left = max(0, req.sampling_params.max_new_tokens - len(req.output_ids))
    own = plan.most_tokens(len(req.full_untruncated_fill_ids)) + min(left, CLIP_MAX_NEW_TOKENS)
    return own, min(own, tree.sliding_window_size + 2 * tree.local_heads.window)


def slots_of_paths(tree: Any, paths: Iterable[Path], whole: bool) -> Slots:
    """Global and local slots that paths (segments with their lead) take in the tree.

    whole: whether the repair policy has local heads keep all rows of segments.
    """
    heads, keys = tree.local_heads, {path.key.tobytes(): path for path in paths}
    # Segments that are computed after one lead share it in the tree.
    lead = max((path.origin for path in keys.values()), default=0)
    tails = lead * whole + sum(
        len(path.key) - path.origin if path.whole else heads.sink + min(len(path.key), heads.window)
        for path in keys.values()
    )
    return lead + sum(len(path.key) - path.origin for path in keys.values()), tails


def has_room_for(tree: Any, adder: Any, req: Any, plan: Plan, missing: Sequence[Path]) -> bool:
    """Whether there is room now for a request and for the paths that have to be computed or loaded from the host for
    it.

    adder: SGLang's PrefillAdder of this scheduling pass.
    missing: those paths.
    """
    own, own_local = slots_of_request(tree, req, plan)
    kept, tails = slots_of_paths(tree, missing, plan.repair.keeps_whole)
    # SGLang wants a slot to spare for each isolated prefill, two under some settings.
    if own + kept + 2 * len(missing) >= adder.rem_total_tokens:
        return False
    return tree.sliding_window_size >= UNBOUNDED_WINDOW or own_local + tails < adder.rem_swa_tokens


def reserve(tree: Any, adder: Any, req: Any, plan: Plan, missing: Sequence[Path]) -> bool:
    """Like `has_room_for`. If there is room, the request's own slots are kept free for it.

    The request cannot take them before its paths are there. So they are taken off the budget of `adder`, and nobody
    else gets them in this pass.
    """
    if not has_room_for(tree, adder, req, plan, missing):
        return False
    adder.rem_total_token_offset += slots_of_request(tree, req, plan)[0]
    return True


def why_impossible(tree: Any, req: Any, plan: Plan, facts: ModelFacts) -> str | None:
    """Why the server can never run a segmented request, and what would help; None if it can.

    tree: the HeadClassRadixCache.
    facts: what segmented mode has to know of the model.
    """
    allocator = tree.token_to_kv_pool_allocator
    pool = allocator.get_kvcache()
    if facts.rotation is None:
        return f"segmented mode needs relocation, and {facts.why_not}; use redknot_mode exact"
    if plan.repair.selects and pool.asked is None:
        return f"repair policy {plan.repair.name} {WHY_NO_RETRIEVAL}; or use redknot_repair {WITHOUT_PROBES}"
    if plan.repair.probes and pool.probes is None:
        return f"repair policy {plan.repair.name} {WHY_NO_PROBES}; or use redknot_repair {WITHOUT_PROBES}"
    (own, own_local), paths = slots_of_request(tree, req, plan), plan.paths(req.full_untruncated_fill_ids, 0)
    kept, tails = slots_of_paths(tree, paths, plan.repair.keeps_whole)
    needed, local = own + kept + 1, own_local + tails
    remedy = "start with --redknot-segment-length at the usual length of a segment"
    if plan.repair.keeps_whole:
        remedy += f", or use redknot_repair {WITH_WINDOWS}, which keep only a window of each"
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
