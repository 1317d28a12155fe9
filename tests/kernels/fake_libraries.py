# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for FlashInfer and FlashAttention-3 on the CPU: the semantics that our paths rely on, in plain
torch.

They check what the libraries check (shapes, host and device tensors, persistent buffers) and know nothing of
the head classes, so a path that plans wrongly over them gives wrong results here already.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def _rows(q: Tensor, k: Tensor, v: Tensor, scale: float, window_left: int) -> tuple[Tensor, Tensor]:
    """One request: causal aligned at the last row, position window, natural LSE; q [N, Hq, D], k, v [L, H,
    D].
    """
    n_rows, n_keys, heads = len(q), len(k), k.shape[1]
    behind = torch.arange(n_keys - n_rows, n_keys)[:, None] - torch.arange(n_keys)[None, :]
    seen = behind >= 0 if window_left < 0 else (behind >= 0) & (behind <= window_left)
    queries = q.reshape(n_rows, heads, -1, q.shape[-1]).float()
    logits = torch.einsum("nhgd,lhd->nhgl", queries, k.float()) * scale
    logits = logits.masked_fill(~seen[:, None, None, :], -torch.inf)
    out = torch.einsum("nhgl,lhd->nhgd", logits.softmax(-1), v.float())
    return out.reshape(q.shape).to(q.dtype), logits.logsumexp(-1).reshape(n_rows, -1)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    cache_seqlens: Tensor,
    page_table: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    return_softmax_lse: bool,
    out: Tensor | None,
    num_splits: int,
) -> Any:
    """FlashAttention-3 over pages of size 1."""
    assert k_cache.dim() == 4 and k_cache.shape[1] == 1 and causal and window_size[1] in (-1, 0)
    for lengths in (cache_seqlens, page_table, cu_seqlens_q):
        assert lengths.dtype == torch.int32 and lengths.is_contiguous()
    starts = cu_seqlens_q.tolist()
    assert num_splits >= 0 and max_seqlen_q >= max(b - a for a, b in zip(starts, starts[1:], strict=False))
    outs, lses = [], []
    to = torch.empty_like(q) if out is None else out
    assert to.shape == q.shape and to.stride(-1) == 1
    for pages, n, a, b in zip(page_table, cache_seqlens.tolist(), starts, starts[1:], strict=False):
        if a == b:
            continue
        keys, values = k_cache[pages[:n].long(), 0], v_cache[pages[:n].long(), 0]
        rows, lse = _rows(q[a:b], keys, values, softmax_scale, window_size[0])
        outs.append(rows)
        lses.append(lse)
    lse_of_all = torch.full((q.shape[1], len(q)), torch.nan)
    to[: starts[-1]], lse_of_all[:, : starts[-1]] = torch.cat(outs), torch.cat(lses).T
    return (to, lse_of_all) if return_softmax_lse else to


class Event:
    """torch.cuda.Event of a device that runs nothing until the host waits for it."""

    def record(self) -> None:
        self._before = set(_queued)

    def synchronize(self) -> None:
        _queued.difference_update(self._before)


# Wrappers whose pinned integers the device has yet to fetch.
_queued: set[_Wrapper] = set()


class _Wrapper:
    """What both of FlashInfer's paged wrappers share."""

    def __init__(
        self,
        workspace: Tensor,
        kv_layout: str,
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: Tensor | None = None,
        paged_kv_indices_buffer: Tensor | None = None,
        paged_kv_last_page_len_buffer: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        assert kv_layout == "NHD" and backend == "fa2" and workspace.dtype == torch.uint8
        self.graph = use_cuda_graph
        self.indptr, self.indices = paged_kv_indptr_buffer, paged_kv_indices_buffer
        self.ones = paged_kv_last_page_len_buffer
        self.plans = 0

    def reset_workspace_buffer(self, space: Tensor, ints: Tensor) -> None:
        assert ints.dtype == torch.uint8 and len(ints) >= 4096

    def _take(self, indptr: Tensor, indices: Tensor, ones: Tensor, shape: tuple[int, ...], options: Any) -> None:
        heads, kv_heads, dim, page_size = shape
        assert page_size == 1 and heads % kv_heads == 0 and indptr.dtype == indices.dtype == torch.int32
        assert ones.tolist() == [1] * (len(indptr) - 1)
        assert options["sm_scale"] == 1.0
        self.dtypes = options["q_data_type"], options["kv_data_type"]
        assert self not in _queued, "this plan overwrites the schedule of a queued batch"
        _queued.add(self)
        self.shape = (heads, kv_heads, dim)
        self.plans += 1

    def run(
        self,
        q: Tensor,
        pages: tuple[Tensor, Tensor],
        *,
        q_scale: float,
        v_scale: float,
        out: Tensor,
        return_lse: bool = False,
    ) -> Any:
        k, v = pages
        assert self.indptr is not None and self.indices is not None
        assert (q.dtype, k.dtype) == self.dtypes and v.dtype == k.dtype
        assert (q.shape[1], k.shape[2], q.shape[2]) == self.shape and k.shape[1] == 1 and out.is_contiguous()
        kv_starts, starts = self.indptr.tolist(), self.qo_starts()
        assert q.shape[0] == starts[-1]
        lse = torch.empty(q.shape[:2])
        for i, (a, b) in enumerate(zip(starts, starts[1:], strict=False)):
            own = self.indices[kv_starts[i] : kv_starts[i + 1]].long()
            out[a:b], lse[a:b] = _rows(q[a:b], k[own, 0], v[own, 0], q_scale, self.window_left)
        out *= v_scale
        return (out, lse / math.log(2.0)) if return_lse else out

    window_left = -1

    def qo_starts(self) -> list[int]:
        raise AssertionError("overridden")


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    """Extend."""

    def plan(
        self, qo_indptr: Tensor, indptr: Tensor, indices: Tensor, ones: Tensor, *shape: int, **options: Any
    ) -> None:
        assert options["causal"]
        self._take(indptr, indices, ones, shape, options)
        self.window_left, self.qo = options["window_left"], qo_indptr.tolist()
        self.indptr, self.indices = indptr, indices

    def qo_starts(self) -> list[int]:
        return list(self.qo)


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    """Decode; in graph mode only the buffers given at construction are read."""

    def plan(self, indptr: Tensor, indices: Tensor, ones: Tensor, *shape: int, **options: Any) -> None:
        self._take(indptr, indices, ones, shape, options)
        if not self.graph:
            self.indptr, self.indices = indptr, indices

    def qo_starts(self) -> list[int]:
        assert self.indptr is not None
        return list(range(len(self.indptr)))


def fast_decode_plan(
    wrapper: BatchDecodeWithPagedKVCacheWrapper,
    indptr: Tensor,
    indices: Tensor,
    ones: Tensor,
    *shape: int,
    global_override_indptr_cpu: Tensor,
    **options: Any,
) -> None:
    """Schedules only; needs a full plan before."""
    assert wrapper.plans > 0, "the kernels are not loaded"
    assert torch.equal(indptr, global_override_indptr_cpu)
    wrapper._take(indptr, indices, ones, shape, options)
    if not wrapper.graph:
        wrapper.indptr, wrapper.indices = indptr, indices
