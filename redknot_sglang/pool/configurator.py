# SPDX-License-Identifier: Apache-2.0
"""Pool sizes for SGLang's KV cache configurator."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sglang.srt.model_executor.pool_configurator import MemoryPoolConfig, MemoryPoolConfigurator
from sglang.srt.runtime_context import get_parallel

from redknot_sglang.config import RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.pool.probe import probe_width
from redknot_sglang.pool.sizing import (
    PoolSlots,
    class_bytes,
    least_slots,
    local_for_global,
    segments_for,
    split_budget,
)
from redknot_sglang.seams.model_config import head_map_of

logger = logging.getLogger(__name__)


# Exit code of a scheduler process that cannot serve what it was asked to and has said why. `EX_CONFIG` of sysexits.h.
REFUSED = 78


@contextmanager
def _one_line() -> Iterator[None]:
    """Memory is known only in the scheduler process, where an exception would be a page of traceback."""
    try:
        yield
    except RedKnotError as error:
        print(f"redknot: error: {error}", file=sys.stderr, flush=True)
        sys.exit(REFUSED)


class HeadClassPoolConfigurator(MemoryPoolConfigurator):
    """Turns bytes, or a number of tokens, into slots per head class."""

    def __init__(self, configurator: Any, config: RedKnotConfig) -> None:
        parallel = get_parallel()
        model_config = configurator.model_config
        server_args = configurator.server_args
        whole = head_map_of(model_config)
        # Every rank must arrive at the same slots, so sizes follow the rank with the most bytes per global slot.
        ranks = [whole.shard(rank, parallel.attn_tp_size) for rank in range(parallel.attn_tp_size)]
        itemsize = configurator.kv_cache_dtype.itemsize
        group = model_config.num_attention_heads // whole.num_kv_heads
        width = probe_width(config, whole, group, len(ranks))
        costs = [class_bytes(rank, model_config.head_dim, itemsize, width) for rank in ranks]
        self._head_map = whole
        self._cost = max(costs, key=lambda cost: cost.global_slot)
        self._budget = config.kv_budget
        self._context_length = config.context_length or model_config.context_len
        self._segments = segments_for(config)
        chunk = server_args.chunked_prefill_size
        self._chunk = chunk if chunk and chunk > 0 else self._context_length

    def calculate_pool_sizes(self, available_bytes: int, page_size: int) -> MemoryPoolConfig:
        """Split the memory that SGLang found, or the user's budget. Ends the process if they do not suffice."""
        with _one_line():
            return self._of_bytes(available_bytes)

    def calculate_pool_sizes_from_max_tokens(self, max_total_num_tokens: int, page_size: int) -> MemoryPoolConfig:
        """Size the local pool for a given number of global slots. Ends the process if they do not suffice."""
        with _one_line():
            lengths = self._context_length, self._chunk, self._segments
            return self._checked(local_for_global(self._head_map, max_total_num_tokens, *lengths))

    def _of_bytes(self, available_bytes: int) -> MemoryPoolConfig:
        budget = self._budget or available_bytes
        if budget > available_bytes:
            raise RedKnotError(
                f"--redknot-kv-budget asks for {budget} bytes, only {available_bytes} are free for KV; "
                "lower it or raise --mem-fraction-static"
            )
        lengths = self._context_length, self._chunk, self._segments
        slots = split_budget(self._head_map, self._cost, budget, *lengths)
        return self._checked(slots)

    def _checked(self, slots: PoolSlots) -> MemoryPoolConfig:
        least = least_slots(self._head_map)
        if slots.local_slots < least or slots.global_slots < least:
            raise RedKnotError(
                f"KV memory gives {slots.global_slots} global and {slots.local_slots} local slots, one request needs {least}; "
                "raise --redknot-kv-budget, --max-total-tokens or --mem-fraction-static"
            )
        logger.info(
            "RedKnot pools: %d global slots of %d bytes, %d local slots of %d bytes (context %d)",
            slots.global_slots,
            self._cost.global_slot,
            slots.local_slots,
            self._cost.local,
            self._context_length,
        )
        return MemoryPoolConfig(
            max_total_num_tokens=slots.global_slots,
            full_max_total_num_tokens=slots.global_slots,
            swa_max_total_num_tokens=slots.local_slots,
        )
