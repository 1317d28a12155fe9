# SPDX-License-Identifier: Apache-2.0
"""Every published form gives the same questions; whether a passage tells an answer is decided strictly."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from eval.real.sources import Passage, Question, read_source, words
from redknot_sglang.errors import CliError

DATA = Path(__file__).parents[3] / "eval" / "real" / "data" / "nq_open_64.jsonl.gz"
GOLD, OTHER = Passage("Paris", "Paris is a city."), Passage("Rome", "Rome is one, too.")
ANSWERED: dict[str, Any] = {"question": " what is Paris ", "answers": ["a city ", "city"]}
ALIASES: dict[str, Any] = {"question": "what is Paris", "answer": "a city", "answer_aliases": ["city"]}
PLAIN = {"title": "Paris", "text": "Paris is a city. "}


def ctxs(**gold: bool) -> list[dict[str, Any]]:
    return [{"title": "Rome", "text": OTHER.text, **dict.fromkeys(gold, False)}, {**PLAIN, **gold}]


PARAGRAPHS = [
    {"title": GOLD.title, "paragraph_text": GOLD.text, "is_supporting": True},
    {"title": OTHER.title, "paragraph_text": OTHER.text, "is_supporting": False},
]


@pytest.mark.parametrize(
    ("entry", "needed", "others"),
    [
        ({**ANSWERED, **PLAIN}, (GOLD,), ()),
        ({**ANSWERED, "ctxs": ctxs(isgold=True)}, (GOLD,), (OTHER,)),
        ({**ANSWERED, "ctxs": ctxs()}, (OTHER, GOLD), ()),
        ({**ALIASES, "paragraphs": PARAGRAPHS * 2}, (GOLD,), (OTHER,)),
    ],
)
def test_forms(entry: dict[str, Any], needed: tuple[Passage, ...], others: tuple[Passage, ...], tmp_path: Path) -> None:
    wanted = Question("what is Paris", ("a city", "city"), needed, others)
    path = tmp_path / "source"
    line = json.dumps(entry).encode()
    for content in (line, line + b"\n\n" + line + b"\n", b" [" + line + b"]", gzip.compress(line)):
        path.write_bytes(content)
        assert set(read_source(path)) == {wanted}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no questions in it"),
        (b"{", "is neither JSON lines nor a JSON list"),
        (b"\xff", "cannot be read"),
        (b"\x1f\x8bno", "cannot be read"),
        (
            json.dumps({**ANSWERED, "paragraphs": ctxs()}).encode(),
            r"entry 1: not a question .*KeyError\('paragraph_text'\)",
        ),
        (json.dumps([{**ANSWERED, **PLAIN}, 5]).encode(), "entry 2: not a question"),
        (json.dumps({**ANSWERED, **PLAIN, "answers": []}).encode(), "entry 1: .* must not be empty"),
        (json.dumps({**ANSWERED, "ctxs": []}).encode(), "entry 1: .* must not be empty"),
    ],
)
def test_bad_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "source"
    with pytest.raises(CliError, match="cannot be read.*real-models.md"):
        read_source(path)
    path.write_bytes(content)
    with pytest.raises(CliError, match=message):
        read_source(path)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("Röntgen", True),
        ("rontgen", True),  # without the accent
        ("W. C.  RONTGEN", True),  # the title, without its punctuation
        ("1,901", False),
        ("190", True),  # not a word, but a completion with 1901 would be judged right
        ("physic", True),
        ("Wilhelm  in", True),  # not next to each other as written, but as words
        ("chemistry", False),
    ],
)
def test_telling(answer: str, told: bool) -> None:
    passage = Passage("W.C. Rontgen", "The first prize in physics went to Röntgen (Wilhelm), in 1901.")
    assert passage.tells(["never said", answer]) == told


def test_words() -> None:
    assert words(" Café-Crème,  2\n") == " cafe creme 2 "


def test_tracked_file() -> None:
    questions = read_source(DATA)
    assert len(questions) == 64
    assert all(len(question.needed) == 1 and question.needed[0].tells(question.answers) for question in questions)
