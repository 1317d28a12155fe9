# SPDX-License-Identifier: Apache-2.0
"""What a head map needs to know of a model, read from the model's config.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads.checks import require_int, require_str
from redknot_sglang.heads.files import StrPath, parse_json_object, read_text


@dataclass(frozen=True)
class ModelInfo:
    """What a map knows of its model beyond layer and head counts; None where its maker did not know.

    model_type: `model_type` of the model's config.json, e.g. `llama`.
    architecture: first of its `architectures`, e.g. `LlamaForCausalLM`.
    head_dim: elements of one head's K or V.
    hidden_size: elements of a hidden state.
    """

    model_type: str | None = None
    architecture: str | None = None
    head_dim: int | None = None
    hidden_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("model_type", "architecture"):
            if getattr(self, name) is not None:
                require_str(getattr(self, name), f"model.{name}")
        for name in ("head_dim", "hidden_size"):
            if getattr(self, name) is not None:
                require_int(getattr(self, name), f"model.{name}", at_least=1)

    def to_dict(self) -> dict[str, Any]:
        """The known fields only."""
        pairs = ((item.name, getattr(self, item.name)) for item in fields(self))
        return {name: value for name, value in pairs if value is not None}


@dataclass(frozen=True)
class ModelShape:
    """Layer and KV head counts of a model, and the rest that a head map records."""

    num_layers: int
    num_kv_heads: int
    info: ModelInfo


def read_model_shape(path: StrPath) -> ModelShape:
    """Shape of a model.

    path: the model's directory, or its config.json. Where that nests the language model under `text_config` the shape is
        read there, but `model_type` and `architectures` from the top.
    Raises HeadMapError, which names the file, if it is missing or has no shape that head maps can describe.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    try:
        return _shape(parse_json_object(read_text(file)))
    except HeadMapError as error:
        raise HeadMapError(f"{os.fspath(file)}: {error}") from None


def _shape(config: Mapping[str, Any]) -> ModelShape:
    nested = config.get("text_config")
    text = nested if isinstance(nested, Mapping) and "num_hidden_layers" in nested else config
    if text.get("kv_lora_rank") is not None:
        raise HeadMapError(
            "the model keeps one latent for all heads (MLA, kv_lora_rank), but head maps need MHA, GQA or MQA: serve it "
            "without --redknot"
        )
    num_layers = _count(text, "num_hidden_layers")
    # Absent or null means one KV head per query head.
    has_groups = text.get("num_key_value_heads") is not None
    num_kv_heads = _count(text, "num_key_value_heads" if has_groups else "num_attention_heads")

    hidden_size = _optional_count(text, "hidden_size")
    head_dim = _optional_count(text, "head_dim")
    num_q_heads = _optional_count(text, "num_attention_heads")
    if head_dim is None and hidden_size is not None and num_q_heads is not None:
        head_dim = hidden_size // num_q_heads
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    info = ModelInfo(config.get("model_type"), architecture, head_dim, hidden_size)
    return ModelShape(num_layers, num_kv_heads, info)


def _count(config: Mapping[str, Any], key: str) -> int:
    if key not in config:
        raise HeadMapError(f"no {key!r}: not the config.json of a model that head maps can describe; name another file")
    if isinstance(config[key], list):
        raise HeadMapError(
            f"{key} differs by layer, but head maps need one number for all layers: serve it without --redknot"
        )
    return require_int(config[key], key, at_least=1)


def _optional_count(config: Mapping[str, Any], key: str) -> int | None:
    return None if config.get(key) is None else _count(config, key)
