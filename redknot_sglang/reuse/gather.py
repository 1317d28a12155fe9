# SPDX-License-Identifier: Apache-2.0
"""Gather extend: one forward over computed rows at arbitrary positions.

SGLang extends a sequence by the rows behind its prefix. A gather extend hands it a *permuted* sequence, first the
positions that need no computing, then the computed rows, so that its bookkeeping holds as it stands; afterwards the
request's row in `req_to_token` is put in order, and the forward gets the true positions. For attention each run of
adjacent rows is a request of its own with as many keys as its last row's position asks for.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from redknot_sglang.kernels.batch import ExtendBatch, ScatteredBatch
from redknot_sglang.kernels.host_copy import to_device
from redknot_sglang.radix.spans import Positions, runs_of

# Rows a run, on average, below which a batch's rows count as scattered.
_SHORT_RUN = 16


@dataclass(frozen=True, eq=False)
class Stretch:
    """One chunk of a segmented request, the positions [start, stop).

    moved: relocated positions in it; rows: computed ones. Together they are all of it; both ascending, int64.
    """

    start: int
    stop: int
    moved: Positions
    rows: Positions

    @cached_property
    def order(self) -> Positions:
        """Positions in the order in which SGLang is given them."""
        return np.concatenate([self.moved, self.rows])

    def permuted(self, tokens: array[int]) -> array[int]:
        """The sequence with this stretch in the order that SGLang is given."""
        ids = np.array(tokens, dtype=np.int64)
        ids[self.start : self.stop] = ids[self.order]
        return array("q", ids.tobytes())

    def restore(self, row: Tensor) -> None:
        """Put a request's slots, written in SGLang's order, at their positions; row: int32 [context]."""
        order = to_device(self.order, row.device, torch.int64)
        row[order] = row[self.start : self.stop].clone()


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of adjacent rows of a whole batch, for attention and positions.

    requests: batch index of each run; starts, stops: its positions [start, stop). rows: of each request, ascending.
    """

    requests: list[int]
    starts: list[int]
    stops: list[int]
    rows: list[Positions]

    @classmethod
    def of(cls, prefix_lens: Sequence[int], seq_lens: Sequence[int], stretches: dict[int, Stretch]) -> Runs:
        """Runs of a batch; requests without a stretch are one run behind their prefix."""
        found = cls([], [], [], [])
        for index, (prefix, end) in enumerate(zip(prefix_lens, seq_lens, strict=True)):
            rows = stretches[index].rows if index in stretches else np.arange(prefix, end)
            starts, stops = runs_of(rows)
            found.requests.extend([index] * len(starts))
            found.starts.extend(starts.tolist())
            found.stops.extend(stops.tolist())
            found.rows.append(rows)
        return found

    def batch(
        self, req_to_token: Tensor, full_to_local: Tensor, req_pool_indices: Tensor, positions: Tensor
    ) -> ExtendBatch:
        """What attention plans; tensors as in ExtendBatch, positions int [rows].

        Every run is a request of its own, over the slots of the request that it belongs to. Where runs are short their
        page lists would be most of the work; then a request's rows stay together.
        """
        if self._num_rows != len(positions):
            raise RuntimeError(f"the batch has {len(positions)} rows, its runs others: not its plan")
        rows = [rows.tolist() for rows in self.rows] if self.is_scattered else []
        requests, starts, stops = self.requests, self.starts, self.stops
        if rows:
            requests, starts, stops = list(range(len(rows))), [at[0] for at in rows], [at[-1] + 1 for at in rows]
        index, prefix_lens, seq_lens = (
            to_device(values, positions.device, torch.int32) for values in (requests, starts, stops)
        )
        pages = req_to_token, req_pool_indices[index.long()], full_to_local
        plain = ExtendBatch(*pages, prefix_lens, seq_lens, starts, stops)
        return ScatteredBatch(**vars(plain), positions=positions.to(torch.int32), positions_cpu=rows) if rows else plain

    @property
    def is_scattered(self) -> bool:
        """Whether runs are so short that one page list for each would be most of the work."""
        return self._num_rows < _SHORT_RUN * len(self.starts)

    @property
    def _num_rows(self) -> int:
        return sum(map(len, self.rows))

    def positions(self) -> Positions:
        """True position of every row of the batch: int64 [rows]."""
        return np.concatenate(self.rows)
