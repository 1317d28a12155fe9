# SPDX-License-Identifier: Apache-2.0
"""A part of a prompt has the same tokens whether separators, characters or a preload name it, with any kind of tokenizer."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from redknot_sglang.config import DEFAULT_SEPARATOR, RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.serve.requests import resolve_request, separator_id, special_ids
from redknot_sglang.serve.segment_text import SegmentText

RNG = random.Random(0)
WORDS = ["".join(RNG.choice("abcdefghijkl") for _ in range(RNG.randint(2, 6))) for _ in range(200)]
BEFORE = {
    # Llama-2's and Mistral's: a mark for the beginning of a word, in front of a text's first word even without a space.
    "metaspace first": pre_tokenizers.Metaspace(prepend_scheme="first"),
    "metaspace always": pre_tokenizers.Metaspace(prepend_scheme="always"),
    # Older files of the same tokenizers: the mark is put in front of every piece between special tokens.
    "prepend": None,
    # GPT-2's, Llama-3's and Qwen's.
    "byte level": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "byte level with a space": pre_tokenizers.ByteLevel(add_prefix_space=True),
}
# The second is a word of the vocabulary.
SEPARATORS = (DEFAULT_SEPARATOR, WORDS[3])


def _trained(kind: str, beginning: bool) -> Any:
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    if (before := BEFORE[kind]) is None:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        made.pre_tokenizer = before
    made.decoder = decoders.ByteLevel() if kind.startswith("byte") else decoders.Metaspace()
    corpus = [" ".join(RNG.choice(WORDS) for _ in range(40)) for _ in range(200)]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind.startswith("byte") else []
    special = ["<unk>", "<s>", "</s>"]
    made.train_from_iterator(
        [*corpus, *WORDS], trainers.BpeTrainer(vocab_size=1500, special_tokens=special, initial_alphabet=alphabet)
    )
    if beginning:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(params=[(kind, beginning) for kind in BEFORE for beginning in (True, False)], ids=str)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return _trained(*request.param)


def _manager(tokenizer: Any, separator: str) -> Any:
    return SimpleNamespace(
        tokenizer=tokenizer,
        redknot_separator=separator_id(tokenizer, separator),
        redknot_special=special_ids(tokenizer),
        model_config=SimpleNamespace(vocab_size=1500),
        server_args=SimpleNamespace(disable_radix_cache=False, disaggregation_mode="null"),
        preferred_sampling_params=None,
    )


def _resolved(manager: Any, config: RedKnotConfig, text: str, **params: Any) -> tuple[list[int], list[int]]:
    """Tokens of a request's prompt and offsets of its segments, as the scheduler gets them."""
    body = SimpleNamespace(
        text=text,
        sampling_params={"custom_params": {"redknot_mode": "segmented", **params}},
        return_logprob=False,
        session_params=None,
    )
    tokens = manager.tokenizer.encode(text)
    resolve_request(manager, config, body, tokens)
    return tokens, body.sampling_params["custom_params"]["redknot_segments"]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_parts_have_the_same_tokens_however_they_are_named(tokenizer: Any, separator: str) -> None:
    config = RedKnotConfig(Path("map.json"), repair="none", separator=separator)
    # Some parts begin or end with spaces, some do not, one is empty.
    parts = [" ".join(WORDS[10:14]), " ".join(WORDS[20:40]) + "  ", " " + " ".join(WORDS[40:60]), "", WORDS[70] + " "]
    parts = [part.replace(separator, "") for part in [*parts, " ".join(WORDS[80:84])]]
    manager = _manager(tokenizer, separator)
    by_separators = _resolved(manager, config, separator.join(parts))
    cuts = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]
    chars = [at for pair in zip(cuts[:-2], cuts[1:-1], strict=True) for at in pair]
    by_characters = _resolved(manager, config, "".join(parts), redknot_segment_chars=chars)
    kept = [pair for pair in zip(by_characters[1][::2], by_characters[1][1::2], strict=True)]
    assert by_characters[0] == by_separators[0]
    assert kept == list(zip(by_separators[1][::2], by_separators[1][1::2], strict=True)) and len(kept) == 4
    text = SegmentText(manager, config)
    for (start, end), part in zip(kept, parts[1:-1], strict=True):
        assert text.segment("it", part) == by_separators[0][start:end]
    assert text.lead(parts[0]) == by_separators[0][: kept[0][0]]


def test_a_document_is_the_same_whatever_stands_beside_it(tokenizer: Any) -> None:
    config = RedKnotConfig(Path("map.json"), repair="none")
    manager, document = _manager(tokenizer, DEFAULT_SEPARATOR), " ".join(WORDS[20:40])
    found = set()
    for lead, other in (("", "x"), (WORDS[1], ""), (WORDS[1] + " ", " " + WORDS[2]), ("  ", "  ")):
        tokens, (start, end, *_) = _resolved(manager, config, DEFAULT_SEPARATOR.join([lead, document, other, "?"]))
        found.add(tuple(tokens[start:end]))
    assert len(found) == 1


def test_a_document_with_unknown_characters_is_a_segment(tokenizer: Any) -> None:
    config, manager = RedKnotConfig(Path("map.json"), repair="none"), _manager(tokenizer, DEFAULT_SEPARATOR)
    document = f"{WORDS[20]} \u4e2d {WORDS[21]}"
    tokens, offsets = _resolved(manager, config, DEFAULT_SEPARATOR.join([WORDS[1], document, WORDS[2]]))
    assert len(offsets) == 2 and tokens[slice(*offsets)] == SegmentText(manager, config).segment("it", document)
    # What begins or ends a message is still no part of a document.
    assert _resolved(manager, config, DEFAULT_SEPARATOR.join(["a", f"{document}</s>{document}", "b"]))[1] == []


def test_the_token_of_an_end_is_special_though_it_also_stands_for_what_is_unknown() -> None:
    made = _trained("byte level", False)
    made.unk_token = made.eos_token
    assert made.eos_token_id in special_ids(made)


@pytest.mark.parametrize("separator", ["<s>", "</s>"])
def test_a_separator_that_every_prompt_has_is_refused(separator: str) -> None:
    made = _trained("metaspace first", True)
    if separator == "<s>":
        with pytest.raises(RedKnotError, match="puts into every prompt: choose another text"):
            separator_id(made, separator)
    else:
        assert separator_id(made, separator) == made.eos_token_id


def test_a_token_that_swallows_a_separator_is_refused_and_not_an_error_of_ours(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("b###", normalized=False)])
    config, manager = RedKnotConfig(Path("map.json"), repair="none", separator="###"), _manager(tokenizer, "###")
    with pytest.raises(RedKnotError, match="the end of a part together with the separator ### would be cut"):
        _resolved(manager, config, "ab" + "cc" + "d", redknot_segment_chars=[2, 4])


@pytest.mark.parametrize("space", ["", " ", "  "])
def test_a_word_of_the_vocabulary_separates_with_and_without_spaces(tokenizer: Any, space: str) -> None:
    separator = WORDS[3]
    config, manager = (
        RedKnotConfig(Path("map.json"), repair="none", separator=separator),
        _manager(tokenizer, separator),
    )
    document = " ".join(word for word in WORDS[20:30] if separator not in word)
    text = f"{WORDS[5]}{space}{separator}{space}{document}{space}{separator}{space}{WORDS[6]}"
    tokens, (start, end) = _resolved(manager, config, text)
    assert 0 < start < end < len(tokens) and manager.redknot_separator not in tokens
    assert document in tokenizer.decode(tokens[start:end])


def test_characters_beside_separators_are_refused(tokenizer: Any) -> None:
    config, manager = RedKnotConfig(Path("map.json"), repair="none"), _manager(tokenizer, DEFAULT_SEPARATOR)
    with pytest.raises(RedKnotError, match="use one of them"):
        _resolved(manager, config, f"a{DEFAULT_SEPARATOR}b", redknot_segment_chars=[0, 1])


def test_a_border_that_would_make_a_separator_is_refused(tokenizer: Any) -> None:
    # "ccab" + "abab" would be cut behind "cc".
    config, manager = RedKnotConfig(Path("map.json"), repair="none", separator="abab"), _manager(tokenizer, "abab")
    with pytest.raises(RedKnotError, match="another --redknot-separator"):
        _resolved(manager, config, "ccab" + "cc", redknot_segment_chars=[4, 5])
    tokens, offsets = _resolved(manager, config, "ccba" + "cc", redknot_segment_chars=[4, 5])
    assert tokens[slice(*offsets)] == tokenizer.encode("abab" + "c", add_special_tokens=False)[1:]
