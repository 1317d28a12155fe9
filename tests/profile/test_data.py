# SPDX-License-Identifier: Apache-2.0
"""The user's own prompts: what is read, what is refused, where segments lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from redknot_sglang.errors import ProfileError
from redknot_sglang.profile.data import encode, random_data, read_jsonl

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
    example = encode(tokenizer, prompt, "Paris", documents)
    assert [tokenizer.decode(example.ids[a:b]) for a, b in example.segments] == documents
    with pytest.raises(ProfileError, match="document 1 does not stand in the prompt behind those before it"):
        encode(tokenizer, prompt, None, [documents[0], "absent"])
    with pytest.raises(ProfileError, match="document 1 does not"):
        encode(tokenizer, prompt, None, ["x", "x"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ([1], "line 2: must be an object with a prompt"),
        ({"answer": "x"}, "line 2: prompt must be a string"),
        ({"prompt": ""}, "line 2: prompt must be a string"),
        ({"prompt": 3}, "line 2: prompt must be a string"),
        ({"prompt": "x y", "answer": ""}, "line 2: prompt must be a string that is not empty, answer too"),
        ({"prompt": "x y", "answers": ["a"]}, "line 2: unknown key 'answers'; known: prompt, answer, documents"),
        ({"prompt": "x y", "documents": "x"}, "line 2: documents must be a list"),
        ({"prompt": "x y", "documents": [""]}, "line 2: documents must be a list"),
        ({"prompt": "x y", "documents": ["z"]}, "line 2: document 0 does not stand in the prompt"),
        ({"prompt": "Report"}, "line 2: a prompt without an answer needs at least two tokens"),
    ],
)
def test_bad_lines(line: object, message: str, tokenizer: Any, tmp_path: Path) -> None:
    file = written(tmp_path / "d.jsonl", {"prompt": "one two"}, line)
    with pytest.raises(ProfileError) as caught:
        read_jsonl(file, tokenizer)
    assert str(caught.value).startswith(f"{file}, {message}")


def test_files_without_prompts(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no prompts in it"):
        read_jsonl(written(tmp_path / "d.jsonl", ""), tokenizer)
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileError, match="cannot be read as UTF-8 text"):
        read_jsonl(tmp_path / "b", tokenizer)


def test_random_ids() -> None:
    data = random_data(100, [5, 7], 2, 3)
    assert [len(e.ids) for e in data.examples] == [5, 7, 5, 7] and data.seeds == (3, 4)
    assert len({e.ids for e in data.examples}) == 4 and data == random_data(100, [5, 7], 2, 3)
