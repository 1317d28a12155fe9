# SPDX-License-Identifier: Apache-2.0
"""Plans of the "torch" path for rows at scattered positions."""

from __future__ import annotations

import torch

from .batch import ClassSpec, HeadClass, ScatteredBatch, window_start
from .torch_plan import Block, Request

# Positions that one block of local rows may span: it reads all keys in between, and few of them count for a row.
LOCAL_SPAN = 256
# Rows of a block: it reads the keys of its last row, of which those of its first may be few.
BLOCK_ROWS = 64


def scattered_rows(batch: ScatteredBatch, head_class: HeadClass, spec: ClassSpec) -> list[Request]:
    """Blocks of rows that are near each other, each with a mask of its own."""
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
