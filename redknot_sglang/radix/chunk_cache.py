# SPDX-License-Identifier: Apache-2.0
"""The cache under `--disable-radix-cache`, which reuses nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redknot_sglang.pool.sizing import slots_ahead
from redknot_sglang.radix.cache import windows
from redknot_sglang.radix.listeners import Listener
from redknot_sglang.seams.sglang import MatchPrefixParams, MatchResult, SWAChunkCache


class HeadClassChunkCache(SWAChunkCache):
    """The cache under `--disable-radix-cache`: nothing is reused. A running request keeps its sink while its window
    moves on.
    """

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        pool = params.token_to_kv_pool_allocator.get_kvcache()
        self._head_map = pool.whole_map
        self.listeners: Sequence[Listener] = ()
        self.local_window, self.decode_window, self.sliding_window_size = windows(self)
        self.ahead = slots_ahead(pool.draft)

    @contextmanager
    def reporting_what_a_row_sees(self) -> Iterator[None]:
        """As in `HeadClassRadixCache`."""
        reported, self.sliding_window_size = self.sliding_window_size, self.local_window
        try:
            yield
        finally:
            self.sliding_window_size = reported

    def match_prefix(self, params: MatchPrefixParams) -> MatchResult:
        """Finds nothing; notes on the request how many first tokens keep their local slots."""
        if params.req is not None:
            params.req.swa_evict_floor = 0 if self._head_map.all_global else self._head_map.sink
        return super().match_prefix(params)

    def cache_finished_req(self, req: Any, is_insert: bool = True, **kwargs: Any) -> None:
        """Free all slots of a finished request and tell the listeners."""
        super().cache_finished_req(req, is_insert, **kwargs)
        for listener in self.listeners:
            listener.request_ended(req)

    @property
    def local_reach(self) -> tuple[int, int]:
        """Window and sink: the tokens whose local slots a sequence needs to go on."""
        return self._head_map.window, self._head_map.sink
