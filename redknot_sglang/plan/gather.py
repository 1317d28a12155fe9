# SPDX-License-Identifier: Apache-2.0
"""Gather extend: one forward over computed rows at arbitrary positions.

SGLang extends a sequence by the rows behind its prefix. A gather extend hands it a *permuted* sequence, first the
positions that need no computing, then the computed rows, so that its bookkeeping holds as it stands; afterwards the
request's row in `req_to_token` is put in order, and the forward gets the true positions. For attention each run of
adjacent rows is a request of its own with as many keys as its last row's position asks for (`batches.py`).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from redknot_sglang.plan.spans import Positions, runs_of

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

    @property
    def is_scattered(self) -> bool:
        """Whether runs are so short that one page list for each would be most of the work."""
        return self.num_rows < _SHORT_RUN * len(self.starts)

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return sum(map(len, self.rows))

    def positions(self) -> Positions:
        """True position of every row of the batch: int64 [rows]."""
        return np.concatenate(self.rows)
