# SPDX-License-Identifier: Apache-2.0
"""What the repair policy `question` chooses by its definition: separate passes of the embedded model in float32."""

from __future__ import annotations

import torch

from redknot_sglang.heads import HeadMap, load_head_map
from redknot_sglang.profile.data import Example
from redknot_sglang.profile.model import load_model
from redknot_sglang.profile.retrieval import document_wants
from redknot_sglang.profile.study import under_map
from tests.serving.harness import HEAD_MAP, MODEL
from tests.serving.segmented import SegmentedRequest


class Definition:
    """The embedded model under a head map, the shipped one unless told otherwise, with these retrieval heads."""

    def __init__(self, retrieval: tuple[tuple[int, int], ...], head_map: HeadMap | None = None) -> None:
        head_map = head_map or load_head_map(HEAD_MAP)
        local = [(layer, head) for layer in range(head_map.num_layers) for head in head_map.local_heads(layer)]
        self._model, _, _ = load_model(MODEL, "cpu", "float32", "auto", 4096)
        self._attend = under_map(local, head_map.window, head_map.sink)
        self._retrieval = retrieval

    def chosen(self, request: SegmentedRequest) -> tuple[set[int], float]:
        """Numbers of the segments that are chosen, and by how much the last of them leads the next."""
        segments = tuple(zip(request.offsets[::2], request.offsets[1::2], strict=True))
        example = Example((*request.prompt, 0), len(request.prompt), True, segments)
        wants = document_wants(self._model, example, self._attend)
        scores = torch.stack([wants[layer, head] for layer, head in self._retrieval]).mean(0)
        order = scores.argsort(descending=True).tolist()
        count = int(request.policy.partition(":")[2])
        lead = float(scores[order[count - 1]] - scores[order[count]]) if count < len(order) else 1.0
        return set(order[:count]), lead
