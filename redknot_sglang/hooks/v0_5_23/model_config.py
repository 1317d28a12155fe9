# SPDX-License-Identifier: Apache-2.0
"""SGLang 0.5.23's model configuration: as 0.5.17's, with the tree of this version."""

from __future__ import annotations

from typing import Any

from redknot_sglang.hooks.v0_5_17 import model_config as before
from redknot_sglang.hooks.v0_5_17 import registries
from redknot_sglang.hooks.v0_5_23.tree import build_tree
from redknot_sglang.seams import Seam


def _two_pools(result: Any, *args: Any, **kwargs: Any) -> None:
    registries.register(build_tree)
    before._two_pools(result, *args, **kwargs)


SEAMS = (
    Seam(
        "configs.model_config.ModelConfig.from_server_args",
        _two_pools,
        "after",
        "two-pool scheduling and the check of the head map against the model",
    ),
)
