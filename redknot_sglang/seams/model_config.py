# SPDX-License-Identifier: Apache-2.0
"""The head map on SGLang's model configuration, which then has the scheduler keep two KV pools.

SGLang schedules models with sliding-window layers over two pools (admission, eviction, decode-time freeing, leak
checks). RedKnot uses that machinery with "full" meaning the global and "sliding window" the local head class; both
classes live in every layer.
"""

from __future__ import annotations

from typing import Any

from redknot_sglang.heads import HeadMap

# The window of a map without local heads: longer than any sequence, so no local slot is ever freed early.
UNBOUNDED_WINDOW = 1 << 30


def scheduler_window(head_map: HeadMap) -> int:
    """Tokens for which the scheduler keeps local slots: W, or no bound if no head is local."""
    return UNBOUNDED_WINDOW if head_map.all_global else head_map.window


def declare_two_pools(model_config: Any, head_map: HeadMap) -> None:
    """Make SGLang's model configuration that of a model whose every layer has both classes. head_map: checked against the model."""
    layers = list(range(model_config.num_hidden_layers))
    model_config.is_hybrid_swa = True
    model_config.is_deepseek_v4_arch = False
    model_config.full_attention_layer_ids = layers
    model_config.swa_attention_layer_ids = layers
    model_config.sliding_window_size = scheduler_window(head_map)
    model_config.redknot_head_map = head_map


def head_map_of(model_config: Any) -> HeadMap:
    """The whole model's head map, checked against the model when its configuration was read."""
    head_map: HeadMap = model_config.redknot_head_map
    return head_map
