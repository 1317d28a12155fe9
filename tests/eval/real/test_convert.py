# SPDX-License-Identifier: Apache-2.0
"""A GGUF file and the folder made of it hold the same model and the same tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.real import convert as converting
from eval.real.convert import convert
from redknot_sglang.errors import CliError
from redknot_sglang.heads.model_info import read_model_shape
from tests.eval.real.made import CONTEXT, TOKENS, UNUSED, Kind, make_model, write_gguf

KINDS = (Kind("llama"), Kind("llama", tied=False), Kind("qwen2", tied=False, words="qwen2"))


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, in its index' files and no others."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    files = {file: load_file(folder / file) for file in set(index.values())}
    assert {file.name for file in folder.glob("*.safetensors")} == set(files)
    assert {name: file for file, held in files.items() for name in held} == index
    return {name: value for held in files.values() for name, value in held.items()}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_tensors_and_logits_are_the_source_models(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_model(kind)
    write_gguf(tmp_path / "model.gguf", kind, source)
    monkeypatch.setattr(converting, "SHARD_BYTES", 40_000)
    monkeypatch.setattr(converting, "_ROWS", 7)
    convert(tmp_path / "model.gguf", tmp_path / "model")
    found, wanted = weights(tmp_path / "model"), source.state_dict()
    if kind.tied:
        wanted.pop("lm_head.weight")
    assert set(found) == set(wanted) and len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    for name, value in wanted.items():
        assert found[name].dtype == torch.bfloat16 and torch.equal(found[name].float(), value), name
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ids = torch.randint(0, len(TOKENS), (2, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, source(ids).logits)
    shape = read_model_shape(tmp_path / "model")
    assert shape.info.model_type == kind.name and model.config.rms_norm_eps == 1e-6
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"


def test_quantised_weights_come_back_within_half_a_step(tmp_path: Path) -> None:
    kind = Kind("llama")
    source = make_model(kind)
    write_gguf(tmp_path / "model.gguf", kind, source, quantised="weight")
    convert(tmp_path / "model.gguf", tmp_path / "model")
    wanted = source.state_dict()
    for name, value in weights(tmp_path / "model").items():
        blocks = wanted[name].reshape(-1, 32)
        # A block of 32 is whole numbers up to 127 times a float16; bf16 then rounds the product to 8 bits.
        most = blocks.abs().amax(1, keepdim=True)
        error = (value.float().reshape(-1, 32) - blocks).abs()
        assert (error <= most * (0.5 / 127 + 2**-8)).all(), name
        assert error.max() > 0, name


def tokenizer_of(tmp_path: Path, words: str) -> Any:
    kind = Kind("llama", words=words)
    write_gguf(tmp_path / "model.gguf", kind, make_model(kind))
    convert(tmp_path / "model.gguf", tmp_path / "model")
    return AutoTokenizer.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("words", ["smollm", "qwen2"])
def test_tokenizer(words: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, words)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert tokenizer.is_fast and tokenizer.model_max_length == CONTEXT
    text = "<|im_start|>hello  wörld 1994's\n\n x <tool_call>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert pieces[:4] == ["<|im_start|>", "hello", "Ġ", "Ġw"] and pieces[-1] == "<tool_call>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.removeprefix("<|im_start|>")
    assert [TOKENS.index(piece) for piece in pieces] == ids
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], tokenize=False, add_generation_prompt=True
    )
    assert said == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    # Rows that only fill the embedding up are no tokens.
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(UNUSED)) == list(UNUSED)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "gpt2"}, "a model of class 'gpt2'; llama, qwen2 can be converted"),
        ({"pre": "llama-bpe"}, "a tokenizer 'gpt2' with words 'llama-bpe'"),
        ({"add_bos": True}, "puts a token before every text"),
        ({"scaled": True}, "positions are scaled"),
        ({"extra": "rope_freqs.weight"}, "a tensor 'rope_freqs.weight', which none of the known classes has"),
        ({"extra": "blk.0.attn_norm.bias"}, r"the GGUF file has \[4\], the class wants None"),
        ({"without": "blk.1.ffn_up.weight"}, r"mlp.up_proj.weight: the GGUF file has None, the class wants \[96, 64\]"),
    ],
)
def test_what_is_not_known_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    kind = Kind("llama")
    write_gguf(tmp_path / "model.gguf", kind, make_model(kind), **changed)
    with pytest.raises(CliError, match=message):
        convert(tmp_path / "model.gguf", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_no_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"no such thing" * 100)
    with pytest.raises(CliError, match="cannot be read as a GGUF file"):
        convert(tmp_path / "model.gguf", tmp_path / "model")
