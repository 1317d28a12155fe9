# SPDX-License-Identifier: Apache-2.0
"""Public questions with the passages that answer them, from the files in which they are published.

Read as JSON lines, one JSON list, or either of them gzipped. An entry has a `question`, its right answers as `answers`, or as
`answer` and `answer_aliases`, and its passages in one of three ways:

- `title` and `text`: the one passage that answers it;
- `ctxs`, each with `title` and `text`, and with `isgold` where it is known which one answers it (Natural Questions);
- `paragraphs`, each with `title`, `paragraph_text` and `is_supporting` (MuSiQue).
"""

from __future__ import annotations

import gzip
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from redknot_sglang.errors import CliError


@dataclass(frozen=True)
class Passage:
    """A text and the title of the page that it comes from, empty if nobody knows."""

    title: str
    text: str

    @property
    def page(self) -> str:
        """What tells its page from others."""
        return self.title or self.text

    @cached_property
    def words(self) -> str:
        """`words` of the whole passage."""
        return words(f"{self.title} {self.text}")

    @cached_property
    def _all_letters(self) -> str:
        return _letters(f"{self.title} {self.text}")

    def tells(self, answers: Iterable[str]) -> bool:
        """Whether one of the answers occurs in it: as words, or letter by letter, as completions are judged."""
        return any(words(answer) in self.words or _letters(answer) in self._all_letters for answer in answers)


@dataclass(frozen=True)
class Question:
    """A question. needed: the passages that answer it together. others: passages published with it that need not."""

    text: str
    answers: tuple[str, ...]
    needed: tuple[Passage, ...]
    others: tuple[Passage, ...]


def words(text: str) -> str:
    """Lower-case words without accents, with a space before, between and after them: contained means contained as words."""
    bare = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " " + " ".join("".join(c if c.isalnum() else " " for c in bare).casefold().split()) + " "


def _letters(text: str) -> str:
    return " ".join(text.split()).casefold()


def read_source(path: Path) -> list[Question]:
    """All questions of a file, in its order. Raises CliError, which names the entry."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CliError(f"{path} cannot be read: {error}; docs/real-models.md says where such files are") from error
    found = [_question(entry, f"{path}, entry {number}") for number, entry in enumerate(_entries(path, text), 1)]
    if not found:
        raise CliError(f"{path} has no questions in it")
    return found


def _entries(path: Path, text: str) -> Iterator[Any]:
    try:
        if text.lstrip().startswith("["):
            yield from json.loads(text)
            return
        for line in text.split("\n"):
            if line.strip():
                yield json.loads(line)
    except ValueError as error:
        raise CliError(f"{path} is neither JSON lines nor a JSON list: {error}") from error


def _question(entry: Any, where: str) -> Question:
    try:
        answers = entry["answers"] if "answers" in entry else [entry["answer"], *entry.get("answer_aliases", [])]
        needed, others = _passages(entry)
        made = Question(entry["question"].strip(), tuple(answer.strip() for answer in answers), needed, others)
    except (KeyError, TypeError, AttributeError) as error:
        raise CliError(
            f"{where}: not a question with answers and passages ({error!r}); eval/real/sources.py says how"
        ) from None
    if not made.text or not made.answers or not made.needed:
        raise CliError(f"{where}: question, answers and passages must not be empty")
    return made


def _passages(entry: Mapping[str, Any]) -> tuple[tuple[Passage, ...], tuple[Passage, ...]]:
    """The needed ones and the others. Where nothing tells them apart, all are needed."""
    if "paragraphs" in entry:
        given = [(_passage(p, "paragraph_text"), p["is_supporting"]) for p in entry["paragraphs"]]
    elif "ctxs" in entry:
        told = any("isgold" in p for p in entry["ctxs"])
        given = [(_passage(p, "text"), p["isgold"] if told else True) for p in entry["ctxs"]]
    else:
        given = [(_passage(entry, "text"), True)]
    needed = dict.fromkeys(passage for passage, wanted in given if wanted)
    others = dict.fromkeys(passage for passage, wanted in given if not wanted)
    return tuple(needed), tuple(passage for passage in others if passage not in needed)


def _passage(entry: Mapping[str, Any], key: str) -> Passage:
    return Passage(" ".join((entry.get("title") or "").split()), entry[key].strip())
