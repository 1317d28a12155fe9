# SPDX-License-Identifier: Apache-2.0
"""What a probe compares with: of the first global heads, what rows asked for and what they got in isolation."""

from __future__ import annotations

import torch
from torch import Tensor

from redknot_sglang.config import RedKnotConfig
from redknot_sglang.heads import HeadMap

WHY_NO_PROBES = (
    "needs one GPU and a head map with global heads in at least two layers; where all heads are global it needs a "
    "server with --redknot-mode segmented or --redknot-segment-length"
)


def probe_width(config: RedKnotConfig, heads: HeadMap, group: int, tp_size: int) -> int:
    """Query heads whose rows are kept for probes, 0 if the server keeps none.

    heads: the whole map; group: query heads per KV head. A map whose heads are all global is there to equal stock SGLang,
    so it pays for probes only where segments are expected.
    """
    if tp_size > 1 or len(heads.global_layers) < 2 or (heads.all_global and not config.expects_segments):
        return 0
    return group * heads.num_global(heads.global_layers[0])


class ProbeBuffers:
    """Rows of the probe layer, the first layer with global heads, by *local* slot: every row under `blend` has one.

    asked, got: queries and attention output of the layer's global heads, [slots_l + 1, width, D], in the model's dtype.
    """

    def __init__(self, slots: int, width: int, heads: HeadMap, head_dim: int, dtype: torch.dtype, device: str) -> None:
        self.layer, self.next_layer = heads.global_layers[:2]
        self.asked = torch.zeros(slots + 1, width, head_dim, dtype=dtype, device=device)
        self.got = torch.zeros_like(self.asked)

    def store(self, slots: Tensor, asked: Tensor, got: Tensor) -> None:
        """Keep rows; slots int64 [n], asked and got [n, width, D]."""
        self.asked[slots] = asked.to(self.asked.dtype)
        self.got[slots] = got.to(self.got.dtype)
