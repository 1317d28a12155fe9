# SPDX-License-Identifier: Apache-2.0
"""Buffers for the repair policy `blend`, which asks of each row of a reused document whether its new context changes
it.

It asks by a *probe*: the attention of one layer's global heads is computed again over the new context, and compared
with what it gave when the document was computed alone. For that, queries and outputs of these heads are kept here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from redknot_sglang.config import RedKnotConfig
from redknot_sglang.heads import HeadMap

WHY_NO_PROBES = (
    "needs a head map with global heads in at least two layers; where all heads are global it needs a "
    "server with --redknot-mode segmented or --redknot-segment-length"
)


def probe_width(config: RedKnotConfig, heads: HeadMap, group: int) -> int:
    """Query heads whose rows are kept for probes, on all tensor-parallel ranks together; 0 if the server keeps none.

    config: the server's settings. A map whose heads are all global is there to equal stock SGLang, so memory goes to
        probes only where the flags say that segments are expected.
    heads: the whole model's map.
    group: query heads for each KV head.
    """
    if len(heads.global_layers) < 2 or (heads.all_global and not config.expects_segments):
        return 0
    return group * heads.num_global(heads.global_layers[0])


class ProbeBuffers:
    """What is kept of the rows of the probe layer, the first layer with global heads. Found by *local* slot: under
    `blend` every row of a document has one.

    slots: usable local slots.
    width: query heads of those of the layer's global heads that this tensor-parallel rank has; there may be none.
    heads: the whole model's map, which decides the layers on all ranks.
    The other parameters are those of the class buffers.

    Attributes:

    width: as given.
    asked: [slots + 1, width, D], the queries of the layer's global heads, in the model's dtype.
    got: [slots + 1, width, D], their attention output.
    """

    def __init__(self, slots: int, width: int, heads: HeadMap, head_dim: int, dtype: torch.dtype, device: str) -> None:
        self.layer, self.next_layer = heads.global_layers[:2]
        self.width = width
        self.asked = torch.zeros(slots + 1, width, head_dim, dtype=dtype, device=device)
        self.got = torch.zeros_like(self.asked)

    def store(self, slots: Tensor, asked: Tensor, got: Tensor) -> None:
        """Keep rows.

        slots: int64 [n], local slots.
        asked: [n, width, D], queries.
        got: [n, width, D], attention output.
        """
        self.asked[slots] = asked.to(self.asked.dtype)
        self.got[slots] = got.to(self.got.dtype)
