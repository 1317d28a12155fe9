# SPDX-License-Identifier: Apache-2.0
"""What the KV of a draft model takes. SGLang gives it a pool of its own, with a row for each global slot."""

from __future__ import annotations

from typing import Any

from redknot_sglang.errors import RedKnotError
from redknot_sglang.pool.kv_dtype import kv_dtype
from redknot_sglang.seams.sglang import AttentionArch, ModelConfig

# Algorithms of speculative decoding that draft without a model.
_WITHOUT = (None, "NGRAM")


def has_draft_model(server_args: Any) -> bool:
    """Whether drafts are made by a model, which reads what comes out of the served one's layers. server_args: SGLang's."""
    return server_args.speculative_algorithm not in _WITHOUT


def draft_slot_bytes(server_args: Any, ranks: int) -> int:
    """Bytes of a draft model's K and V of one token, on one tensor-parallel rank; 0 where drafts need no model.

    server_args: SGLang's.
    ranks: tensor-parallel ranks, over which the draft model's KV heads are spread.
    Raises RedKnotError if a draft model is needed and none is named, or its KV is of a form that is not moved with documents.
    """
    algorithm = server_args.speculative_algorithm
    if not has_draft_model(server_args):
        return 0
    path = server_args.speculative_draft_model_path
    if path is None:
        raise RedKnotError(
            f"--speculative-algorithm {algorithm} needs a draft model: add --speculative-draft-model-path"
        )
    model_config = ModelConfig.from_server_args(
        server_args,
        model_path=path,
        model_revision=server_args.speculative_draft_model_revision,
        is_draft_model=True,
    )
    if model_config.attention_arch != AttentionArch.MHA or model_config.head_dim != model_config.v_head_dim:
        raise RedKnotError(
            f"--speculative-draft-model-path {path}: its attention must be MHA, GQA or MQA, with keys as wide as values; use "
            "--speculative-algorithm NGRAM, which drafts without a model"
        )
    layers = model_config.num_nextn_predict_layers or max(
        model_config.num_hidden_layers, model_config.num_attention_layers
    )
    width = model_config.get_num_kv_heads(ranks) * (model_config.head_dim + model_config.v_head_dim)
    return int(layers * width * kv_dtype(server_args.kv_cache_dtype, model_config.dtype).itemsize)
