# SPDX-License-Identifier: Apache-2.0
"""The task families: deterministic, of the asked length, and answerable from the documents alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from eval.tasks import TASKS, Example, make_conversation, make_example, messages, render, score
from eval.tasks.examples import CONVERSATION, EVALUATION, TRAFFIC, TRAINING
from eval.tasks.vocabulary import SEG, VOCAB_SIZE, decode, encode

MODEL = Path(__file__).parents[2] / "eval" / "model"
NAMES = sorted(TASKS)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def known_facts(documents: list[str]) -> dict[tuple[str, str], list[str]]:
    """Lines `A B C ...` of the documents by their key (A, B)."""
    lines = [line.split() for document in documents for line in document.splitlines()]
    return {(words[0], words[1]): words[2:] for words in lines if len(words) >= 3}


def solve(example: Example) -> str:
    """The answer worked out from the text, by rules written independently of the generator."""
    facts = known_facts(example.documents)
    words = example.question.rstrip("?").split()
    if example.task == "lookup":
        return " ".join([*words, *facts[words[0], words[1]]])
    if example.task == "multivalue":
        found = [(o, facts[o, words[1]]) for o in ("first", "second", "third", "fourth") if (o, words[1]) in facts]
        assert [values[1:] for _, values in found] == [["more"]] * (len(found) - 1) + [[]]
        return "\n".join(" ".join([o, words[1], *values]) for o, values in found)
    if example.task == "tracking":
        steps, at = [], words[1]
        while not at.isdigit():
            steps.append(f"var {at} {facts['var', at][0]}")
            at = facts["var", at][0]
        return "\n".join(steps)
    if example.task == "twohop":
        boss = facts["manager", words[2]][0]
        return f"manager {words[2]} {boss}\n{words[0]} {boss} {facts[words[0], boss][0]}"
    mark = facts[words[0], words[1]][0]
    meaning = facts[("code" if words[0] == "box" else "theme"), mark][0]
    return f"{words[0]} {words[1]} {meaning}"


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), length=st.integers(160, 1500))
def test_answer_follows_from_documents(name: str, seed: int, length: int) -> None:
    example = make_example(name, length, seed)
    assert solve(example) == example.answer
    assert len(encode(render(example))) == length
    assert make_example(name, length, seed) == example


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [160, 2048, 8192])
def test_length_counts_tokens_of_the_shipped_tokenizer(tokenizer: Tokenizer, name: str, length: int) -> None:
    assert len(tokenizer.encode(render(make_example(name, length, 1))).ids) == length


def test_seeds_and_streams_differ() -> None:
    examples = [make_example("lookup", 512, seed) for seed in range(40)]
    assert len({render(e) for e in examples}) == 40
    assert len({TRAINING, EVALUATION, CONVERSATION, TRAFFIC}) == 4


@pytest.mark.parametrize("seed", range(20))
def test_crossdoc_needs_an_earlier_document(seed: int) -> None:
    example = make_example("crossdoc", 800, seed)
    *key, value = example.answer.split()
    holding = next(i for i, d in enumerate(example.documents) if tuple(key) in known_facts([d]))
    if key[0] != "box":
        assert value not in example.documents[holding].split()
    mark = known_facts(example.documents)[key[0], key[1]][0]
    meant = next(i for i, d in enumerate(example.documents) for k in ("code", "theme") if (k, mark) in known_facts([d]))
    assert meant < holding


@pytest.mark.parametrize("name", NAMES)
def test_documents_tokenize_alike_alone_and_together(tokenizer: Tokenizer, name: str) -> None:
    example = make_example(name, 1024, 3)
    alone = [i for document in example.documents for i in tokenizer.encode(document).ids]
    assert tokenizer.encode("".join(example.documents)).ids == alone
    assert tokenizer.encode("".join(reversed(example.documents))).ids == [
        i for document in reversed(example.documents) for i in tokenizer.encode(document).ids
    ]
    assert all(document.endswith("\n") and document.startswith("Report ") for document in example.documents)


@given(st.text(max_size=80))
@settings(max_examples=150, deadline=None)
def test_tokenizer_is_lossless(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert max(ids, default=0) < VOCAB_SIZE


@pytest.mark.parametrize("separator", ["", SEG])
def test_own_encoder_equals_tokenizer(tokenizer: Tokenizer, separator: str) -> None:
    for name in NAMES:
        example = make_example(name, 700, 5)
        text = render(example, separator) + example.answer
        assert encode(text) == tokenizer.encode(text).ids
        assert decode(encode(text)) == text
        assert text.count(SEG) == (len(example.documents) + 1 if separator else 0)


def test_messages_carry_the_rendered_prompt() -> None:
    example = make_example("twohop", 400, 2)
    assert [m["role"] for m in messages(example)] == ["system", "user"]
    assert re.sub(r"<\|\w+\|>", "", render(example)) == "".join(m["content"] for m in messages(example))


def test_score_is_exact() -> None:
    example = make_example("multivalue", 512, 0)
    assert score(example, example.answer)
    assert score(example, f" {example.answer}<|end|><|user|>more text")
    assert not score(example, example.answer.splitlines()[0])
    assert not score(example, example.answer + " more")
    assert not score(example, "")


def test_bad_requests_are_refused() -> None:
    with pytest.raises(KeyError):
        make_example("riddle", 512, 0)
    with pytest.raises(ValueError, match="too short"):
        make_example("lookup", 100, 0)
    with pytest.raises(ValueError, match="at least one turn"):
        make_conversation(2048, 0, 0)


@pytest.mark.parametrize("seed", range(10))
def test_conversation_asks_only_what_was_given(seed: int) -> None:
    conversation = make_conversation(2000, 6, seed)
    assert make_conversation(2000, 6, seed) == conversation
    given: list[str] = []
    for turn in conversation.turns:
        given += turn.documents
        assert solve(Example(conversation.system, given, turn.question, turn.answer, turn.task)) == turn.answer
    assert sum(bool(turn.documents) for turn in conversation.turns) > 1
    assert len(encode("".join(given))) == 2000
