# SPDX-License-Identifier: Apache-2.0
"""What the torch extend plans for rows at scattered positions."""

from __future__ import annotations

import torch

from .batch import ClassSpec, HeadClass, ScatteredBatch, window_start
from .torch_blocks import Block, Request

# Positions that the rows of one local block may span. It reads all keys in between, of which few count for a row.
LOCAL_SPAN = 256
# Rows of a block at most. A global block reads all keys up to its last row, though its first row may see few of them.
BLOCK_ROWS = 64


def scattered_rows(batch: ScatteredBatch, head_class: HeadClass, spec: ClassSpec) -> list[Request]:
    """The requests of a batch, cut into blocks of rows that are near each other.

    batch: the requests.
    head_class: whose pages and reach.
    spec: the shape.
    """
    plan, row, local = [], 0, head_class == "local"
    for request, positions in zip(batch.req_pool_indices.tolist(), batch.positions_cpu, strict=True):
        slots = batch.req_to_token[request, : positions[-1] + 1].long()
        if local:
            # Positions that no row sees have no local slot; the dummy slot stands for them, and no mask shows it.
            slots = batch.full_to_local.index_select(0, slots).long()
        at = torch.tensor(positions)
        blocks = []
        for first, last in _cuts(positions, LOCAL_SPAN if local else positions[-1] + 1):
            rows, low = at[first:last, None], window_start(positions[first], spec.window) if local else 0
            sinks = min(spec.sink, low)
            keys = torch.cat([torch.arange(sinks), torch.arange(low, positions[last - 1] + 1)])
            hidden = keys > rows
            if local:
                hidden |= (keys <= rows - spec.window) & (keys >= spec.sink)
            mask = torch.zeros(hidden.shape, dtype=spec.dtype).masked_fill_(hidden, -torch.inf).to(spec.device)
            blocks.append(Block(row + first, row + last, sinks, low, positions[last - 1] + 1, mask))
        plan.append(Request(slots, blocks))
        row += len(positions)
    return plan


def _cuts(positions: list[int], span: int) -> list[tuple[int, int]]:
    """Index ranges of at most BLOCK_ROWS rows that lie within `span` positions."""
    cuts, first = [], 0
    for index, position in enumerate(positions):
        if index - first == BLOCK_ROWS or position - positions[first] >= span:
            cuts.append((first, index))
            first = index
    return [*cuts, (first, len(positions))]
