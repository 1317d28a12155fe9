# SPDX-License-Identifier: Apache-2.0
"""What extend path "triton" plans for prefill graphs: work, positions and page lists in buffers that a graph reads."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from .batch import ClassSpec, ExtendBatch, HeadClass, ScatteredBatch
from .device_work import DeviceWork
from .extend_work import MAX_PARTS, MOST_WAVES, Item, Merge, Work
from .host_copy import pinned, to_device
from .page_list import near_pages, write_pages
from .paths import MAX_RUNS

# Local pages of all requests of a graph together, in multiples of the longest request's tokens, unless the windows of as many
# requests as there may be take more.
_CONTEXTS = 4
# An item of no rows and no keys, that is no part of anything.
_NOTHING = (0, 0, 0, 0, 0, 0, -1)


class RecordedWork:
    """Persistent buffers of prefill graphs: what a graph has recorded reads them, `fill` fills them for a batch.

    Graphs are laid out for the most items and parts that a batch of their rows can have; those that a batch lacks end
    at once.

    spec: the shape.
    tile_rows: query rows of a tile.
    processors: programs that the work is divided for.
    max_rows: rows of the largest graph.
    max_context: tokens of the longest request.
    max_runs: requests that a graph has room for.
    """

    def __init__(
        self,
        spec: ClassSpec,
        tile_rows: int,
        processors: int,
        max_rows: int,
        max_context: int,
        max_runs: int = MAX_RUNS,
    ) -> None:
        self._spec, self._tile_rows, self._processors = spec, tile_rows, processors
        self._max_rows, self._max_context, self._max_runs = max_rows, max_context, max_runs
        self._keys: list[tuple[HeadClass, int]] = [("global", n) for n in spec.global_widths]
        self._keys += [("local", n) for n in spec.local_widths[:1]]
        self._sizes = [max_rows, max_runs]
        for head_class, heads in self._keys:
            self._sizes += [7 * self._items(head_class, heads, max_rows), 4 * self._tiles(max_rows)]
        device = spec.device
        self._ints = torch.zeros(sum(self._sizes), dtype=torch.int32, device=device)
        before = min(max_context, spec.window - 1 + spec.sink)
        self._most_near = max(_CONTEXTS * max_context, max_runs * before + max_rows) if spec.local_widths else 0
        self._near = torch.zeros(self._most_near, dtype=torch.int32, device=device)
        self._starts = torch.zeros((2, max_runs), dtype=torch.int64, device=device)

    def fits(self, batch: ExtendBatch, rows: int) -> bool:
        """Whether a graph of ``rows`` rows can serve this batch."""
        return (
            rows <= self._max_rows
            and len(batch.seq_lens_cpu) <= self._max_runs
            and batch.qo_indptr[-1] <= rows
            and max(batch.seq_lens_cpu) <= self._max_context
            and sum(self._near_lens(batch)) <= self._most_near
        )

    def fill(
        self, batch: ExtendBatch, rows: int, work: dict[tuple[HeadClass, int], Work]
    ) -> tuple[dict[tuple[HeadClass, int], DeviceWork], dict[HeadClass, tuple[Tensor, Tensor]]]:
        """Fill the buffers for a batch that fits.

        batch: the requests.
        rows: rows of the graph that will run.
        work: the batch's, by class and number of KV heads.
        Returns the work in the buffers, and each class's page lists with the place where each request's list begins.
        """
        self._ints.copy_(self._host_ints(batch, work), non_blocking=True)
        positions, prefix_lens, *lists = self._ints.split(self._sizes)
        bs, stride = len(batch.seq_lens_cpu), batch.req_to_token.stride(0)
        self._starts[0, :bs] = batch.req_pool_indices.to(torch.int64) * stride
        pages = {"global": (batch.req_to_token, self._starts[0])}
        if self._spec.local_widths:
            lens = np.array(self._near_lens(batch), dtype=np.int64)
            self._starts[1, :bs] = to_device(lens.cumsum() - lens, self._starts.device, torch.int64)
            write_pages(
                near_pages(self._spec),
                self._near,
                self._starts[1, :bs],
                batch.req_to_token,
                batch.req_pool_indices,
                batch.full_to_local,
                batch.prefix_lens,
                batch.seq_lens,
            )
            pages["local"] = (self._near, self._starts[1])
        filled = {}
        for (head_class, heads), items, merges in zip(self._keys, lists[::2], lists[1::2], strict=True):
            count = self._items(head_class, heads, rows)
            one = DeviceWork(
                items.view(-1, 7)[:count],
                merges.view(-1, 4)[: self._tiles(rows)],
                count if head_class == "global" else 0,
                MAX_PARTS,
                positions,
                prefix_lens,
                recorded=True,
            )
            widths = self._spec.local_widths if head_class == "local" else (heads,)
            filled.update({(head_class, width): one for width in widths})
        return filled, pages  # type: ignore[return-value]

    def _host_ints(self, batch: ExtendBatch, work: dict[tuple[HeadClass, int], Work]) -> Tensor:
        parts: list[np.ndarray[tuple[int, ...], np.dtype[np.int32]]] = []
        ranges: Iterable[Iterable[int]] = (
            batch.positions_cpu
            if isinstance(batch, ScatteredBatch)
            else map(range, batch.prefix_lens_cpu, batch.seq_lens_cpu)
        )
        parts.append(np.array([at for own in ranges for at in own], dtype=np.int32))
        parts.append(np.array(batch.prefix_lens_cpu, dtype=np.int32))
        for key in self._keys:
            items, merges = work[key].items, work[key].merges
            parts += [np.array(rows, dtype=np.int32).reshape(-1) for rows in (items, merges)]
        host = np.zeros(len(self._ints), dtype=np.int32)
        at = 0
        for index, (size, part) in enumerate(zip(self._sizes, parts, strict=True)):
            if index >= 2 and index % 2 == 0:
                host[at : at + size].reshape(-1, 7)[:] = _NOTHING
            host[at : at + len(part)] = part
            at += size
        found = torch.from_numpy(host)
        # A fresh buffer each time: the copy of the batch before may still be queued.
        return pinned(found, self._ints.device)

    def _near_lens(self, batch: ExtendBatch) -> list[int]:
        return list(map(near_pages(self._spec).count, batch.prefix_lens_cpu, batch.seq_lens_cpu))

    def _tiles(self, rows: int) -> int:
        """Tiles of so many rows at most: each request's last one may be cut short."""
        return -(-rows // self._tile_rows) + self._max_runs

    def _items(self, head_class: HeadClass, heads: int, rows: int) -> int:
        if head_class == "local":
            return self._tiles(rows)
        return max(self._tiles(rows), MOST_WAVES * self._processors // heads)


assert len(Item._fields) == len(_NOTHING) and len(Merge._fields) == 4
