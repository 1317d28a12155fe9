# SPDX-License-Identifier: Apache-2.0
"""The embedded model as a Hugging Face folder: weights, config, tokenizer and chat template, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from eval.tasks.vocabulary import BOS, END, PAD, SPECIALS, TOKENS, token_id
from eval.train.model import EmbeddedModel, ModelConfig

CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_LAYER_KEYS = {
    "norm_in": "input_layernorm", "norm_post": "post_attention_layernorm",
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def named_weights(model: EmbeddedModel) -> dict[str, torch.nn.Parameter]:
    """Parameters of `model` under their Hugging Face Llama names (tied head left out)."""
    named = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norm}
    for index, layer in enumerate(model.layers):
        for ours, theirs in _LAYER_KEYS.items():
            named[f"model.layers.{index}.{theirs}.weight"] = getattr(layer, ours)
    return named


def save_weights(model: EmbeddedModel, path: Path) -> None:
    """Write the parameters as bfloat16 safetensors."""
    tensors = {k: p.detach().to(torch.bfloat16).cpu().contiguous() for k, p in named_weights(model).items()}
    save_file(tensors, str(path), metadata={"format": "pt"})


def load_weights(model: EmbeddedModel, path: Path) -> None:
    """Read what `save_weights` wrote; raises KeyError or RuntimeError where the shapes do not fit `model`."""
    stored: dict[str, Tensor] = load_file(str(path))
    with torch.no_grad():
        for name, parameter in named_weights(model).items():
            parameter.copy_(stored[name])


def build_tokenizer() -> Tokenizer:
    """Byte-level BPE without merges: a word of the vocabulary is one id, all else falls back to bytes."""
    # The byte-level pre-tokenizer spells bytes as printable characters; the vocabulary must use the same
    # spelling.
    spelling = _byte_spelling()
    vocab: dict[str, int] = {}
    for i, token in enumerate(TOKENS):
        if isinstance(token, int):
            vocab[spelling[token]] = i
        else:
            vocab[token if token in SPECIALS else "".join(spelling[b] for b in token.encode())] = i
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    return tokenizer


def _byte_spelling() -> list[str]:
    """Character of each byte in byte-level BPE: itself where printable, else the next from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def hf_config(c: ModelConfig) -> dict[str, Any]:
    """`config.json` of the model for transformers and SGLang."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c.vocab,
        "hidden_size": c.width, "intermediate_size": c.ffn, "num_hidden_layers": c.layers,
        "num_attention_heads": c.q_heads, "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": c.max_positions, "rms_norm_eps": c.norm_eps, "rope_theta": c.rope_theta,
        "rope_scaling": None, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16",
        "bos_token_id": token_id(BOS), "eos_token_id": token_id(END), "pad_token_id": token_id(PAD),
    }  # fmt: skip


def export(model: EmbeddedModel, folder: Path) -> None:
    """Write a folder that transformers and stock SGLang load as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / "model.safetensors")
    build_tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    specials = {"bos_token": BOS, "eos_token": END, "pad_token": PAD}
    ids = {f"{name}_id": token_id(token) for name, token in specials.items()}
    files: dict[str, dict[str, Any]] = {
        "config.json": hf_config(model.config),
        "generation_config.json": {**ids, "do_sample": False},
        "special_tokens_map.json": dict(specials),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", **specials, "add_bos_token": False,
            "model_max_length": model.config.max_positions, "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
