# SPDX-License-Identifier: Apache-2.0
"""A GGUF file made a Hugging Face folder: config.json, bf16 safetensors, tokenizer.

Quantised weights are made floats again and rounded to bf16. What the model says then is the reference for every comparison;
what the quantisation cost does not matter. Two classes are known, Llama and Qwen2; everything else is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, Qwen2Config

from eval.real.tokenizer import make_tokenizer
from redknot_sglang.errors import CliError

CONFIGS: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config}
SHARD_BYTES = 1 << 30
# Rows made floats at a time: 4096 of 9000 columns are 150 MB.
_ROWS = 4096

_ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(source: Path, out: Path) -> None:
    """Write the folder `out` of the GGUF file `source`; it is there with all that belongs to it, or not at all.

    Raises CliError for a file that is no GGUF file or a model of another kind.
    """
    try:
        reader = GGUFReader(source)
    except (OSError, ValueError) as error:
        raise CliError(f"{source} cannot be read as a GGUF file: {error}; fetch it again") from error
    fields = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = make_config(fields, tensors)
    names = {_hugging_face_name(name): name for name in tensors}
    _check_complete(config, names, tensors)
    tokenizer = make_tokenizer(fields)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config.save_pretrained(partial)
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    ).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    _write_weights(config, names, tensors, partial)
    partial.replace(out)


def make_config(fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> Any:
    """The model's configuration, of transformers. fields: contents of the GGUF file by key. Raises CliError for what is not served as it is."""
    kind = fields["general.architecture"]
    if kind not in CONFIGS:
        raise CliError(f"the GGUF file holds a model of class {kind!r}; {', '.join(CONFIGS)} can be converted")
    hidden, heads = fields[f"{kind}.embedding_length"], fields[f"{kind}.attention.head_count"]
    dim = hidden // heads
    scaling = [key for key in fields if key.startswith(f"{kind}.rope.scaling")]
    widths = {fields.get(f"{kind}.{key}", dim) for key in ("rope.dimension_count", "attention.key_length")}
    if scaling or widths != {dim}:
        raise CliError("the GGUF file's positions are scaled, or heads are not as wide as the model over their number")
    return CONFIGS[kind](
        architectures=[{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[kind]],
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        hidden_size=hidden,
        intermediate_size=fields[f"{kind}.feed_forward_length"],
        num_hidden_layers=fields[f"{kind}.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=fields.get(f"{kind}.attention.head_count_kv", heads),
        max_position_embeddings=fields[f"{kind}.context_length"],
        rms_norm_eps=_shortest(fields[f"{kind}.attention.layer_norm_rms_epsilon"]),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": _shortest(fields.get(f"{kind}.rope.freq_base", 10000.0)),
        },
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=fields.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=fields.get("tokenizer.ggml.padding_token_id"),
        dtype="bfloat16",
    )


def _shortest(value: float) -> float:
    """The number that was meant by a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _hugging_face_name(name: str) -> str:
    """Raises CliError for a tensor of which nothing is known."""
    if name in _ENDS:
        return _ENDS[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _IN_LAYER:
        return f"model.layers.{parts[1]}.{_IN_LAYER[parts[2]]}.{parts[3]}"
    raise CliError(f"the GGUF file has a tensor {name!r}, which none of the known classes has")


def _check_complete(config: Any, names: Mapping[str, str], tensors: Mapping[str, Any]) -> None:
    """Names and shapes have to be those that the class has."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    wanted = {name: list(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    # GGUF gives the fastest dimension first.
    found = {ours: tensors[theirs].shape.tolist()[::-1] for ours, theirs in names.items()}
    wrong = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise CliError(f"tensor {name}: the GGUF file has {found.get(name)}, the class wants {wanted.get(name)}")


def _write_weights(config: Any, names: Mapping[str, str], tensors: Mapping[str, Any], folder: Path) -> None:
    shards: list[list[str]] = [[]]
    size = total = 0
    for name, theirs in names.items():
        more = 2 * int(tensors[theirs].n_elements)
        if shards[-1] and size + more > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += more
        total += more
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: _weight(config, tensors[names[name]]) for name in shard}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _weight(config: Any, tensor: Any) -> Tensor:
    """bf16, in the order of rows that Hugging Face's classes want."""
    shape = tensor.shape.tolist()[::-1]
    out = torch.empty(shape, dtype=torch.bfloat16)
    data = tensor.data if len(shape) > 1 else tensor.data[None]
    rows = out if len(shape) > 1 else out[None]
    for begin in range(0, len(rows), _ROWS):
        some = dequantize(data[begin : begin + _ROWS], tensor.tensor_type)
        rows[begin : begin + _ROWS] = torch.from_numpy(np.array(some, dtype=np.float32))
    if config.model_type == "llama" and tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
        heads = config.num_attention_heads if "attn_q" in tensor.name else config.num_key_value_heads
        # GGUF has the two halves of each head interleaved, so that pairs that are rotated together are neighbours.
        out = out.view(heads, shape[0] // heads // 2, 2, shape[1]).transpose(1, 2).reshape(shape)
    return out
