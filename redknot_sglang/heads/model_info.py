# SPDX-License-Identifier: Apache-2.0
"""What a head map must know of a model, read from the model's config.json."""

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

    `model_type` and `architecture` are the strings of the model's config.json, sizes are in elements.
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
    """Shape of the model in a directory with a config.json (or of a config.json given itself).

    Models that nest their language model under `text_config` are read there, except for `model_type` and
    `architectures`, which are taken from the top. Raises HeadMapError, with the file's path, if the file is
    missing or says nothing usable.
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
            "the model keeps one latent for all heads (MLA, kv_lora_rank); head maps need MHA, GQA or MQA"
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
        raise HeadMapError(f"no {key!r}: not the config.json of a transformer that head maps know")
    if isinstance(config[key], list):
        raise HeadMapError(f"{key} differs by layer; head maps need one number for all layers")
    return require_int(config[key], key, at_least=1)


def _optional_count(config: Mapping[str, Any], key: str) -> int | None:
    return None if config.get(key) is None else _count(config, key)
