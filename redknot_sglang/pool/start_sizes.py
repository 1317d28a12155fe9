# SPDX-License-Identifier: Apache-2.0
"""What a server's KV pools will hold, worked out from its arguments before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from redknot_sglang.config import RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.pool.dealing import dealing_of
from redknot_sglang.pool.draft_model import draft_slot_bytes
from redknot_sglang.pool.kv_dtype import kv_dtype
from redknot_sglang.pool.probe import probe_width
from redknot_sglang.pool.ranks import Ranks
from redknot_sglang.pool.sizing import (
    ClassBytes,
    PoolSlots,
    holding_a_request,
    least_slots,
    local_for_global,
    segments_for,
    split_budget,
)


def prefill_chunk(server_args: Any, context_length: int) -> int:
    """Tokens of a prefill chunk: none on a decode server, where no prompt is computed.

    server_args: SGLang's. context_length: tokens of the expected request, which is computed at once where chunks are off.
    """
    if server_args.disaggregation_mode == "decode":
        return 0
    chunk = server_args.chunked_prefill_size
    return chunk if chunk and chunk > 0 else context_length


def draft_tokens(server_args: Any) -> int:
    """Tokens by which a step of speculative decoding may extend a request; 0 without it.

    server_args: SGLang's. Drafts are chains, so a step has one token of each.
    """
    if server_args.speculative_algorithm is None:
        return 0
    return max(server_args.speculative_num_draft_tokens, server_args.speculative_num_steps)


class StartSizes:
    """Sizes on the tensor-parallel rank whose slots take most bytes, which limits all ranks.

    server_args, model_config: SGLang's, with a head map attached.
    config: RedKnot's settings of this server.
    """

    def __init__(self, server_args: Any, model_config: Any, config: RedKnotConfig) -> None:
        dealing = dealing_of(model_config)
        self.head_map = dealing.heads
        width = probe_width(config, dealing.heads, dealing.group)
        ranks = Ranks(dealing.dealt, dealing.group, dealing.ranks)
        dtype = model_config.dtype
        itemsize = kv_dtype(server_args.kv_cache_dtype, dtype).itemsize
        cost = ranks.widest(model_config.head_dim, itemsize, width, dtype.itemsize)
        self.cost: ClassBytes = replace(cost, draft=draft_slot_bytes(server_args, dealing.ranks))
        context_length = config.context_length or model_config.context_len
        self._draft = draft_tokens(server_args)
        self._lengths = context_length, prefill_chunk(server_args, context_length), segments_for(config), self._draft

    def of_tokens(self, tokens: int) -> PoolSlots:
        """Slots under `--max-total-tokens`. Raises RedKnotError if they do not hold the segments beside one request."""
        return self._checked(local_for_global(self.head_map, tokens, *self._lengths), f"--max-total-tokens {tokens}")

    def of_budget(self, budget: int) -> PoolSlots:
        """Slots of `--redknot-kv-budget`, bytes. Raises as `of_tokens`."""
        slots = split_budget(self.head_map, self.cost, budget, *self._lengths)
        return self._checked(slots, f"--redknot-kv-budget {budget} bytes")

    def of_share(self, share: int) -> PoolSlots:
        """Slots of what SGLang finds for KV, bytes. Raises as `of_tokens`."""
        slots = split_budget(self.head_map, self.cost, max(0, share), *self._lengths)
        return holding_a_request(self.head_map, slots, self._draft)

    def of_host(self, server_args: Any, on_device: PoolSlots) -> PoolSlots:
        """Host slots of each class: by `--hicache-size` (units of 10^9 bytes for each rank) if that is given, else
        `--hicache-ratio` times the global slots of the device. Chunks in flight need no host slots.

        server_args: SGLang's.
        on_device: slots of each class there.
        Raises as `of_tokens`.
        """
        context_length, _, segments, draft = self._lengths
        lengths = context_length, 0, replace(segments, tokens=None), draft
        if server_args.hicache_size > 0:
            budget = int(server_args.hicache_size * 10**9)
            slots = split_budget(self.head_map, self.cost, budget, *lengths)
            return self._checked(slots, f"--hicache-size {server_args.hicache_size}")
        tokens = int(on_device.global_slots * server_args.hicache_ratio)
        slots = local_for_global(self.head_map, tokens, *lengths)
        return self._checked(slots, f"--hicache-ratio {server_args.hicache_ratio}")

    def _checked(self, slots: PoolSlots, flag: str) -> PoolSlots:
        try:
            return holding_a_request(self.head_map, slots, self._draft)
        except RedKnotError:
            need = least_slots(self.head_map, self._draft)
            has = f"{slots.global_slots} global and {slots.local_slots} local slots"
            message = (
                f"{flag} cannot hold a single request, which needs {need} slots of each class and gets {has}; raise it"
            )
            raise RedKnotError(message) from None

    def bytes_of(self, slots: PoolSlots) -> int:
        """Bytes that slots take in memory on this rank. If all heads are global, local slots hold only what probes
        keep.
        """
        local = self.cost.probe if self.head_map.all_global else self.cost.local
        return slots.global_slots * self.cost.whole_global + slots.local_slots * local
