# SPDX-License-Identifier: Apache-2.0
"""The oracle: dense attention in float32 (float64 where that is given), masked by position, one sequence at a time.

Slow and plain on purpose. Every path is tested against it, so it shares no code with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import DecodeBatch, ExtendBatch, HeadClass, ScatteredBatch


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_pos: Tensor,
    k_pos: Tensor,
    is_global: Tensor,
    window: int,
    sink: int,
    scale: float,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Attention of one sequence: N rows over L keys.

    q: [N, Hq, D].
    k: [L, Hkv, D].
    v: [L, Hkv, D].
    q_pos: int [N], the rows' positions.
    k_pos: int [L], the keys' positions.
    is_global: bool [Hkv], the KV heads' class.
    window: positions that a row of a local head sees up to and including its own.
    sink: first positions that a row of a local head sees besides.
    scale: logits are ``scale * q.k``.
    k_scale: k times this are the keys.
    v_scale: v times this are the values.
    Returns the output [N, Hq, D] and the natural log-sum-exp of the visible logits [N, Hq], both float32, or float64 if
    q is. A row that sees nothing gives 0 and -inf.
    """
    n_rows, n_q, dim = q.shape
    n_kv = k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    queries = q.to(wide).view(n_rows, n_kv, n_q // n_kv, dim)
    logits = torch.einsum("nhgd,lhd->nhgl", queries, k.to(wide) * k_scale) * scale
    causal = k_pos[None, :] <= q_pos[:, None]
    near = causal & ((k_pos[None, :] > q_pos[:, None] - window) | (k_pos[None, :] < sink))
    visible = torch.where(is_global[None, :, None], causal[:, None, :], near[:, None, :])
    logits = logits.masked_fill(~visible[:, :, None, :], float("-inf"))
    lse = logits.logsumexp(-1)
    weights = torch.exp(logits - lse.nan_to_num(neginf=0.0)[..., None])
    out = torch.einsum("nhgl,lhd->nhgd", weights, v.to(wide) * v_scale)
    return out.reshape(n_rows, n_q, dim), lse.reshape(n_rows, n_q)


def attend_paged(
    batch: ExtendBatch | DecodeBatch,
    head_class: HeadClass,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    sink: int,
    scale: float,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Attention of a whole batch in one class, from its pool.

    Only slots that some row of the request sees are read, so that any other slot may hold anything, NaN included.

    batch: the requests, N rows in all.
    head_class: the class.
    q: [N, G * n, D].
    k: [slots, n, D], keys of the class's pool.
    v: [slots, n, D], values of the class's pool.
    window, sink, scale, k_scale, v_scale: as in ``attend``.
    Returns what ``attend`` returns.
    """
    seq_lens = batch.seq_lens.tolist()
    prefixes = batch.prefix_lens.tolist() if isinstance(batch, ExtendBatch) else [n - 1 for n in seq_lens]
    outs: list[Tensor] = []
    lses, row = [], 0
    for request, prefix, n in zip(batch.req_pool_indices.tolist(), prefixes, seq_lens, strict=True):
        positions = torch.arange(n, device=q.device)
        q_pos = positions[prefix:]
        if isinstance(batch, ScatteredBatch):
            q_pos = torch.tensor(batch.positions_cpu[len(outs)], device=q.device)
        if head_class == "local":
            positions = positions[(positions < sink) | (positions > prefix - window)]
        slots = batch.req_to_token[request].long()[positions]
        if head_class == "local":
            slots = batch.full_to_local[slots]
        heads = torch.full((k.shape[1],), head_class == "global", device=q.device)
        rows = q[row : row + len(q_pos)]
        out, lse = attend(rows, k[slots], v[slots], q_pos, positions, heads, window, sink, scale, k_scale, v_scale)
        outs.append(out)
        lses.append(lse)
        row += len(q_pos)
    return torch.cat(outs), torch.cat(lses)
