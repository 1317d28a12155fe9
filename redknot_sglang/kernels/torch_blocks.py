# SPDX-License-Identifier: Apache-2.0
"""What the torch extend plans: which rows of q meet which pages, in calls that torch does well."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import ClassSpec, ExtendBatch, window_start

# Rows of one call for global heads. More rows would need larger masks.
MAX_BLOCK = 256
# Least and most rows of one call for local heads. A call of n rows reads n keys beside its window, most of which count
# for few of the rows; but below some size the calls themselves cost more than that.
LOCAL_BLOCKS = 64, 128


@dataclass(frozen=True)
class Block:
    """Some rows of q, and the keys that one call attends over: the first ``sinks`` of their request's pages and those
    from ``start`` to ``stop`` - 1.

    first: first row.
    last: last row plus 1.
    sinks: pages from the beginning of the list.
    start: first of the other pages.
    stop: last of the other pages plus 1.
    mask: additive [rows, keys]; None if all rows see all keys or the call is causal.
    causal: whether row i sees the keys up to i.
    """

    first: int
    last: int
    sinks: int
    start: int
    stop: int
    mask: Tensor | None
    causal: bool = False


@dataclass(frozen=True)
class Request:
    """One extending request.

    slots: int64, its pages in a class, in the order of their positions.
    blocks: its rows.
    """

    slots: Tensor
    blocks: list[Block]


class CausalBand:
    """Causal masks of row blocks with a prefix, as slices of one buffer.

    Row i of a block that begins at position a sees the keys at [0, a + i]. The masks of two blocks of the same size
    differ only by a shift, so that one wide mask has them all.

    dtype: of the masks.
    device: where they are.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._reach = -1
        self._band = torch.empty(0)

    def mask(self, a: int, b: int) -> Tensor:
        """Additive mask [b - a, b] of the rows at positions [a, b) over the keys at [0, b); b - a is at most MAX_BLOCK."""
        if self._reach < a:
            self._reach = max(1024, 1 << a.bit_length())
            columns = torch.arange(self._reach + MAX_BLOCK)
            hidden = columns[None, :] > torch.arange(MAX_BLOCK)[:, None] + self._reach
            self._band = additive(hidden, self._dtype, self._device)
        shift = self._reach - a
        return self._band[: b - a, shift : shift + b]


def extend_global(batch: ExtendBatch, band: CausalBand) -> list[Request]:
    """Every row sees its request's pages up to its own position."""
    plan = []
    requests = batch.req_pool_indices.tolist()
    for row, request, prefix, n in zip(
        batch.qo_indptr[:-1], requests, batch.prefix_lens_cpu, batch.seq_lens_cpu, strict=True
    ):
        slots = batch.req_to_token[request, :n].long()
        if prefix == 0 or n - prefix == 1:
            blocks = [Block(row, row + n - prefix, 0, 0, n, None, causal=n - prefix > 1)]
        else:
            cuts = [*range(prefix, n, MAX_BLOCK), n]
            blocks = [
                Block(row + a - prefix, row + b - prefix, 0, 0, b, band.mask(a, b))
                for a, b in zip(cuts[:-1], cuts[1:], strict=True)
            ]
        plan.append(Request(slots, blocks))
    return plan


def extend_local(batch: ExtendBatch, spec: ClassSpec) -> list[Request]:
    """Every row sees the sinks and its window; a block of rows reads nothing else before its first row."""
    plan = []
    rows_per_block = min(LOCAL_BLOCKS[1], max(LOCAL_BLOCKS[0], spec.window))
    masks: dict[tuple[int, int, int, int], Tensor | None] = {}
    requests = batch.req_pool_indices.tolist()
    for row, request, prefix, n in zip(
        batch.qo_indptr[:-1], requests, batch.prefix_lens_cpu, batch.seq_lens_cpu, strict=True
    ):
        start = window_start(prefix, spec.window)
        # Pages between the sinks and the first window are dead: entry i > sinks of the list is position i +
        # skipped.
        skipped = max(0, start - spec.sink)
        pages = batch.req_to_token[request, :n]
        if skipped:
            pages = torch.cat([pages[: spec.sink], pages[start:]])
        slots = batch.full_to_local.index_select(0, pages.long()).long()
        blocks = []
        cuts = [*range(prefix, n, rows_per_block), n]
        for a, b in zip(cuts[:-1], cuts[1:], strict=True):
            low = window_start(a, spec.window)
            shape = (b - a, a - low, min(spec.sink, low), max(0, spec.sink - low))
            if shape not in masks:
                masks[shape] = _window_mask(*shape, spec=spec)
            first, last = row + a - prefix, row + b - prefix
            blocks.append(Block(first, last, shape[2], low - skipped, b - skipped, masks[shape]))
        plan.append(Request(slots, blocks))
    return plan


def _window_mask(rows: int, back: int, sinks: int, near_sinks: int, *, spec: ClassSpec) -> Tensor | None:
    """Additive mask of a block's rows over ``sinks`` sinks and then the positions from ``back`` before its
    first row on.

    The first ``near_sinks`` of those positions are sinks as well. None where every row sees every key.
    """
    column = torch.arange(back + rows)[None, :]
    behind = torch.arange(rows)[:, None] + back - column
    seen = (behind >= 0) & ((behind < spec.window) | (column < near_sinks))
    if bool(seen.all()):
        return None
    return additive(F.pad(~seen, (sinks, 0), value=False), spec.dtype, spec.device)


def additive(hidden: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An additive mask, which torch takes faster than a boolean one.

    hidden: bool of any shape, True where a row does not see a key.
    dtype: of the mask.
    device: where the mask will be.
    Returns 0 where a key is seen, -inf where it is hidden.
    """
    zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return zeros.masked_fill_(hidden, -torch.inf).to(device)
