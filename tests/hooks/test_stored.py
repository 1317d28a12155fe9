# SPDX-License-Identifier: Apache-2.0
"""What names of stored objects depend on beside tokens: the model, the map, the rows, and adapters by their content."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from redknot_sglang.errors import CertificateError
from redknot_sglang.hooks.v0_5_17.stored import Adapters, context_digest
from redknot_sglang.plan.identity import MARK

LAYOUT = [[("torch.float32", [1, 8])]]


def write_model(folder: Path, weight: float = 1.0, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": 8, **config}))
    save_file({"w": np.full(16, weight, dtype=np.float32)}, folder / "model.safetensors")
    return folder


def digest(folder: Path, fingerprint: str = "map", layout: Any = LAYOUT, **arguments: Any) -> bytes:
    server_args = SimpleNamespace(model_path=str(folder), device="cpu", **arguments)
    pools = [SimpleNamespace(row_layout=layout)] * 2
    return context_digest(server_args, SimpleNamespace(fingerprint=fingerprint), pools)


def test_another_model_map_or_layout_has_other_names(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    here = digest(model)
    assert len(here) == 32 and digest(model) == here
    assert digest(write_model(tmp_path / "copy")) == here, "where a model lies does not matter"
    others = [
        digest(write_model(tmp_path / "tuned", weight=2.0)),
        digest(write_model(tmp_path / "shape", rope_theta=5)),
        digest(model, fingerprint="another"),
        digest(model, layout=[[("torch.bfloat16", [1, 8])]]),
        digest(model, layout=[[("torch.float32", [2, 4])]]),
        digest(model, load_format="dummy"),
        digest(model, quantization="fp8"),
        digest(model, kv_cache_dtype="fp8_e4m3"),
        digest(model, kv_cache_dtype="fp8_e4m3", quantization_param_path=str(model / "config.json")),
    ]
    assert len({here, *others}) == len(others) + 1


def test_a_model_that_is_not_on_this_disk_cannot_be_named(tmp_path: Path) -> None:
    with pytest.raises(CertificateError):
        digest(tmp_path / "nowhere")


def write_adapter(folder: Path, weight: float) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    save_file({"a": np.full(4, weight, dtype=np.float32)}, folder / "adapter_model.safetensors")
    return str(folder)


def test_adapters_go_by_their_content(tmp_path: Path) -> None:
    """The id of an adapter may be the same although its weights are others, and another although they are the same."""
    paths = [write_adapter(tmp_path / str(number), number // 2) for number in range(3)]
    references = {f"id{number}": SimpleNamespace(lora_path=path) for number, path in enumerate(paths)}
    references["id9"] = SimpleNamespace(lora_path=None)
    adapters = Adapters(SimpleNamespace(lora_manager=SimpleNamespace(lora_refs=references)))
    names = [adapters.named(f"tenantid{number}\0redknot whole") for number in range(3)]
    assert names[0] == names[1] != names[2]
    assert str(names[0]).startswith(f"tenant{MARK} adapter ") and str(names[0]).endswith("\0redknot whole")
    assert adapters.named("tenantid9") is None, "an adapter without files"
    assert adapters.named("tenant") == "tenant" and Adapters(SimpleNamespace()).named("tenantid1") == "tenantid1"
