# SPDX-License-Identifier: Apache-2.0
"""Tells SGLang, which asks once at start-up, how many slots each of the two KV pools gets."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from redknot_sglang.config import RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.pool.dealing import dealing_of
from redknot_sglang.pool.draft_model import draft_slot_bytes
from redknot_sglang.pool.kv_dtype import check_kv_dtype
from redknot_sglang.pool.probe import probe_width
from redknot_sglang.pool.ranks import Ranks
from redknot_sglang.pool.sizing import (
    PoolSlots,
    holding_a_request,
    local_for_global,
    segments_for,
    split_budget,
)
from redknot_sglang.pool.start_sizes import draft_tokens, prefill_chunk
from redknot_sglang.refuse import one_line
from redknot_sglang.seams.sglang import MemoryPoolConfig, MemoryPoolConfigurator

logger = logging.getLogger(__name__)


class HeadClassPoolConfigurator(MemoryPoolConfigurator):
    """Turns bytes, or a number of tokens, into slots of each head class. The arithmetic is in `sizing.py`."""

    def __init__(self, configurator: Any, config: RedKnotConfig) -> None:
        """Takes what it needs of SGLang and of the flags.

        configurator: SGLang's own one, which knows the model configuration, the server's arguments and the KV dtype.
        config: RedKnot's settings.
        """
        model_config = configurator.model_config
        server_args = configurator.server_args
        with one_line(server_args.dp_size > 1):
            check_kv_dtype(server_args.kv_cache_dtype, configurator.kv_cache_dtype)
        dealing = dealing_of(model_config)
        itemsizes = configurator.kv_cache_dtype.itemsize, model_config.dtype.itemsize
        self._head_map = dealing.heads
        width = probe_width(config, dealing.heads, dealing.group)
        ranks = Ranks(dealing.dealt, dealing.group, dealing.ranks)
        cost = ranks.widest(model_config.head_dim, itemsizes[0], width, itemsizes[1])
        self._cost = replace(cost, draft=draft_slot_bytes(server_args, dealing.ranks))
        self._budget = config.kv_budget
        self._data_parallel = server_args.dp_size > 1
        self._context_length = config.context_length or model_config.context_len
        self._segments = segments_for(config)
        self._chunk = prefill_chunk(server_args, self._context_length)
        self._draft = draft_tokens(server_args)

    def calculate_pool_sizes(self, available_bytes: int, page_size: int) -> MemoryPoolConfig:
        """Slots of both pools for a number of bytes: those of --redknot-kv-budget, or all that SGLang found if it is
        not given.

        available_bytes: what SGLang found for KV on this rank.
        page_size: tokens of a page, always 1 with --redknot.
        Ends the process, with one line that says what to change, if no request fits.
        """
        with one_line(self._data_parallel):
            return self._of_bytes(available_bytes)

    def calculate_pool_sizes_from_max_tokens(self, max_total_num_tokens: int, page_size: int) -> MemoryPoolConfig:
        """Slots of both pools where --max-total-tokens gives those of the global one.

        max_total_num_tokens: global slots.
        page_size: tokens of a page, always 1 with --redknot.
        Ends the process, with one line that says what to change, if no request fits.
        """
        with one_line(self._data_parallel):
            lengths = self._context_length, self._chunk, self._segments, self._draft
            return self._checked(local_for_global(self._head_map, max_total_num_tokens, *lengths))

    def _of_bytes(self, available_bytes: int) -> MemoryPoolConfig:
        budget = self._budget or available_bytes
        if budget > available_bytes:
            raise RedKnotError(
                f"--redknot-kv-budget asks for {budget} bytes, only {available_bytes} are free for KV; "
                "lower it or raise --mem-fraction-static"
            )
        lengths = self._context_length, self._chunk, self._segments, self._draft
        slots = split_budget(self._head_map, self._cost, budget, *lengths)
        return self._checked(slots)

    def _checked(self, slots: PoolSlots) -> MemoryPoolConfig:
        holding_a_request(self._head_map, slots, self._draft)
        logger.info(
            "RedKnot pools: %d global slots of %d bytes, %d local slots of %d bytes (context %d)",
            slots.global_slots,
            self._cost.whole_global,
            slots.local_slots,
            self._cost.local,
            self._context_length,
        )
        return MemoryPoolConfig(
            max_total_num_tokens=slots.global_slots,
            full_max_total_num_tokens=slots.global_slots,
            swa_max_total_num_tokens=slots.local_slots,
        )
