# SPDX-License-Identifier: Apache-2.0
"""The tokenizer in a GGUF file, as a fast tokenizer: byte-level BPE, cut into words as the model's own tokenizer does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from redknot_sglang.errors import CliError

# Kinds of tokens in GGUF. Unused ones only fill the embedding up to a round number of rows.
_CONTROL, _OWN, _UNUSED = 3, 4, 5

# A word with the character before it, one digit, a run of other characters, or white space with the line end before a word.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _qwen2(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _smollm(tokenizer: Tokenizer) -> None:
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


_WORDS: dict[str, Callable[[Tokenizer], None]] = {"qwen2": _qwen2, "smollm": _smollm}


def make_tokenizer(fields: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer with its special tokens and chat template. fields: contents of the GGUF file by key.

    Raises CliError for a kind of tokenizer that is not known: a wrong cut into words would go unnoticed and cost accuracy.
    """
    told = {key.removeprefix("tokenizer.ggml."): value for key, value in fields.items() if "tokenizer." in key}
    kind, words = told.get("model"), told.get("pre")
    if kind != "gpt2" or words not in _WORDS:
        raise CliError(
            f"the GGUF file has a tokenizer {kind!r} with words {words!r}; gpt2 with {', '.join(_WORDS)} can be made"
        )
    if told.get("add_bos_token"):
        raise CliError("the GGUF file's tokenizer puts a token before every text, which the converter cannot do")
    tokens, kinds = told["tokens"], told["token_type"]
    vocabulary = {token: number for number, token in enumerate(tokens) if kinds[number] != _UNUSED}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in told["merges"])]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    _WORDS[words](tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    for number, token in enumerate(tokens):
        if kinds[number] == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kinds[number] == _OWN:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
    numbers = {name: told.get(f"{short}_token_id") for name, short in names.items()}
    special = {name: tokens[number] for name, number in numbers.items() if number is not None}
    context = fields[f"{fields['general.architecture']}.context_length"]
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, model_max_length=int(context), **special
    )
    made.chat_template = fields.get("tokenizer.chat_template")
    return made
