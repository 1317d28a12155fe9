# SPDX-License-Identifier: Apache-2.0
"""Random weights at a real shape, on disk: for comparisons in which logits have to differ from token to token.

    python -m eval.make_checkpoint --shape qwen3-8b --layers 12 --out /tmp/qwen3

SGLang's dummy weights are so small that every logit is alike, which makes any two servers agree.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SHAPES = Path(__file__).resolve().parent / "shapes"
STD = 0.02


def write(shape: str, layers: int | None, out: Path, seed: int = 0) -> None:
    """Write config, head maps cut to `layers`, and bf16 weights N(0, STD), norms 1, one file per layer."""
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((SHAPES / shape / "config.json").read_text())
    config["num_hidden_layers"] = layers or config["num_hidden_layers"]
    (out / "config.json").write_text(json.dumps(config, indent=1))
    for path in SHAPES.joinpath(shape).glob("*.json"):
        if path.name != "config.json":
            head_map = json.loads(path.read_text())
            head_map["model"]["num_layers"] = config["num_hidden_layers"]
            head_map["layers"] = head_map["layers"][: config["num_hidden_layers"]]
            (out / path.name).write_text(json.dumps(head_map, indent=1))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return (torch.randn(rows, columns, generator=generator, device=device) * STD).bfloat16().cpu()

    hidden, ffn, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors = {
            "self_attn.q_proj.weight": matrix(heads * dim, hidden),
            "self_attn.k_proj.weight": matrix(kv_heads * dim, hidden),
            "self_attn.v_proj.weight": matrix(kv_heads * dim, hidden),
            "self_attn.o_proj.weight": matrix(hidden, heads * dim),
            "mlp.gate_proj.weight": matrix(ffn, hidden),
            "mlp.up_proj.weight": matrix(ffn, hidden),
            "mlp.down_proj.weight": matrix(hidden, ffn),
            "input_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
            "post_attention_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        }
        if config["model_type"] == "qwen3":
            tensors |= {f"self_attn.{x}_norm.weight": torch.ones(dim, dtype=torch.bfloat16) for x in "qk"}
        save_file({prefix + name: tensor for name, tensor in tensors.items()}, out / f"layer-{layer:02}.safetensors")
    ends = {
        "model.embed_tokens.weight": matrix(config["vocab_size"], hidden),
        "lm_head.weight": matrix(config["vocab_size"], hidden),
        "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
    }
    save_file(ends, out / "ends.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    write(args.shape, args.layers, args.out)


if __name__ == "__main__":
    main()
