# SPDX-License-Identifier: Apache-2.0
"""Causal attention of a chunk of rows, over the whole context or over sink and window, and how its weights are spread.

In all functions q is [Q, n, D], the last n rows of a sequence, and k and v are [H, T, D], all its rows so far. Q is a
multiple of H: KV head h serves the query heads from h * Q / H on. Row i stands at position T - n + i and sees positions up
to its own; `scale` is the factor of the logits, `window` and `sink` are tokens.

On a GPU no n x T matrix is held, since a fused kernel is used. Keys and values are not repeated for the query heads that
share them, except those near a block of rows in `windowed`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

# Elements of a float32 matrix of scores that is held at once: 256 MiB.
MAX_SCORES = 1 << 26
KEY_BLOCK = 8192
WINDOW_BLOCK = 256
# Not cuDNN's: the expanded views below have strides of 0, which the others are known to take.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def grouped(q: Tensor, kv_heads: int) -> Tensor:
    """q [Q, n, D] as [H, Q / H, n, D]."""
    return q.unflatten(0, (kv_heads, -1))


def full(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention over the whole context, [Q, n, D]."""
    # The end of the rows is the end of the keys. A fused kernel knows this bias and makes no mask of it.
    bias = causal_lower_right(q.shape[1], k.shape[1])
    queries = grouped(q, len(k))
    keys, values = (x[:, None].expand(-1, queries.shape[1], -1, -1) for x in (k, v))
    with sdpa_kernel(KERNELS):
        out: Tensor = scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scale)
    return out.flatten(0, 1)


def windowed(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, sink: int) -> Tensor:
    """Attention of local heads, [Q, n, D]: a row at p sees the positions in (p - window, p] and below `sink`.

    Rows are computed in blocks, so that the keys of a block are not many more than those of one row; all whole blocks in
    one call, since a call for each would cost more than its work.
    """
    n, begin = q.shape[1], k.shape[1] - q.shape[1]
    block = max(WINDOW_BLOCK, window)
    whole = n // block * block
    queries = grouped(q, len(k))
    parts = []
    for start, stop, size in ((0, whole, block), (whole, n, n - whole)):
        if start < stop:
            firsts = torch.arange(begin + start, begin + stop, size, device=q.device)
            parts.append(_blocks(queries[:, :, start:stop], k, v, scale, firsts, window, sink))
    return torch.cat(parts, 2).flatten(0, 1)


def _blocks(q: Tensor, k: Tensor, v: Tensor, scale: float, firsts: Tensor, window: int, sink: int) -> Tensor:
    """[H, G, R, D] of q [H, G, R, D], whose rows are blocks of equal length that begin at the positions `firsts`."""
    size = q.shape[2] // len(firsts)
    ends = k.shape[1]
    rows = firsts[:, None] + torch.arange(size, device=q.device)
    # From the first row's window to the last row; positions below 0 are masked. Then the sink, as far as it lies before that.
    near = firsts[:, None] + torch.arange(1 - min(window, ends), size, device=q.device)
    sinks = torch.arange(min(sink, ends), device=q.device).expand(len(firsts), -1)
    at, row = torch.cat([sinks, near], 1)[:, None], rows[:, :, None]
    seen = (at >= 0) & (at <= row) & ((at > row - window) | (at < sink))
    seen[..., : sinks.shape[1]] &= (sinks < near[:, :1])[:, None]
    # Finite: a kernel that goes over keys in blocks makes NaN of a row whose first block is all -inf.
    mask = torch.zeros(seen.shape, dtype=q.dtype, device=q.device)
    mask.masked_fill_(~seen, torch.finfo(q.dtype).min / 2)
    # With a mask and strides of 0, torch 2.11's memory-efficient kernel gets the last of 64 i + 1 rows wrong.
    heads = q.flatten(0, 1).unflatten(1, (len(firsts), size)).transpose(0, 1)
    near_k, near_v = (
        x[:, at[:, 0].clamp(min=0)].transpose(0, 1).repeat_interleave(q.shape[1], 1).contiguous() for x in (k, v)
    )
    with sdpa_kernel(KERNELS):
        out = scaled_dot_product_attention(heads, near_k, near_v, attn_mask=mask[:, None], scale=scale)
    return out.transpose(0, 1).flatten(1, 2).unflatten(0, q.shape[:2])


def rows_attend(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, scale: float, windows: Sequence[int], sink: int
) -> Tensor:
    """Attention under several windows and, last, over the whole context, in float32.

    q: [Q, R, D], queries of some rows.
    rows: [R], positions of these rows, ascending and less than T.
    windows: ascending.
    Returns [windows + 1, Q, R, D]. A wider window adds keys to a narrower one, so each key is looked at once; the partial
    softmaxes are merged by their largest scores.
    """
    queries, v = grouped(q, len(k)), v.float()
    at = torch.arange(k.shape[1], device=q.device)
    step = max(1, MAX_SCORES // (len(q) * k.shape[1]))
    parts = []
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        first, stop = int(some[0]), int(some[-1]) + 1
        scores = _scores(queries[:, :, start : start + step], k[:, :stop], scale)
        scores.masked_fill_(at[:stop] > some[:, None], -torch.inf)
        sinks = min(sink, stop)
        state = _add_keys(None, scores[..., :sinks], v[:, :sinks])
        found, near = [], 0
        for far in (*windows, stop):
            # Distances from `near` to `far` - 1, a band that moves with the row; no key twice, sinks left out.
            low = max(sinks, first - far + 1)
            high = max(low, stop - near)
            distance = some[:, None] - at[low:high]
            band = scores[..., low:high].masked_fill((distance < near) | (distance >= far), -torch.inf)
            state = _add_keys(state, band, v[:, low:high])
            found.append((state[0] / state[1]).flatten(0, 1))
            near = far
        parts.append(torch.stack(found))
    return torch.cat(parts, 2)


def mass_outside(q: Tensor, k: Tensor, rows: Tensor, scale: float, windows: Sequence[int], sink: int) -> Tensor:
    """Share of each row's attention weights that lies outside sink and window, float64 [windows, Q, R].

    q: [Q, R, D], queries of some rows.
    rows: [R], positions of these rows, ascending and less than T.
    windows: for each of which the share is computed.
    The softmax runs over keys in blocks and is rescaled when a larger score comes up (Milakov and Gimelshein, arXiv
    1805.02867).
    """
    queries = grouped(q, len(k))
    shape = queries.shape[:3]
    total = torch.zeros(shape, dtype=torch.float64, device=q.device)
    outside = torch.zeros(len(windows), *shape, dtype=torch.float64, device=q.device)
    peak = torch.full(shape, -torch.inf, device=q.device)
    ends = rows[None, :] - torch.tensor(windows, device=q.device)[:, None]  # last position outside each window
    block = max(1, min(KEY_BLOCK, MAX_SCORES // (len(q) * len(rows))))
    first, stop = int(rows[0]), int(rows[-1]) + 1
    for begin in range(0, stop, block):
        at = torch.arange(begin, min(stop, begin + block), device=q.device)
        scores = _scores(queries, k[:, begin : begin + len(at)], scale)
        scores.masked_fill_(at > rows[:, None], -torch.inf)
        highest = torch.maximum(peak, scores.amax(-1))
        # A row before the block has seen keys, so `highest` is finite.
        shrink = (peak - highest).exp().double()
        weights = (scores - highest[..., None]).exp_()
        peak = highest
        total = total * shrink + weights.sum(-1, dtype=torch.float64)
        weights[..., : max(0, sink - begin)] = 0
        outside *= shrink
        if first - max(windows) >= begin + len(at) - 1:  # outside all windows of all rows
            outside += weights.sum(-1, dtype=torch.float64)
        else:
            summed = weights.cumsum(-1)
            last = (ends - begin).clamp(max=len(at) - 1)
            for number, place in enumerate(last):
                found = summed.gather(-1, place.clamp(min=0).expand(*shape)[..., None])[..., 0]
                outside[number] += torch.where(place >= 0, found, 0.0)
    return (outside / total).flatten(1, 2)


def _scores(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """float32 [H, G, R, K] of queries [H, G, R, D] and keys [H, K, D]."""
    # One product per KV head over the rows of all its query heads: broadcasting would repeat the keys.
    flat = queries.float().flatten(1, 2) @ keys.float().transpose(1, 2)
    return flat.mul_(scale).unflatten(1, queries.shape[1:3])


State = tuple[Tensor, Tensor, Tensor]
"""Weighted sum of values [H, G, R, D], sum of weights and largest score, both [H, G, R, 1]."""


def _add_keys(state: State | None, scores: Tensor, v: Tensor) -> State:
    """A softmax with more keys: scores [H, G, R, K], -inf where a row does not see a key, and values [H, K, D]."""
    shape = scores.shape[:3]
    if state is None:
        state = (v.new_zeros(*shape, v.shape[2]), v.new_zeros(*shape, 1), v.new_full((*shape, 1), -torch.inf))
    if not scores.shape[3]:
        return state
    total, weight, peak = state
    # Finite where a row sees nothing yet, since -inf less -inf is no number.
    highest = torch.maximum(peak, scores.amax(-1, keepdim=True)).clamp(min=torch.finfo(torch.float32).min)
    shrink, new = (peak - highest).exp(), (scores - highest).exp_()
    summed = (new.flatten(1, 2) @ v).unflatten(1, shape[1:])
    return total * shrink + summed, weight * shrink + new.sum(-1, keepdim=True), highest
