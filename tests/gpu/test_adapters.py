# SPDX-License-Identifier: Apache-2.0
"""Segments computed under one LoRA adapter are never reused under another, nor without one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from redknot_sglang.measure.launch import launch
from tests.serving import harness
from tests.serving.conversations import check_no_leak
from tests.serving.prompts import noise

pytestmark = [pytest.mark.gpu, pytest.mark.serving]

RANK = 4
# SGLang has no adapters on a CPU, so this is a server of its own, on the GPU.
FLAGS = (
    f"--model-path={harness.MODEL}",
    "--redknot",
    f"--redknot-head-map={harness.HEAD_MAP}",
    "--redknot-segment-length=200",
    "--redknot-uncertified",
    "--dtype=bfloat16",
    "--max-total-tokens=16384",
    "--context-length=4096",
    "--disable-cuda-graph",
    "--skip-server-warmup",
    "--grammar-backend=none",
    "--sampling-backend=pytorch",
    "--enable-lora",
    "--max-loras-per-batch=2",
)


def write_adapter(folder: Path, seed: int) -> Path:
    """A random adapter of the embedded model, in the form that PEFT writes; strong enough to change answers."""
    folder.mkdir()
    config = json.loads((harness.MODEL / "config.json").read_text())
    width, dim = config["hidden_size"], config["head_dim"]
    outputs = {"q_proj": config["num_attention_heads"] * dim, "v_proj": config["num_key_value_heads"] * dim}
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(outputs), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, rows in outputs.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, width, generator=generator) * 0.1
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator) * 0.1
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_adapters_do_not_share_segments(tmp_path: Path) -> None:
    adapters = {name: write_adapter(tmp_path / name, seed) for seed, name in enumerate("ab")}
    rng = random.Random("adapters")
    document, tail = noise(rng, 200), noise(rng, 60)

    def ask(adapter: str | None, lead: list[int], policy: str) -> tuple[list[int], dict[str, Any]]:
        params = {"redknot_segments": [len(lead), len(lead) + 200], "redknot_repair": policy}
        body = {} if adapter is None else {"lora_path": adapter}
        answer = server.generate([*lead, *document, *tail], 6, sampling_params={"custom_params": params}, **body)
        return answer["output_ids"], answer["meta_info"]["redknot"]

    paths = ["--lora-paths", *(f"{name}={path}" for name, path in adapters.items())]
    with launch([*FLAGS, *paths], tmp_path / "server.log", timeout=500) as running:
        server = harness.Server(running.url, running)
        for policy in ("boundary:8", "blend:0.1"):
            answers = []
            for adapter in (None, "a", "b"):
                lead, moved = noise(rng, 10), noise(rng, 33)
                _, cold = ask(adapter, lead, policy)
                assert cold["computed_tokens"] == 270, f"{adapter} found a segment of another adapter"
                answer, warm = ask(adapter, moved, policy)
                assert warm["relocated_tokens"] + warm["repaired_tokens"] == 200
                assert warm["computed_tokens"] == 33 + 60 + warm["repaired_tokens"] < 120
                answers.append(ask(adapter, lead[:5], policy)[0])
            assert answers[0] != answers[1] != answers[2] != answers[0], "the adapters have no effect"
        check_no_leak(server)
