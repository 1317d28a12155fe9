# SPDX-License-Identifier: Apache-2.0
"""What a server's KV pools will hold, worked out from its arguments before anything is loaded."""

from __future__ import annotations

from typing import Any

from redknot_sglang.config import RedKnotConfig
from redknot_sglang.pool.probe import probe_width
from redknot_sglang.pool.sizing import (
    ClassBytes,
    PoolSlots,
    class_bytes,
    least_slots,
    local_for_global,
    segments_for,
    split_budget,
)
from redknot_sglang.seams.model_config import head_map_of


class StartSizes:
    """Sizes on rank 0. server_args, model_config: SGLang's, with a head map attached; config: of this server."""

    def __init__(self, server_args: Any, model_config: Any, config: RedKnotConfig) -> None:
        whole = head_map_of(model_config)
        self.head_map = whole.shard(0, server_args.tp_size)
        group = model_config.num_attention_heads // whole.num_kv_heads
        width = probe_width(config, whole, group, server_args.tp_size)
        self.cost: ClassBytes = class_bytes(self.head_map, model_config.head_dim, model_config.dtype.itemsize, width)
        context_length = config.context_length or model_config.context_len
        chunk = server_args.chunked_prefill_size
        self._lengths = context_length, chunk if chunk and chunk > 0 else context_length, segments_for(config)

    def of_tokens(self, tokens: int) -> PoolSlots:
        """Slots under `--max-total-tokens`. Raises RedKnotError if they do not hold the segments beside one request."""
        return local_for_global(self.head_map, tokens, *self._lengths)

    def of_bytes(self, budget: int) -> PoolSlots:
        """Slots of a budget in bytes. Raises as `of_tokens`."""
        return split_budget(self.head_map, self.cost, budget, *self._lengths)

    def hold_a_request(self, slots: PoolSlots) -> bool:
        """Whether a single request can run in them."""
        return min(slots.global_slots, slots.local_slots) >= least_slots(self.head_map)

    def bytes_of(self, slots: PoolSlots) -> int:
        """What slots take in memory; with all heads global nothing is local but what probes keep."""
        local = self.cost.probe if self.head_map.all_global else self.cost.local
        return slots.global_slots * self.cost.global_slot + slots.local_slots * local
