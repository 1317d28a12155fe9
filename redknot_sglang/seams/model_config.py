# SPDX-License-Identifier: Apache-2.0
"""SGLang's model configuration: have the scheduler treat the model as one with two KV pools.

SGLang schedules models with sliding-window layers over two pools (admission, eviction, decode-time freeing, leak
checks). RedKnot uses that machinery with "full" meaning the global and "sliding window" the local head class; both
classes live in every layer.
"""

from __future__ import annotations

from typing import Any

from redknot_sglang import active
from redknot_sglang.heads import HeadMap, load_head_map
from redknot_sglang.seams import Seam, registries

# The window of a map without local heads: longer than any sequence, so no local slot is ever freed early.
UNBOUNDED_WINDOW = 1 << 30


def scheduler_window(head_map: HeadMap) -> int:
    """Tokens for which the scheduler keeps local slots: W, or no bound if no head is local."""
    return UNBOUNDED_WINDOW if head_map.all_global else head_map.window


def _two_pools(result: Any, server_args: Any, *args: Any, is_draft_model: bool = False, **kwargs: Any) -> None:
    config = active.config_of(server_args)
    if config is None or is_draft_model:
        return
    registries.register()
    head_map = load_head_map(config.head_map)
    text = result.hf_text_config
    head_map.check_model(
        num_layers=result.num_hidden_layers,
        num_kv_heads=result.get_total_num_kv_heads(),
        model_type=getattr(text, "model_type", None),
    )
    layers = list(range(result.num_hidden_layers))
    result.is_hybrid_swa = True
    result.is_deepseek_v4_arch = False
    result.full_attention_layer_ids = layers
    result.swa_attention_layer_ids = layers
    result.sliding_window_size = scheduler_window(head_map)
    result.redknot_head_map = head_map


def head_map_of(model_config: Any) -> HeadMap:
    """The whole model's head map, checked against the model when its configuration was read."""
    head_map: HeadMap = model_config.redknot_head_map
    return head_map


SEAMS = (
    Seam(
        "sglang.srt.configs.model_config.ModelConfig.from_server_args",
        _two_pools,
        "after",
        "two-pool scheduling and the check of the head map against the model",
    ),
)
