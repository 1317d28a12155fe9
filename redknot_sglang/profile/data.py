# SPDX-License-Identifier: Apache-2.0
"""Calibration data as token ids: generated tasks, the user's JSONL, or random ids for measuring time and memory."""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redknot_sglang.errors import DataError, ProfileError
from redknot_sglang.measure.prompt_file import read_prompts
from redknot_sglang.measure.tasks import right_answers

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Example:
    """A prompt and its answer as token ids.

    ids: the prompt's tokens, then the answer's.
    first: index in `ids` from which tokens are to be predicted: the answer's first, or 1 if there is no answer.
    has_answer: whether there is an answer.
    segments: token spans [start, end) of the documents, ascending and disjoint, all before `first`.
    holders: numbers of the segments whose text has an answer in it.
    """

    ids: tuple[int, ...]
    first: int
    has_answer: bool = False
    segments: Spans = ()
    holders: tuple[int, ...] = ()


@dataclass(frozen=True)
class Data:
    """Examples, and where they come from.

    source: `tasks`, `jsonl`, `text` or `random`.
    name: of the tasks or of the file.
    examples: at least one.
    lengths: tokens that generated prompts were made for, or of pieces of a text.
    seeds: first and last seed of generated data; empty for a file.
    """

    source: str
    name: str
    examples: tuple[Example, ...]
    lengths: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()

    @property
    def sha256(self) -> str:
        """SHA-256, in hex, of token ids, answers' places and segments: of all that the measurements depend on."""
        shown = [[e.ids, e.first, e.segments] for e in self.examples]
        return hashlib.sha256(json.dumps(shown, separators=(",", ":")).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The `data` of a profile, see `record.py`."""
        sizes = [len(e.ids) for e in self.examples]
        return {
            "source": self.source,
            "name": self.name,
            "sha256": self.sha256,
            "examples": len(sizes),
            "with_answers": sum(e.has_answer for e in self.examples),
            "with_documents": sum(bool(e.segments) for e in self.examples),
            "tokens": {"smallest": min(sizes), "mean": sum(sizes) / len(sizes), "largest": max(sizes)},
            "lengths": list(self.lengths),
            "seeds": list(self.seeds),
        }


def encode(tokenizer: Any, prompt: str, answers: Sequence[str], documents: Sequence[str]) -> Example:
    """Tokenize an example.

    tokenizer: the model's, a fast one.
    prompt: text.
    answers: texts that are right, or none. The first one is the example's; behind it comes the tokenizer's end-of-sequence token.
    documents: parts of the prompt, verbatim and in order; a segment is the tokens that lie wholly inside one.
    Raises ProfileError if a document is not in the prompt, or there is no token to predict.
    """
    # A chat's text has its special tokens written out; only to a text without any the tokenizer's own are added.
    bare = not any(token in prompt for token in tokenizer.all_special_tokens)
    found = tokenizer(prompt, add_special_tokens=bare, return_offsets_mapping=bool(documents))
    ids = list(found["input_ids"])
    places = dict(_spans(prompt, documents, found["offset_mapping"])) if documents else {}
    segments = tuple(places.values())
    holders = tuple(at for at, number in enumerate(places) if _holds(documents[number], answers))
    if not answers:
        if len(ids) < 2:
            raise ProfileError("a prompt without an answer needs at least two tokens: take longer ones, or add answers")
        return Example(tuple(ids), 1, False, segments)
    tail = list(tokenizer(answers[0], add_special_tokens=False)["input_ids"])
    if tokenizer.eos_token_id is not None:
        tail.append(tokenizer.eos_token_id)
    if not ids or not tail:
        raise ProfileError("prompt and answer must not be empty")
    return Example(tuple(ids + tail), len(ids), True, segments, holders)


def _holds(document: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in the document, as words, whatever their case and punctuation."""
    text = _words(document)
    return any(words in text for words in map(_words, answers) if words.strip())


def _words(text: str) -> str:
    return " " + " ".join(re.findall(r"[^\W_]+", text.casefold())) + " "


def read_jsonl(path: Path, tokenizer: Any, count: int | None = None) -> Data:
    """Examples of a file of prompts.

    path: the file, in the format of `measure/prompt_file.py`. Where several answers are right the first is used.
    tokenizer: the model's.
    count: how many to read, or None for all.
    Raises DataError, which names the line.
    """
    examples = []
    for line in read_prompts(path, other_keys=False)[0][:count]:
        try:
            examples.append(encode(tokenizer, line.prompt, line.answers, line.documents))
        except ProfileError as error:
            raise DataError(f"{line.where}: {error}") from None
    return Data("jsonl", path.name, tuple(examples))


def read_text_file(path: Path, lengths: Sequence[int], count: int, tokenizer: Any) -> Data:
    """Pieces of a plain text, whose tokens are their own continuation.

    path: the file, UTF-8.
    lengths: tokens of pieces.
    count: pieces of each length, spread evenly over the text; they overlap where it is short.
    tokenizer: the model's; tokens that it puts before a text stand before each piece and count for its length.
    Raises DataError if the file cannot be read or is shorter than a piece.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    before = list(tokenizer("", add_special_tokens=True)["input_ids"])
    examples = []
    for length in lengths:
        size = length - len(before)
        if not 1 < size <= len(ids):
            raise DataError(
                f"{path} has {len(ids)} tokens, which make no piece of {length}: give smaller --lengths or more text"
            )
        starts = [(len(ids) - size) * number // max(1, count - 1) for number in range(count)]
        examples += [Example((*before, *ids[start : start + size]), 1) for start in starts]
    return Data("text", path.name, tuple(examples), tuple(lengths))


def task_data(tasks: Any, names: Sequence[str], lengths: Sequence[int], count: int, seed: int, tokenizer: Any) -> Data:
    """Generated examples. Tasks and lengths take turns, so that the first few are of all tasks.

    tasks: a task package, see `measure/tasks.py`.
    names: tasks of it.
    lengths: tokens of prompts.
    count: examples of each task and length.
    seed: seed of the first of them; the others follow.
    tokenizer: the model's.
    Raises ProfileError if a task cannot make such an example.
    """
    examples = []
    for number in range(seed, seed + count):
        for length in lengths:
            for name in names:
                try:
                    made = tasks.make_example(name, length, number)
                except ValueError as error:
                    raise ProfileError(f"task {name}: {error}") from error
                if tokenizer.chat_template:
                    prompt = tokenizer.apply_chat_template(
                        tasks.messages(made), tokenize=False, add_generation_prompt=True
                    )
                else:
                    prompt = tasks.render(made)
                examples.append(encode(tokenizer, prompt, right_answers(made) or (), made.documents))
    return Data("tasks", ",".join(names), tuple(examples), tuple(lengths), (seed, seed + count - 1))


def random_data(vocabulary: int, lengths: Sequence[int], count: int, seed: int) -> Data:
    """Random token ids without answers, which show the time and memory of a profile and nothing about any head.

    vocabulary: number of token ids of the model.
    lengths: tokens of prompts.
    count: examples of each length.
    seed: seed of the first of them.
    """
    import numpy as np

    rows = [
        np.random.default_rng([seed + number, length]).integers(0, vocabulary, length).tolist()
        for number in range(count)
        for length in lengths
    ]
    return Data(
        "random", "token ids", tuple(Example(tuple(row), 1) for row in rows), tuple(lengths), (seed, seed + count - 1)
    )


def _spans(
    prompt: str, documents: Sequence[str], offsets: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Number and token span of each document that has a token of its own.

    offsets: characters [a, b) of each token, in the prompt's order; tokens without characters are in no document.
    """
    places = [(index, a, b) for index, (a, b) in enumerate(offsets) if a < b]
    starts, ends = [a for _, a, _ in places], [b for _, _, b in places]
    begin = 0
    for number, document in enumerate(documents):
        begin = prompt.find(document, begin)
        if begin < 0:
            raise ProfileError(
                f"document {number} does not stand in the prompt behind those before it; give documents verbatim and in "
                "the prompt's order"
            )
        end = begin + len(document)
        first, last = bisect_left(starts, begin), bisect_right(ends, end) - 1
        begin = end
        if first <= last:
            yield number, (places[first][0], places[last][0] + 1)
