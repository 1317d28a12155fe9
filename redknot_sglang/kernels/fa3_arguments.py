# SPDX-License-Identifier: Apache-2.0
"""What extend path "fa3" gives the library for a batch: in fresh tensors, or in buffers that a prefill graph reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import ClassSpec, ExtendBatch, HeadClass, ScatteredBatch
from .host_copy import pinned
from .page_list import ALL_PAGES, PageRule, sink_pages, window_pages, write_pages
from .sink_fold import SinksOfRows
from .triton_merge import processors_of

# Requests that a prefill graph has room for. A run of adjacent rows counts as one, so this is enough for the segments
# whose repaired rows fit into a graph.
MAX_RUNS = 64
# Query rows of one tile of the library at head_dim 128, and parts that a tile's keys are split into at most.
_TILE, _MAX_SPLITS = 128, 32


@dataclass(frozen=True)
class Pages:
    """The pages of a class.

    table: int32 [B, longest], the slots that each request reads.
    lens: int32 [B], how many entries of each request's row count.
    """

    table: Tensor
    lens: Tensor


@dataclass(frozen=True)
class Fa3Arguments:
    """The library's arguments for one extend.

    pages: the pages of each class.
    cu_rows: int32 [B + 1], first row of each request, then the number of rows.
    max_rows: rows of the request that has most.
    rows: rows of q.
    sinks: what the local class folds in afterwards, None if no row has a sink ahead of its window.
    splits: by number of KV heads, parts of a tile's keys in the global class; None leaves the choice to the library.
    """

    pages: dict[HeadClass, Pages]
    cu_rows: Tensor
    max_rows: int
    rows: int
    sinks: SinksOfRows | None
    splits: dict[int, int] | None = None

    @property
    def recorded(self) -> bool:
        """Whether a graph reads these arguments; q may then have more rows than the batch."""
        return self.splits is not None

    def num_splits(self, head_class: HeadClass, heads: int) -> int:
        """The library's argument for ``heads`` KV heads; 0 leaves the choice to it. Local rows have too few keys to be
        split.
        """
        if self.splits is None:
            return 0
        return self.splits[heads] if head_class == "global" else 1

    @classmethod
    def of(cls, batch: ExtendBatch, spec: ClassSpec) -> Fa3Arguments:
        """In fresh tensors, made on the device; nothing waits."""
        pages: dict[HeadClass, Pages] = {}
        if spec.global_widths:
            pages["global"] = _pages(ALL_PAGES, batch, batch.seq_lens)
        if spec.local_widths:
            start = (batch.prefix_lens - (spec.window - 1)).clamp_(min=0)
            pages["local"] = _pages(window_pages(spec), batch, batch.seq_lens - start)
        rows = (batch.seq_lens - batch.prefix_lens).cumsum(0, dtype=torch.int32)
        return cls(pages, F.pad(rows, (1, 0)), max(batch.qo_lens), batch.qo_indptr[-1], SinksOfRows.of(batch, spec))


class RecordedFa3Arguments:
    """Persistent buffers of prefill graphs: what a graph has recorded reads them, `fill` fills them for a batch.

    One graph serves any batch of up to MAX_RUNS requests and as many rows as it has.

    spec: the shape.
    max_rows: rows of the largest graph.
    max_context: tokens of the longest request.
    """

    def __init__(self, spec: ClassSpec, max_rows: int, max_context: int) -> None:
        self._spec, self._max_rows, self._max_context = spec, max_rows, max_context
        device = spec.device
        widths: dict[HeadClass, int] = {}
        if spec.global_widths:
            widths["global"] = max_context
        if spec.local_widths:
            widths["local"] = min(max_context, spec.window - 1 + max_rows)
        self._rules: dict[HeadClass, PageRule] = {"global": ALL_PAGES, "local": window_pages(spec)}
        self._tables = {c: torch.zeros((MAX_RUNS, n), dtype=torch.int32, device=device) for c, n in widths.items()}
        self._starts = {c: torch.arange(MAX_RUNS, device=device) * n for c, n in widths.items()}
        self._sinks = torch.zeros((MAX_RUNS, max(spec.sink, 1)), dtype=torch.int32, device=device)
        self._sink_starts = torch.arange(MAX_RUNS, device=device) * spec.sink
        # Rows before each run, keys of each run by class, request and position of each row: one copy fills them all.
        self._ints = torch.zeros(MAX_RUNS + 1 + 2 * MAX_RUNS + 2 * max_rows, dtype=torch.int32, device=device)

    def fits(self, batch: ExtendBatch, rows: int) -> bool:
        """Whether a graph of ``rows`` rows can serve this batch."""
        return (
            rows <= self._max_rows
            and not isinstance(batch, ScatteredBatch)
            and len(batch.seq_lens_cpu) <= MAX_RUNS
            and batch.qo_indptr[-1] <= rows
            and max(batch.seq_lens_cpu) <= self._max_context
        )

    def fill(self, batch: ExtendBatch, rows: int) -> Fa3Arguments:
        """Fill the buffers for a batch that fits, run by a graph of ``rows`` rows. The graph's rows behind the batch's
        belong to no request, and the library leaves them unwritten.
        """
        spec = self._spec
        self._ints.copy_(self._host_ints(batch), non_blocking=True)
        cu_rows, lens_global, lens_local, requests, positions = self._ints.split(
            [MAX_RUNS + 1, MAX_RUNS, MAX_RUNS, self._max_rows, self._max_rows]
        )
        lens = {"global": lens_global, "local": lens_local}
        tensors = batch.req_to_token, batch.req_pool_indices, batch.full_to_local, batch.prefix_lens, batch.seq_lens
        bs = len(batch.seq_lens_cpu)
        for head_class, table in self._tables.items():
            write_pages(self._rules[head_class], table.view(-1), self._starts[head_class][:bs], *tensors)
        sinks = None
        if spec.local_widths and spec.sink:
            write_pages(sink_pages(spec), self._sinks.view(-1), self._sink_starts[:bs], *tensors)
            sinks = SinksOfRows(self._sinks, requests[:rows], positions[:rows])
        pages = {head_class: Pages(table, lens[head_class]) for head_class, table in self._tables.items()}
        splits = {n: splits_for(rows, n, spec) for n in spec.global_widths}
        return Fa3Arguments(pages, cu_rows, rows, rows, sinks, splits)

    def _host_ints(self, batch: ExtendBatch) -> Tensor:
        runs = len(batch.seq_lens_cpu)
        prefix, seq = np.array(batch.prefix_lens_cpu), np.array(batch.seq_lens_cpu)
        lens = seq - prefix
        ends = lens.cumsum()
        ints = np.zeros(len(self._ints), dtype=np.int32)
        ints[1 : runs + 1], ints[runs + 1 : MAX_RUNS + 1] = ends, ends[-1]
        at = MAX_RUNS + 1
        ints[at : at + runs] = seq
        ints[at + MAX_RUNS : at + MAX_RUNS + runs] = seq - np.maximum(prefix - (self._spec.window - 1), 0)
        at += 2 * MAX_RUNS
        ints[at : at + self._max_rows] = -1
        ints[at : at + ends[-1]] = np.repeat(np.arange(runs), lens)
        at += self._max_rows
        ints[at : at + ends[-1]] = np.arange(ends[-1]) + np.repeat(prefix - (ends - lens), lens)
        host = torch.from_numpy(ints)
        # A fresh buffer each time: the copy of the batch before may still be queued.
        return pinned(host, self._ints.device)


def splits_for(rows: int, heads: int, spec: ClassSpec) -> int:
    """Parts to cut each tile's keys into, so that there are a few more than processors.

    Left to itself, the library would judge by the MAX_RUNS requests that a graph's call is laid out for, and cut
    nothing. Where tiles occupy half of the processors already, nothing is cut: to put parts together again takes the longer the more
    rows there are, with 1,088 rows twice as long as to compute them. Measured by `eval/bench_splits.py`.

    rows: rows of the graph.
    heads: KV heads.
    spec: the shape.
    """
    tiles, processors = max(1, rows * spec.group * heads // _TILE), processors_of(spec.device)
    if 2 * tiles > processors:
        return 1
    return min(_MAX_SPLITS, round(4 * processors / (3 * tiles)))


def _pages(rule: PageRule, batch: ExtendBatch, lens: Tensor) -> Pages:
    bs = len(batch.seq_lens_cpu)
    longest = max(map(rule.count, batch.prefix_lens_cpu, batch.seq_lens_cpu))
    # Zeros: the library may look at the entries behind a shorter list, and slot 0 is always there.
    table = torch.zeros((bs, longest), dtype=torch.int32, device=lens.device)
    starts = torch.arange(bs, device=lens.device) * longest
    write_pages(
        rule,
        table.view(-1),
        starts,
        batch.req_to_token,
        batch.req_pool_indices,
        batch.full_to_local,
        batch.prefix_lens,
        batch.seq_lens,
    )
    return Pages(table, lens)
