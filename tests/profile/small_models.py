# SPDX-License-Identifier: Apache-2.0
"""Small random models of the classes that can be profiled, and their attention written out naively."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from redknot_sglang.profile.data import Data, Example
from redknot_sglang.profile.model import ATTENTION, ProfiledModel
from redknot_sglang.profile.study import Study
from redknot_sglang.work_file import WorkFile

CLASSES = ("llama", "qwen2", "qwen3", "mistral", "qwen3_moe", "qwen2_moe", "mixtral")
# Of classes with experts; each names their number in a field of its own.
EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
LAYERS, Q_HEADS, KV_HEADS, DIM = 3, 6, 2, 8
VOCABULARY = 50
NAIVE = "redknot_naive_test"

Edit = Callable[[int, Tensor, Tensor, Tensor], Tensor | None]
"""(layer, q, k, v), repeated to [Q, T, D], float64 -> attention output [Q, T, D], None for the ordinary one."""


@cache
def small_model(kind: str) -> Any:
    """float32, weights large enough that attention is far from uniform."""
    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, hidden_size=36, intermediate_size=40, num_hidden_layers=LAYERS, head_dim=DIM,
        num_attention_heads=Q_HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=256, sliding_window=None,
        use_sliding_window=False, tie_word_embeddings=False, hidden_act="silu", pad_token_id=None,
        **(EXPERTS if kind.endswith("moe") or kind == "mixtral" else {}),
    )  # fmt: skip
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (1 if parameter.ndim == 1 else 0.3))
    return model.requires_grad_(False)


def small_study(kind: str, example: Example, chunk: int, **changes: Any) -> Study:
    """A study of one example; `changes` to the fields of Study."""
    fields: dict[str, Any] = {"sink": 1, "windows": (4,), "curve": (1, 4, 9), "rows": 10**6, "goal": 3, **changes}
    data = Data("random", "test", (example,))
    return Study(ProfiledModel(small_model(kind), chunk), data, WorkFile(None, 0), **fields)


def naive_forward(kind: str, ids: list[int], edit: Edit = lambda *_: None, begin: int = 0) -> Tensor:
    """Logits [T, vocabulary] of transformers' own forward with attention written out over all pairs of rows."""
    model = small_model(kind)

    def attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: None, **_: Any) -> Any:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        wide = [x[0].double() for x in (q, k, v)]
        out = edit(module.layer_idx, *wide)
        if out is None:
            out = naive_weights(wide[0], wide[1]) @ wide[2]
        return out.to(q.dtype).transpose(0, 1)[None], None

    AttentionInterface.register(NAIVE, attention)
    model.config._attn_implementation = NAIVE
    try:
        positions = torch.arange(begin, begin + len(ids))[None]
        out: Tensor = model(input_ids=torch.tensor([ids]), position_ids=positions, use_cache=False).logits[0]
    finally:
        model.config._attn_implementation = ATTENTION
    return out


def naive_weights(q: Tensor, k: Tensor, window: int | None = None, sink: int = 0) -> Tensor:
    """Softmax [Q, T, T] of q, k [Q, T, D]; with a window, that of local heads."""
    row, at = torch.arange(q.shape[1])[:, None], torch.arange(k.shape[1])
    seen = at <= row
    if window is not None:
        seen = seen & ((at > row - window) | (at < sink))
    scores = (q @ k.transpose(1, 2) * DIM**-0.5).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1)
