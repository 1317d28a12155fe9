# SPDX-License-Identifier: Apache-2.0
"""Reading a model's shape from its config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads.model_info import ModelInfo, ModelShape, read_model_shape

GQA = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_size": 2048,
}


def read(tmp_path: Path, config: object) -> ModelShape:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_model_shape(tmp_path)


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in GQA.items() if key not in keys}


def test_grouped_heads(tmp_path: Path) -> None:
    shape = read(tmp_path, GQA)
    assert shape == ModelShape(36, 8, ModelInfo("qwen3", "Qwen3ForCausalLM", 128, 2048))
    assert read_model_shape(tmp_path / "config.json") == shape


def test_no_key_value_heads_means_one_per_query_head(tmp_path: Path) -> None:
    assert read(tmp_path, without("num_key_value_heads")).num_kv_heads == 32
    assert read(tmp_path, {**GQA, "num_key_value_heads": None}).num_kv_heads == 32


def test_head_dim_is_derived_where_it_is_not_given(tmp_path: Path) -> None:
    assert read(tmp_path, without("head_dim")).info.head_dim == 64
    assert read(tmp_path, without("head_dim", "hidden_size")).info.head_dim is None


def test_nested_language_model(tmp_path: Path) -> None:
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {**GQA, "model_type": "gemma3_text"},
    }
    shape = read(tmp_path, config)
    assert (shape.num_layers, shape.num_kv_heads) == (36, 8)
    assert shape.info == ModelInfo("gemma3", "Gemma3ForConditionalGeneration", 128, 2048)


def test_names_may_be_missing(tmp_path: Path) -> None:
    info = read(tmp_path, without("architectures", "model_type")).info
    assert (info.architecture, info.model_type) == (None, None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "the top level must be an object, got list []"),
        (
            without("num_hidden_layers"),
            "no 'num_hidden_layers': not the config.json of a model that head maps can describe",
        ),
        (without("num_attention_heads", "num_key_value_heads"), "no 'num_attention_heads'"),
        ({**GQA, "num_hidden_layers": "36"}, "num_hidden_layers must be an integer, got str '36'"),
        ({**GQA, "num_key_value_heads": 0}, "num_key_value_heads must be at least 1, got int 0"),
        ({**GQA, "num_key_value_heads": [8, 4]}, "num_key_value_heads differs by layer"),
        ({**GQA, "head_dim": True}, "head_dim must be an integer, got bool True"),
        ({**GQA, "kv_lora_rank": 512}, "the model keeps one latent for all heads (MLA, kv_lora_rank)"),
        ({**GQA, "model_type": 3}, "model.model_type must be a non-empty string, got int 3"),
    ],
)
def test_wrong_configs(config: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(HeadMapError) as caught:
        read(tmp_path, config)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {message}")


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(HeadMapError) as caught:
        read_model_shape(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'config.json'}: no such file; check the path"
