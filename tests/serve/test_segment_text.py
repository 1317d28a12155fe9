# SPDX-License-Identifier: Apache-2.0
"""Text of a segment becomes the tokens that it is between separators in a request."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from redknot_sglang.config import DEFAULT_SEPARATOR, RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.plan.options import split_at
from redknot_sglang.serve.requests import separator_id, special_ids
from redknot_sglang.serve.segment_text import SegmentText
from redknot_sglang.serve.segments import _checked
from tests.serving.harness import MODEL

CONFIG = RedKnotConfig(Path("map.json"), repair="none")
TEXTS = ("Oslo is", " the capital\n\n", "of Norway.", "  ", "", "é ü 漢字", "x")


@pytest.fixture(params=[False, True], ids=["plain", "with a beginning of its own"])
def manager(request: pytest.FixtureRequest) -> Any:
    """What SegmentText reads of a tokenizer manager; one tokenizer puts a token in front of every prompt."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    if request.param:
        first = tokenizer.convert_tokens_to_ids("<|bos|>")
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", first)]
        )
    return SimpleNamespace(
        tokenizer=tokenizer,
        redknot_separator=separator_id(tokenizer, DEFAULT_SEPARATOR),
        redknot_special=special_ids(tokenizer),
        model_config=SimpleNamespace(vocab_size=2048),
    )


def test_parts_are_those_of_a_request(manager: Any) -> None:
    text = SegmentText(manager, CONFIG)
    for lead in ("", "You are", "You are "):
        prompt = manager.tokenizer.encode(DEFAULT_SEPARATOR.join([lead, *TEXTS, "Where?"]))
        tokens, offsets = split_at(prompt, manager.redknot_separator, manager.redknot_special)
        assert offsets is not None and len(offsets) == 2 * len(TEXTS)
        assert text.lead(lead) == tokens[: offsets[0]]
        for start, end, part in zip(offsets[::2], offsets[1::2], TEXTS, strict=True):
            assert text.segment("it", part) == tokens[start:end]


def test_what_can_be_no_segment_is_refused(manager: Any) -> None:
    text = SegmentText(manager, CONFIG)
    for value, names in (
        (f"a{DEFAULT_SEPARATOR}", "it has the separator"),
        ("a<|end|>", "it has the special token <|end|>"),
        ([1, True], "it must be text or a list of token ids"),
        ({"a": 1}, "it must be text or a list of token ids"),
        ([2048], "token id 2048; give ids of this model, 0 to 2047"),
        ([manager.redknot_separator], "it has"),
    ):
        with pytest.raises(RedKnotError, match=names.replace("|", r"\|")):
            text.segment("it", value)
    with pytest.raises(RedKnotError, match="lead has the separator"):
        text.lead(f"a{DEFAULT_SEPARATOR}")
    assert text.segment("it", [5, 6]) == [5, 6]


def test_without_a_tokenizer_token_ids_are_needed() -> None:
    bare = SimpleNamespace(tokenizer=None, redknot_separator=None, model_config=SimpleNamespace(vocab_size=9))
    text = SegmentText(bare, CONFIG)
    assert text.segment("it", [1, 2]) == [1, 2]
    with pytest.raises(RedKnotError, match="give a list of token ids"):
        text.segment("it", "a")


def test_a_lead_is_given_where_segments_stand_behind_one() -> None:
    after_lead = RedKnotConfig(Path("map.json"), repair="none", segment_lead="lead")
    assert _checked({"segments": [], "lead": ""}, after_lead)["lead"] == ""
    with pytest.raises(RedKnotError, match="lead is missing.*give the text in front of the first segment"):
        _checked({"segments": []}, after_lead)
    with pytest.raises(RedKnotError, match="leave it out"):
        _checked({"segments": [], "lead": "a"}, CONFIG)
