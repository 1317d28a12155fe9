# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""Page lists: which slots a request's rows read, in the order of their positions.

A list is written straight from ``req_to_token`` where it is used, by one Triton kernel on a GPU (nothing
waits, and nothing but the lengths has to be known on the host) and by torch elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batch import ClassSpec, offsets, window_start

_BLOCK = 1024
# Programs per request. Enough to spread one long list over the GPU, few enough that idle ones cost nothing.
_PROGRAMS = 16


@dataclass(frozen=True)
class PageRule:
    """Which positions of a request with rows [prefix, n) are listed, and in which class's slots.

    local: whether local slots are listed; if not, global ones.
    window: W > 0 lists only positions >= max(0, prefix - W + 1), the window of the first row; 0 lists all.
    sink: so many first positions are listed as well, ahead of that window.
    limit: at most so many entries; 0 for no limit.
    """

    local: bool
    window: int = 0
    sink: int = 0
    limit: int = 0

    def skipped(self, prefix: int) -> int:
        """Positions left out between the sinks and the window: entry i >= sink lists position i + skipped."""
        return max(0, window_start(prefix, self.window) - self.sink) if self.window else 0

    def count(self, prefix: int, n: int) -> int:
        """Entries of the list of a request with rows [prefix, n)."""
        entries = n - self.skipped(prefix)
        return min(entries, self.limit) if self.limit else entries


ALL_PAGES = PageRule(local=False)


def window_pages(spec: ClassSpec) -> PageRule:
    """What the windows of local heads reach, for kernels that mask by window."""
    return PageRule(local=True, window=spec.window)


def near_pages(spec: ClassSpec) -> PageRule:
    """All that local heads see: for one row exactly its visible positions, so that no mask is needed."""
    return PageRule(local=True, window=spec.window, sink=spec.sink)


def sink_pages(spec: ClassSpec) -> PageRule:
    """The first ``sink`` positions, in local slots."""
    return PageRule(local=True, limit=spec.sink)


def list_starts(rule: PageRule, prefixes: Sequence[int], lens: Sequence[int]) -> Tensor:
    """Where the lists of a batch begin if they follow each other.

    rule: what is listed.
    prefixes: position of each request's first row.
    lens: tokens of each request.
    Returns int32 [B + 1] on the host, with the total as last entry.
    """
    return torch.tensor(offsets(list(map(rule.count, prefixes, lens))), dtype=torch.int32)


def write_pages(
    rule: PageRule,
    out: Tensor,
    starts: Tensor,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    full_to_local: Tensor,
    prefix_lens: Tensor | None,
    seq_lens: Tensor,
) -> None:
    """Write the list of request i to ``out[starts[i]:]``; nothing else of ``out`` is touched.

    rule: what is listed.
    out: int32, one-dimensional and contiguous, long enough for every list.
    starts: int32 or int64, at least [B]; entries behind the requests are not read.
    req_to_token, req_pool_indices, full_to_local, seq_lens: as in ExtendBatch.
    prefix_lens: as in ExtendBatch; None for decoding, where the one row is at position seq_lens - 1.
    """
    if not req_to_token.is_cuda:
        _write_by_torch(rule, out, starts, req_to_token, req_pool_indices, full_to_local, prefix_lens, seq_lens)
        return
    launch_write_pages(rule, out, starts, req_to_token, req_pool_indices, full_to_local, prefix_lens, seq_lens)


def _write_by_torch(
    rule: PageRule,
    out: Tensor,
    starts: Tensor,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    full_to_local: Tensor,
    prefix_lens: Tensor | None,
    seq_lens: Tensor,
) -> None:
    lens: Sequence[int] = seq_lens.tolist()
    prefixes = [n - 1 for n in lens] if prefix_lens is None else prefix_lens.tolist()
    requests, firsts = req_pool_indices.tolist(), starts.tolist()
    for request, first, prefix, n in zip(requests, firsts[: len(requests)], prefixes, lens, strict=True):
        entry = torch.arange(rule.count(prefix, n))
        position = entry + rule.skipped(prefix) * (entry >= rule.sink)
        slots = req_to_token[request].index_select(0, position)
        if rule.local:
            slots = full_to_local.index_select(0, slots.long())
        out[first : first + len(entry)] = slots


def launch_write_pages(
    rule: PageRule,
    out: Tensor,
    starts: Tensor,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    full_to_local: Tensor,
    prefix_lens: Tensor | None,
    seq_lens: Tensor,
) -> None:
    """``write_pages`` by the Triton kernel; same arguments, on the device."""
    _write_pages_kernel[(req_pool_indices.shape[0], _PROGRAMS)](
        out,
        starts,
        req_to_token,
        req_to_token.stride(0),
        req_pool_indices,
        full_to_local,
        seq_lens if prefix_lens is None else prefix_lens,
        seq_lens,
        rule.window,
        rule.sink,
        rule.limit,
        LOCAL=rule.local,
        DECODE=prefix_lens is None,
        BLOCK=_BLOCK,
    )


@triton.jit(do_not_specialize=["window", "sink", "limit"])
def _write_pages_kernel(
    out,
    starts,
    req_to_token,
    request_stride,
    req_pool_indices,
    full_to_local,
    prefix_lens,
    seq_lens,
    window,
    sink,
    limit,
    LOCAL: tl.constexpr,
    DECODE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0)
    n = tl.load(seq_lens + i).to(tl.int32)
    if DECODE:
        prefix = n - 1
    else:
        prefix = tl.load(prefix_lens + i).to(tl.int32)
    skipped = 0
    if window > 0:
        skipped = tl.maximum(0, tl.maximum(0, prefix - window + 1) - sink)
    count = n - skipped
    if limit > 0:
        count = tl.minimum(count, limit)
    pages = req_to_token + tl.load(req_pool_indices + i).to(tl.int64) * request_stride
    target = out + tl.load(starts + i).to(tl.int64)
    for first in range(tl.program_id(1) * BLOCK, count, tl.num_programs(1) * BLOCK):
        entry = first + tl.arange(0, BLOCK)
        listed = entry < count
        position = tl.where(entry >= sink, entry + skipped, entry)
        slot = tl.load(pages + position, mask=listed, other=0)
        if LOCAL:
            slot = tl.load(full_to_local + slot, mask=listed, other=0).to(tl.int32)
        tl.store(target + entry, slot, mask=listed)
