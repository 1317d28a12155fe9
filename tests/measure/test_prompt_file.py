# SPDX-License-Identifier: Apache-2.0
"""Files of the user's own prompts: what is read, and what is refused in words that help."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from redknot_sglang.errors import DataError
from redknot_sglang.measure.prompt_file import Prompt, read_prompts


def written(path: Path, *entries: object) -> Path:
    lines = [entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False) for entry in entries]
    path.write_bytes("\n".join(lines).encode())
    return path


def test_answers_may_be_none_one_or_several(tmp_path: Path) -> None:
    file = written(
        tmp_path / "d.jsonl",
        {"prompt": "a"},
        {"prompt": "b", "answer": "1"},
        "",
        {"prompt": "c d", "answers": ["1", "one"], "documents": ["d"]},
        {"prompt": "e", "answer": None},
    )
    prompts, sha256 = read_prompts(file, other_keys=False)
    assert prompts == [
        Prompt(f"{file}, line 1", "a", (), ()),
        Prompt(f"{file}, line 2", "b", ("1",), ()),
        Prompt(f"{file}, line 4", "c d", ("1", "one"), ("d",)),
        Prompt(f"{file}, line 5", "e", (), ()),
    ]
    assert sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_characters_that_python_takes_for_line_ends_may_stand_in_texts(separator: str, tmp_path: Path) -> None:
    text = f"one{separator}two"
    # Control characters are escaped in JSON, the others need not be.
    prompts, _ = read_prompts(written(tmp_path / "d.jsonl", {"prompt": text}), other_keys=False)
    assert [prompt.prompt for prompt in prompts] == [text]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_may_end_in_any_way_and_the_file_may_begin_with_a_mark(end: bytes, tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + end.join([b'{"prompt": "a"}', b'{"prompt": "b"}', b""]))
    assert [prompt.prompt for prompt in read_prompts(file, other_keys=False)[0]] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ([1], "not an object with a prompt"),
        ({"answer": "x"}, "not an object with a prompt"),
        ({"prompt": ""}, "not an object with a prompt"),
        ({"prompt": 3}, "not an object with a prompt"),
        ({"prompt": "x", "answer": " "}, "answer must be text that is not blank"),
        ({"prompt": "x", "answer": ["a"]}, "answer must be text that is not blank"),
        ({"prompt": "x", "answers": "a"}, "answers must be a list of at least one text"),
        ({"prompt": "x", "answers": []}, "answers must be a list of at least one text"),
        ({"prompt": "x", "answers": None}, "answers must be a list of at least one text"),
        ({"prompt": "x", "answers": ["a", ""]}, "answers must be a list of at least one text"),
        ({"prompt": "x", "answers": ["a", 4]}, "answers must be a list of at least one text"),
        ({"prompt": "x", "answer": "a", "answers": ["a"]}, "answer and answers are both given"),
        ({"prompt": "x", "documents": "x"}, "documents must be a list"),
        ({"prompt": "x", "documents": [""]}, "documents must be a list"),
        ({"prompt": "x", "documents": None}, "documents must be a list"),
        ({"prompt": "x", "id": 7}, "unknown key 'id'; known: prompt, answer, answers, documents"),
    ],
)
def test_wrong_lines_are_named(line: object, message: str, tmp_path: Path) -> None:
    file = written(tmp_path / "d.jsonl", {"prompt": "fine"}, line)
    with pytest.raises(DataError) as caught:
        read_prompts(file, other_keys=False)
    assert str(caught.value).startswith(f"{file}, line 2: {message}")


def test_other_keys_may_be_allowed(tmp_path: Path) -> None:
    file = written(tmp_path / "d.jsonl", {"prompt": "fine", "id": 7})
    assert read_prompts(file, other_keys=True)[0] == [Prompt(f"{file}, line 1", "fine", (), ())]


def test_files_that_hold_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no prompts in it"):
        read_prompts(written(tmp_path / "d.jsonl", ""), other_keys=True)
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read as UTF-8 text"):
        read_prompts(tmp_path / "b", other_keys=True)
    with pytest.raises(DataError, match="nowhere cannot be read: No such file"):
        read_prompts(tmp_path / "nowhere", other_keys=True)
