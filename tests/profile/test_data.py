# SPDX-License-Identifier: Apache-2.0
"""The user's own prompts: what is read, what is refused, where segments lie."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from redknot_sglang.errors import DataError, ProfileError
from redknot_sglang.profile.data import encode, random_data, read_jsonl, task_data

MODEL = Path(__file__).parents[2] / "eval" / "model"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


def written(path: Path, *entries: object) -> Path:
    path.write_text("".join((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in entries))
    return path


def test_prompts_with_and_without_answers(tokenizer: Any, tmp_path: Path) -> None:
    file = written(tmp_path / "d.jsonl", {"prompt": "Report kram:", "answer": "Paris"}, "", {"prompt": "one two three"})
    data = read_jsonl(file, tokenizer)
    first, second = data.examples
    assert tokenizer.decode(first.ids[: first.first]) == "Report kram:"
    assert tokenizer.decode(first.ids[first.first :]) == "Paris<|end|>"
    assert second.first == 1 and tokenizer.decode(second.ids) == "one two three"
    found = data.describe()
    assert (found["source"], found["name"], found["seeds"], found["lengths"]) == ("jsonl", "d.jsonl", [], [])
    assert (found["examples"], found["with_answers"], found["with_documents"]) == (2, 1, 0)


def test_segments_are_the_tokens_inside_the_documents(tokenizer: Any) -> None:
    documents = ["Report kram:\nblue\n", "x", "Report kram:\nblue\n"]
    prompt = "<|bos|>" + "".join(documents) + "Question:\n"
    example = encode(tokenizer, prompt, ["Paris"], documents)
    assert [tokenizer.decode(example.ids[a:b]) for a, b in example.segments] == documents
    with pytest.raises(ProfileError, match="document 1 does not stand in the prompt behind those before it"):
        encode(tokenizer, prompt, [], [documents[0], "absent"])
    with pytest.raises(ProfileError, match="document 1 does not"):
        encode(tokenizer, prompt, [], ["x", "x"])


def test_the_first_of_several_answers_is_the_one_of_the_loss(tokenizer: Any, tmp_path: Path) -> None:
    one = read_jsonl(written(tmp_path / "one.jsonl", {"prompt": "Report kram:", "answer": "Paris"}), tokenizer)
    several = written(tmp_path / "several.jsonl", {"prompt": "Report kram:", "answers": ["Paris", "Rome"]})
    assert read_jsonl(several, tokenizer).examples == one.examples
    turned = written(tmp_path / "turned.jsonl", {"prompt": "Report kram:", "answers": ["Rome", "Paris"]})
    assert read_jsonl(turned, tokenizer).examples != one.examples


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "x y", "anwser": "a"}, "line 2: unknown key 'anwser'; known: prompt, answer, answers, documents"),
        ({"prompt": "x y", "documents": ["z"]}, "line 2: document 0 does not stand in the prompt"),
        ({"prompt": "Report"}, "line 2: a prompt without an answer needs at least two tokens"),
    ],
)
def test_bad_lines(line: object, message: str, tokenizer: Any, tmp_path: Path) -> None:
    file = written(tmp_path / "d.jsonl", {"prompt": "one two"}, line)
    with pytest.raises(DataError) as caught:
        read_jsonl(file, tokenizer)
    assert str(caught.value).startswith(f"{file}, {message}")


def test_tasks_with_several_answers_give_the_first(tokenizer: Any) -> None:
    example = SimpleNamespace(answers=["Paris", "Rome"], answer="Rome", documents=[])
    tasks = SimpleNamespace(
        make_example=lambda *_: example, messages=lambda _: [{"role": "user", "content": "Report kram:"}]
    )
    data = task_data(tasks, ["t"], [8], 1, 0, tokenizer)
    assert tokenizer.decode(data.examples[0].ids[data.examples[0].first :]) == "Paris<|end|>"


def test_random_ids() -> None:
    data = random_data(100, [5, 7], 2, 3)
    assert [len(e.ids) for e in data.examples] == [5, 7, 5, 7] and data.seeds == (3, 4)
    assert len({e.ids for e in data.examples}) == 4 and data == random_data(100, [5, 7], 2, 3)


def test_holders_are_the_documents_with_an_answer_in_them(tokenizer: Any) -> None:
    documents = ["It was PARIS, they say.\n", "Parisians are no answer.\n", "x", "It was the red, blue one.\n"]
    prompt = "<|bos|>" + "".join(documents) + "Question:\n"
    assert encode(tokenizer, prompt, ["Paris", "red blue"], documents).holders == (0, 3)
    assert encode(tokenizer, prompt, ["Rome", "..."], documents).holders == ()
    assert encode(tokenizer, prompt, [], documents).holders == ()
