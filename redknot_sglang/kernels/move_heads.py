# SPDX-License-Identifier: Apache-2.0
"""A layer's heads parted by class, and a class's output put where its heads stand: one kernel each on a GPU."""

from __future__ import annotations

from torch import Tensor

from .class_heads import Split, Target
from .stored import movable, stored
from .triton_heads import launch_put, launch_split


def put_heads(part: Tensor, target: Target) -> None:
    """Write a class's output to its heads of the layer's output.

    part: [N, G * n, D], contiguous.
    target: the heads and the layer's output.
    """
    if part.is_cuda:
        launch_put(part, target.out, target.heads)
    else:
        target.out.index_copy_(1, target.heads.query, part)


def split_heads(
    split: Split,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    slots: Tensor,
    local_slots: Tensor,
    global_kv: tuple[Tensor, Tensor],
    local_kv: tuple[Tensor, Tensor],
    scales: tuple[float, float] = (1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Store K and V of each class at its slots, and return each class's queries.

    split: the layer's heads by class.
    q: [N, Hq, D], rows of any stride.
    k: [N, Hkv, D], rows of any stride; None to store nothing.
    v: as k.
    slots: int64 [N], the global slot of each row.
    local_slots: int64 [N], the local slot of each row.
    global_kv: K and V of the global class, [slots, n, D] each, contiguous; what is stored is rounded to their dtype.
    local_kv: the same of the local class.
    scales: of keys and of values; what is stored times this are the rows.
    Returns q of the global and of the local class, [N, G * n, D] each; a view of q where a class's heads are adjacent.
    """
    if q.is_cuda:
        return launch_split(split, q, k, v, slots, local_slots, global_kv, local_kv, scales)
    parts = []
    for heads, at, pools in (
        (split.global_heads, slots, global_kv),
        (split.local_heads, local_slots, local_kv),
    ):
        if heads.numbers and k is not None and v is not None:
            for rows, pool, scale in zip((k, v), pools, scales, strict=True):
                kept = stored(rows.index_select(1, heads.kv), pool.dtype, scale)
                movable(pool)[at] = movable(kept)
        parts.append(q[:, heads.queries] if heads.adjacent else q.index_select(1, heads.query))
    return parts[0], parts[1]
