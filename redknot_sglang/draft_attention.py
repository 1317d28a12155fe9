# SPDX-License-Identifier: Apache-2.0
"""The attention of a draft model on a CPU, where SGLang has none that needs no AMX instructions.

A draft model has one class of heads and an ordinary pool, so one forward of it is served by SGLang's own attention in plain torch. What
that lacks is the steps in which a chain is drafted: between two of them SGLang does not count a request's length up.
"""

from __future__ import annotations

from copy import copy
from typing import Any

from torch import Tensor

from redknot_sglang.seams.sglang import AttentionBackend


class DraftSteps:
    """What SGLang asks for the attention of each step, as `attn_backends`.

    backend: an attention of SGLang's for one forward.
    steps: tokens of a chain behind a request's text; the first of them is known before these steps.
    """

    needs_cpu_seq_lens = True

    def __init__(self, backend: Any, steps: int) -> None:
        self.attn_backends = [DraftStep(backend, step) for step in range(1, steps)]

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Nothing is planned for all steps together. forward_batch: SGLang's ForwardBatch."""


class DraftStep(AttentionBackend):
    """One of the steps.

    backend: as above.
    ahead: rows of the chain that the step's row sees behind the request's text, its own one too.
    """

    def __init__(self, backend: Any, ahead: int) -> None:
        super().__init__()
        self._backend, self._ahead = backend, ahead

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Plan the step. forward_batch: SGLang's ForwardBatch, with lengths without the chain."""
        self._backend.init_forward_metadata(forward_batch)

    def forward_decode(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """Store K and V of the new rows, then attend; parameters and result are those of SGLang's backends."""
        seen = copy(forward_batch)
        seen.seq_lens = forward_batch.seq_lens + self._ahead
        out: Tensor = self._backend.forward_decode(q, k, v, layer, seen, save_kv_cache, **kwargs)
        return out
