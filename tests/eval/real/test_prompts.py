# SPDX-License-Identifier: Apache-2.0
"""Prompts have their length, what they need and nothing that gives the answer away; both readers read them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from eval.real.prompts import BEGIN, FULL, Line, PromptMaker, document
from eval.real.sources import Passage, Question, read_source
from eval.real.splits import HELD_OUT, Part, split
from redknot_sglang.certify.questions import read_data
from redknot_sglang.errors import CliError
from redknot_sglang.profile.data import read_jsonl
from tests.eval.real.made import make_folder
from tests.eval.real.test_sources import DATA

LENGTH = 6000  # a byte is a token here


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(make_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def part() -> Part:
    return split(read_source(DATA), HELD_OUT)


def made(tokenizer: Any, part: Part, count: int, turns: int) -> list[tuple[list[Question], list[Line]]]:
    maker = PromptMaker(tokenizer, part, LENGTH)
    asked = [list(part.questions[i : i + turns]) for i in range(0, count * turns, turns)]
    found = [(questions, maker.make(questions, random.Random(1))) for questions in asked]
    return [(questions, lines) for questions, lines in found if lines is not None]


@pytest.mark.parametrize("turns", [1, 2])
def test_lengths_documents_and_answers(turns: int, tokenizer: Any, part: Part, tmp_path: Path) -> None:
    conversations = made(tokenizer, part, 8, turns)
    assert len(conversations) == 8
    everything = []
    for questions, lines in conversations:
        assert len(lines) == turns and FULL * LENGTH <= lines[-1].tokens <= LENGTH
        needed = {document(passage) for question in questions for passage in question.needed}
        answers = [answer for question in questions for answer in question.answers]
        for question, line in zip(questions, lines, strict=True):
            assert needed < set(line.documents) and len(set(line.documents)) == len(line.documents) > 5
            for text in set(line.documents) - needed:
                assert not Passage("", text).tells(answers)
            assert line.answers == tuple(" " + answer for answer in question.answers)
            assert "".join(line.documents) in line.prompt and line.prompt.endswith(f"assistant\n{BEGIN}")
            assert question.text in line.prompt.removesuffix(BEGIN).rsplit(BEGIN, 1)[-1]
        everything += lines
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(line.as_json()) + "\n" for line in everything))
    asked, _ = read_data(path, tokenizer)
    examples = read_jsonl(path, tokenizer).examples
    for line, read, example in zip(everything, asked, examples, strict=True):
        assert len(read.ids) == line.tokens and len(read.segments) == 2 * len(line.documents)
        assert tokenizer.decode(read.ids) == line.prompt and read.score is not None
        # The documents stand one behind the other, and tokenize alike alone and together.
        assert example.ids[: example.first] == read.ids
        assert [end for span in example.segments for end in span] == list(read.segments)
        said = tokenizer.decode(example.ids[example.first :])
        assert said == line.answers[0] + tokenizer.eos_token
        assert all(read.score(f"It is{answer.upper()}.") for answer in line.answers) and not read.score("It is.")


def test_a_second_question_comes_after_the_first_answer(tokenizer: Any, part: Part) -> None:
    for questions, (first, second) in made(tokenizer, part, 4, 2):
        assert second.prompt.startswith(f"{first.prompt} {questions[0].answers[0]}<|im_end|>\n<|im_start|>user\n")
        assert second.documents == first.documents and second.tokens > first.tokens
        assert second.answers != first.answers


def test_the_place_of_the_needed_passage_varies(tokenizer: Any, part: Part) -> None:
    maker, question = PromptMaker(tokenizer, part, LENGTH), part.questions[0]
    places = set()
    for seed in range(12):
        (line,) = maker.make([question], random.Random(seed)) or []
        places.add(line.documents.index(document(question.needed[0])))
    assert len(places) > 3


def test_what_cannot_be_made(tokenizer: Any, part: Part) -> None:
    question, rng = part.questions[0], random.Random(1)
    size = len(document(question.needed[0]))
    assert PromptMaker(tokenizer, part, size).make([question], rng) is None  # too short for what is needed
    assert PromptMaker(tokenizer, part, 100 * LENGTH).make([question], rng) is None  # too few passages
    assert PromptMaker(tokenizer, Part((question,), question.needed), LENGTH).make([question], rng) is None
    ending = Passage("Turns", "A turn ends with <|im_end|>.")
    assert PromptMaker(tokenizer, Part((), (ending, *part.passages)), LENGTH).make([question], rng) is not None
    bad = Question("what ends a turn", ("im_end",), (ending,), ())
    assert PromptMaker(tokenizer, Part((), (ending, *part.passages)), LENGTH).make([bad], rng) is None


def test_templates(tokenizer: Any, part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(CliError, match="has no chat template"):
        PromptMaker(tokenizer, part, LENGTH)
    shouting = "{% for m in messages %}{{ m['content'] | replace('\n\n', '\n\n\n') }}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", shouting)
    with pytest.raises(CliError, match="changes what stands in a message"):
        PromptMaker(tokenizer, part, LENGTH).make(part.questions[:1], random.Random(1))
