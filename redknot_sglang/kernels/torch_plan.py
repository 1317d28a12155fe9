# SPDX-License-Identifier: Apache-2.0
"""Plans of the "torch" path: which rows of q meet which pages, in calls that torch does well."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import ClassSpec, DecodeBatch, ExtendBatch, HeadClass, window_start

# Rows of one call. For global heads they bound the masks; local heads read as many keys beyond their window,
# so that fewer rows pay there until the calls themselves cost more.
MAX_BLOCK = 256
LOCAL_BLOCKS = 64, 128
# Tokens gathered by one decode call. A larger gather leaves the cache and loses more than fewer calls win.
DECODE_TOKENS = 4096


@dataclass(frozen=True)
class Block:
    """Rows ``first:last`` of q over the keys ``:sinks`` and ``start:stop`` of their request's pages."""

    first: int
    last: int
    sinks: int
    start: int
    stop: int
    mask: Tensor | None
    causal: bool = False


@dataclass(frozen=True)
class Request:
    """One extending request: its pages in a class, int64 slots in order of position, and its rows."""

    slots: Tensor
    blocks: list[Block]


@dataclass(frozen=True)
class Group:
    """Decoding requests of similar length: their rows of q, and ``width`` int64 slots each, rest masked."""

    rows: slice | Tensor
    slots: Tensor
    width: int
    mask: Tensor | None


class CausalBand:
    """Causal masks of row blocks with a prefix, as slices of one buffer.

    The rows from position a on see the keys [0, a + i]; the same picture, shifted by a, for every a.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._reach = -1
        self._band = torch.empty(0)

    def mask(self, a: int, b: int) -> Tensor:
        """Additive mask [b - a, b] of the rows at positions [a, b) over the keys at [0, b); b - a <=
        MAX_BLOCK.
        """
        if self._reach < a:
            self._reach = max(1024, 1 << a.bit_length())
            columns = torch.arange(self._reach + MAX_BLOCK)
            hidden = columns[None, :] > torch.arange(MAX_BLOCK)[:, None] + self._reach
            self._band = _additive(hidden, self._dtype, self._device)
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


def decode_groups(batch: DecodeBatch, lens: list[int], head_class: HeadClass, spec: ClassSpec) -> list[Group]:
    """Cut the requests, longest first, into groups that pad to at most twice their pages and gather
    DECODE_TOKENS.
    """
    device, local = spec.device, head_class == "local"
    kept = [min(n, spec.window + spec.sink) for n in lens] if local else lens
    groups: list[list[int]] = []
    for i in sorted(range(len(lens)), key=lambda i: -kept[i]):
        width = kept[groups[-1][0]] if groups else 0
        if groups and 2 * kept[i] >= width and (len(groups[-1]) + 1) * width <= DECODE_TOKENS:
            groups[-1].append(i)
        else:
            groups.append([i])
    plan = []
    for group in groups:
        members = sorted(group)
        width = kept[group[0]]
        requests = batch.req_pool_indices[_rows(members, device)]
        own = torch.tensor([kept[i] for i in members], device=device)[:, None]
        skipped = torch.tensor([lens[i] - kept[i] for i in members], device=device)[:, None]
        # Padding repeats the last page, which is live: masked-out garbage times weight 0 could still be NaN.
        entry = torch.arange(width, device=device)[None, :].minimum(own - 1)
        position = entry + skipped * (entry >= spec.sink)
        slots = batch.req_to_token[requests[:, None], position].long().flatten()
        if local:
            slots = batch.full_to_local.index_select(0, slots).long()
        mask = None
        if any(kept[i] != width for i in members):
            hidden = torch.arange(width, device=device)[None, :] >= own
            mask = _additive(hidden[:, None, None, :], spec.dtype, device)
        plan.append(Group(_rows(members, device), slots, width, mask))
    return plan


def _rows(members: list[int], device: torch.device) -> slice | Tensor:
    if members[-1] - members[0] + 1 == len(members):
        return slice(members[0], members[-1] + 1)
    return torch.tensor(members, device=device)


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
    return _additive(F.pad(~seen, (sinks, 0), value=False), spec.dtype, spec.device)


def _additive(hidden: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where a key is seen, -inf where it is hidden; made once, so that no call converts a boolean mask."""
    zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return zeros.masked_fill_(hidden, -torch.inf).to(device)
