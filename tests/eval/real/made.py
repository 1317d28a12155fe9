# SPDX-License-Identifier: Apache-2.0
"""Tiny models with random weights and the GGUF files that they would be published as."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from eval.real.convert import convert

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
OWN, UNUSED = "<tool_call>", "[PAD]"
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = (*SPECIAL, OWN, *_BYTES, *(merge.replace(" ", "") for merge in MERGES), UNUSED)
CONTEXT = 512

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class Kind:
    """What a file is made of: class, whether the output is the embedding, and changes of its fields."""

    name: str = "llama"
    tied: bool = True
    words: str = "smollm"


def make_model(kind: Kind, seed: int = 0) -> Any:
    """A transformers model, float32, whose weights are all bf16 numbers, so that a conversion to bf16 is exact."""
    settings: dict[str, Any] = {
        "vocab_size": len(TOKENS),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
        "tie_word_embeddings": kind.tied,
    }
    classes: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(classes[kind.name](**settings)).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_((torch.randn(value.shape) * 0.3).bfloat16())
    return model


def write_gguf(path: Path, kind: Kind, model: Any, quantised: str = "", **changed: Any) -> None:
    """The model as a GGUF file.

    quantised: ending of the GGUF names that are Q8_0, none for "". changed: fields by name, with `_` for `.` of no account:
    `architecture`, `pre`, `add_bos`; `extra` is the name of a tensor that no class has; `without` leaves one out.
    """
    config = model.config
    writer = GGUFWriter(path, changed.get("architecture", kind.name))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(50000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    if changed.get("scaled"):
        writer.add_rope_scaling_factor(2.0)
    _write_tokenizer(writer, changed.get("pre", kind.words), changed.get("add_bos", False))
    for name, value in model.state_dict().items():
        theirs = _gguf_name(name)
        if (kind.tied and name == "lm_head.weight") or theirs == changed.get("without"):
            continue
        data = _interleaved(value, theirs, config).numpy() if kind.name == "llama" else value.numpy()
        if quantised and theirs.endswith(quantised):
            q8 = GGMLQuantizationType.Q8_0
            writer.add_tensor(theirs, quantize(data, q8), raw_dtype=q8)
        else:
            writer.add_tensor(theirs, np.array(data))
    if "extra" in changed:
        writer.add_tensor(changed["extra"], np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokenizer(writer: GGUFWriter, words: str, add_bos: bool) -> None:
    kinds = [TokenType.CONTROL] * len(SPECIAL) + [TokenType.USER_DEFINED]
    kinds += [TokenType.NORMAL] * (len(TOKENS) - len(kinds) - 1) + [TokenType.UNUSED]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words)
    writer.add_token_list(list(TOKENS))
    writer.add_token_types(kinds)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(add_bos)
    writer.add_chat_template(TEMPLATE)


def _gguf_name(name: str) -> str:
    stem, ending = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{_NAMES[part]}.{ending}"
    return f"{_NAMES[stem]}.{ending}"


def _interleaved(value: Tensor, name: str, config: Any) -> Tensor:
    """Query and key rows as Llama's GGUF files have them: row i of a head's first half, then row i of its second half."""
    if not name.endswith(("attn_q.weight", "attn_k.weight")):
        return value
    heads = config.num_attention_heads if "attn_q" in name else config.num_key_value_heads
    dim = len(value) // heads
    order = [head * dim + half * dim // 2 + i for head in range(heads) for i in range(dim // 2) for half in (0, 1)]
    return value[order]


def make_folder(path: Path, kind: Kind = Kind()) -> Path:
    """A converted tiny model, whose tokens are single bytes mostly."""
    gguf = path / "tiny.gguf"
    write_gguf(gguf, kind, make_model(kind))
    convert(gguf, path / "tiny")
    return path / "tiny"
