# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.config import DEFAULT_SEPARATOR as SEP
from redknot_sglang.route.facts import Facts, read_facts, slots_of
from redknot_sglang.route.parts import MOST_BLOCKS
from redknot_sglang.route.requests import read_request, read_segments

FACTS = Facts()
A, B = "The first document. " * 30, "Another one. " * 50
IDS_A, IDS_B = list(range(100, 400)), list(range(900, 1000))
SEGMENTED = {"redknot_mode": "segmented"}


def documents(path: str, body: dict[str, Any], facts: Facts = FACTS) -> list[bytes]:
    """Keys of the documents of all prompts."""
    return [part.key for prompt in read_request(path, body, facts).prompts for part in prompt.documents]


def generate(prompt: Any, custom: dict[str, Any] | None = None, facts: Facts = FACTS, **body: Any) -> list[bytes]:
    field = "text" if isinstance(prompt, str) else "input_ids"
    return documents("/generate", {field: prompt, "sampling_params": {"custom_params": custom}, **body}, facts)


def test_a_document_is_the_same_wherever_it_stands_and_however_text_names_it() -> None:
    separated = generate(SEP.join(["lead", A, B, "question"]))
    assert len(set(separated)) == 2
    assert generate(SEP.join(["another lead", B, A, "?"])) == separated[::-1]
    chars = [4, 4 + len(A), 4 + len(A), 4 + len(A) + len(B)]
    assert generate("lead" + A + B + "question", {"redknot_segment_chars": chars}) == separated
    completion = {"prompt": SEP.join(["x", A, B, "y"]), "custom_params": SEGMENTED, "max_tokens": 3}
    assert documents("/v1/completions", completion) == separated
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": SEP.join(["", A, B, "?"])}]
    assert documents("/v1/chat/completions", {"messages": messages}) == separated
    parts = [{"role": "user", "content": [{"type": "text", "text": SEP.join(["", A, B, "?"])}]}]
    assert documents("/v1/chat/completions", {"messages": parts}) == separated


def test_ids_are_the_same_by_offsets_and_by_the_separators_token() -> None:
    offsets = {"redknot_segments": [2, 302, 302, 402]}
    named = generate([1, 2, *IDS_A, *IDS_B, 3], offsets)
    assert len(set(named)) == 2
    facts = Facts(separator_token=5000)
    assert generate([1, 5000, *IDS_A, 5000, *IDS_B, 5000, 3], facts=facts) == named
    assert documents(
        "/v1/completions", {"prompt": [7, *IDS_A, 3], "custom_params": {"redknot_segments": [1, 301]}}
    ) == [named[0]]


def test_what_needs_a_tokenizer_has_no_documents_but_a_beginning() -> None:
    body = {"text": A + B, "sampling_params": {"custom_params": {"redknot_segments": [3, 90]}}}
    (prompt,) = read_request("/generate", body, FACTS).prompts
    assert not prompt.documents and prompt.blocks
    assert generate([1, 5000, *IDS_A, 5000, 3]) == [], "nobody has said which token the separator is"


def test_tenants_share_nothing() -> None:
    text = SEP.join(["", A, "?"])
    keys = [
        *generate(text),
        *generate(text, extra_key="one"),
        *generate(text, extra_key="two"),
        *generate(text, lora_path="adapter"),
        *documents("/v1/completions", {"prompt": text, "cache_salt": "salt", "extra_key": "one"}),
    ]
    assert len(set(keys)) == 5
    assert generate(text, extra_key="saltone") == [keys[4]], "SGLang puts the salt in front"
    assert documents("/v1/completions", {"prompt": text, "model": "base:adapter"}) == [keys[3]]
    assert documents("/v1/completions", {"prompt": text, "model": "base"}) == [keys[0]]


def test_policies_of_one_kind_share_documents() -> None:
    text = SEP.join(["", A, "?"])
    by = {name: generate(text, {"redknot_repair": name}) for name in ("none", "boundary:16", "blend:0.1", "blend:0.2")}
    assert by["none"] == by["boundary:16"] != by["blend:0.1"] == by["blend:0.2"]
    assert generate(text, facts=Facts(repair="blend:0.3")) == by["blend:0.1"]
    assert generate(text, {"redknot_repair": "no such policy"})


def test_the_lead_matters_where_documents_are_computed_behind_it() -> None:
    one, other = SEP.join(["one", A, B, "?"]), SEP.join(["other", A, B, "?"])
    assert generate(one) == generate(other)
    behind = Facts(lead="lead")
    assert generate(one, facts=behind) != generate(other, facts=behind)
    question = {"redknot_repair": "question:2"}
    assert generate(one, question) != generate(other, question)
    preloaded = read_segments({"segments": [A, B], "lead": "one", "repair": "question:2"}, FACTS)
    assert preloaded is not None and [part.key for part in preloaded] == generate(one, question)


def test_what_is_preloaded_is_what_requests_ask_for() -> None:
    preloaded = read_segments({"segments": [A, IDS_A], "extra_key": "t"}, FACTS)
    assert preloaded is not None
    keys = [part.key for part in preloaded]
    assert generate(SEP.join(["x", A, "?"]), extra_key="t") == keys[:1]
    assert generate([1, *IDS_A, 2], {"redknot_segments": [1, 301]}, extra_key="t") == keys[1:]
    for wrong in ({}, {"segments": "text"}, {"segments": [None]}, {"segments": [["x"]]}, [A]):
        assert read_segments(wrong, FACTS) is None


@pytest.mark.parametrize(
    ("mode", "custom", "count"),
    [
        (None, {}, 1),
        ("segmented", {}, 1),
        ("exact", {}, 0),
        ("exact", SEGMENTED, 1),
        ("segmented", {"redknot_mode": "exact"}, 0),
    ],
)
def test_separators_name_documents_in_segmented_mode_only(mode: str | None, custom: dict[str, Any], count: int) -> None:
    assert len(generate(SEP.join(["", A, "?"]), custom, Facts(mode=mode))) == count


def test_a_conversation_keeps_its_beginning() -> None:
    first = [{"role": "user", "content": "Tell me something. " * 20}]
    second = [*first, {"role": "assistant", "content": "Well."}, {"role": "user", "content": "More."}]
    one, two = (read_request("/v1/chat/completions", {"messages": m}, FACTS).prompts[0] for m in (first, second))
    assert two.blocks[: len(one.blocks)] == one.blocks
    changed = [{"role": "system", "content": "Be brief."}, *second]
    (other,) = read_request("/v1/chat/completions", {"messages": changed}, FACTS).prompts
    assert not {part.key for part in other.blocks} & {part.key for part in two.blocks}
    tenant = read_request("/v1/chat/completions", {"messages": first, "cache_salt": "s"}, FACTS).prompts[0]
    assert tenant.blocks != one.blocks


def test_sizes_are_tokens() -> None:
    wanted = read_request(
        "/generate", {"input_ids": list(range(5000)), "sampling_params": {"max_new_tokens": 9}}, FACTS
    )
    assert (wanted.prompts[0].tokens, wanted.answer_tokens, wanted.tokens) == (5000, 9, 5009)
    long = read_request("/v1/completions", {"prompt": "x" * 4_000_000, "max_tokens": 10**9}, FACTS)
    assert len(long.prompts[0].blocks) == MOST_BLOCKS and long.prompts[0].tokens == 1_000_000
    assert long.answer_tokens == 512
    assert read_request("/v1/embeddings", {"input": ["a", "b"]}, FACTS).answer_tokens == 0


def test_every_prompt_of_a_batch_has_its_own_options() -> None:
    body: dict[str, Any] = {
        "text": [SEP.join(["", A, "?"]), SEP.join(["", A, "?"])],
        "extra_key": ["t", "u"],
        "sampling_params": [{"custom_params": SEGMENTED}, {"custom_params": {"redknot_mode": "exact"}}],
    }
    first, second = read_request("/generate", body, Facts(mode="exact")).prompts
    assert [part.key for part in first.documents] == generate(body["text"][0], extra_key="t")
    assert not second.documents


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
NAMES = (
    "text",
    "input_ids",
    "messages",
    "prompt",
    "sampling_params",
    "custom_params",
    "extra_key",
    "model",
    "n",
    "tools",
)
CUSTOM = st.dictionaries(
    st.sampled_from(["redknot_mode", "redknot_segments", "redknot_segment_chars", "redknot_repair"]), JSON, max_size=3
)


@given(
    path=st.sampled_from(["/generate", "/v1/chat/completions"]),
    body=st.dictionaries(st.sampled_from(NAMES), JSON),
    custom=CUSTOM,
)
def test_no_body_is_too_strange(path: str, body: dict[str, Any], custom: dict[str, Any]) -> None:
    for one in (body, {**body, "custom_params": custom}, {**body, "sampling_params": {"custom_params": custom}}):
        read_request(path, one, FACTS)
        read_segments({**one, "segments": [body.get("text")]}, FACTS)


def test_facts_come_from_the_status() -> None:
    told = {"segments": {"mode": "segmented", "repair": "blend:0.1", "lead": "lead", "separator": "##"}}
    assert read_facts(told, 7) == Facts("segmented", "blend:0.1", "lead", "##", 7)
    some: list[Any] = [None, [], {}, {"segments": 1}, {"segments": {"separator": 3, "lead": None}}]
    for strange in some:
        assert read_facts(strange) == FACTS
    assert slots_of({"classes": {"global": {"slots": 9}}, "tree": {"global": {"evictable": 2, "protected": 3}}}) == (
        9,
        5,
    )
    assert slots_of({"tree": None}) is None
