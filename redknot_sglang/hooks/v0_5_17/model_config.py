# SPDX-License-Identifier: Apache-2.0
"""SGLang's model configuration: have the scheduler treat the model as one with two KV pools."""

from __future__ import annotations

from typing import Any

from redknot_sglang import active
from redknot_sglang.heads import load_head_map
from redknot_sglang.hooks.v0_5_17 import registries
from redknot_sglang.pool.dealing import attach, dealing_for
from redknot_sglang.seams import Seam
from redknot_sglang.seams.model_config import declare_two_pools


def _two_pools(result: Any, server_args: Any, *args: Any, is_draft_model: bool = False, **kwargs: Any) -> None:
    config = active.config_of(server_args)
    if config is None or is_draft_model:
        return
    registries.register()
    head_map = load_head_map(config.head_map)
    head_map.check_model(
        num_layers=result.num_hidden_layers,
        num_kv_heads=result.get_total_num_kv_heads(),
        model_type=getattr(result.hf_text_config, "model_type", None),
    )
    declare_two_pools(result, head_map)
    attach(result, dealing_for(server_args, result, head_map))


SEAMS = (
    Seam(
        "configs.model_config.ModelConfig.from_server_args",
        _two_pools,
        "after",
        "two-pool scheduling and the check of the head map against the model",
    ),
)
