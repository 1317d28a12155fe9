# SPDX-License-Identifier: Apache-2.0
"""Gather extend: one forward over rows that lie anywhere in a prompt.

In an *extend*, SGLang computes the rows behind a sequence's cached prefix. In a segmented request, rows to compute and
rows whose KV is copied (*relocated*) from the cache alternate. So SGLang is given a *permuted* sequence, first the
relocated positions and then the rows to compute: to its bookkeeping that is a prefix and what follows it. Afterwards
the request's row in SGLang's table `req_to_token` is put back in order, and the forward gets the true positions. To
attention, each run of adjacent rows looks like a request of its own whose keys end at the run's last row
(`batches.py`).
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
    """One chunk of a segmented request: the positions [start, stop) of its prompt.

    moved: positions in it whose KV is relocated, ascending: int64 [m].
    rows: positions in it that are computed, ascending: int64 [n]. Together with `moved` they are the whole chunk.
    """

    start: int
    stop: int
    moved: Positions
    rows: Positions

    @cached_property
    def order(self) -> Positions:
        """The chunk's positions in the order in which SGLang is given them: int64 [m + n]."""
        return np.concatenate([self.moved, self.rows])

    def permuted(self, tokens: array[int]) -> array[int]:
        """The sequence with this chunk's tokens in the order in which SGLang is given them; all other tokens stay in
        place.
        """
        ids = np.array(tokens, dtype=np.int64)
        ids[self.start : self.stop] = ids[self.order]
        return array("q", ids.tobytes())


@dataclass(frozen=True, eq=False)
class Runs:
    """The computed rows of a whole batch, as runs of adjacent ones.

    requests: of each run, the index of its request in the batch.
    starts, stops: of each run, its positions [start, stop).
    rows: of each request, its computed positions, ascending: int64.
    """

    requests: list[int]
    starts: list[int]
    stops: list[int]
    rows: list[Positions]

    @classmethod
    def of(cls, prefix_lens: Sequence[int], seq_lens: Sequence[int], stretches: dict[int, Stretch]) -> Runs:
        """The runs of a batch.

        prefix_lens, seq_lens: of each request, where the rows to compute begin and end.
        stretches: by index in the batch, the chunks of segmented requests. Other requests are one run behind their
            prefix.
        """
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
        """Whether the runs are so short that making a list of keys for each of them would be most of the work."""
        return self.num_rows < _SHORT_RUN * len(self.starts)

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return sum(map(len, self.rows))

    def positions(self) -> Positions:
        """True position of every row of the batch: int64 [rows]."""
        return np.concatenate(self.rows)
