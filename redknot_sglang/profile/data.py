# SPDX-License-Identifier: Apache-2.0
"""Calibration data as token ids: generated tasks, the user's JSONL, or random ids for measuring time and memory."""

from __future__ import annotations

import hashlib
import json
import re
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
    """Token ids of a prompt and its answer; `first`, the answer's first token (1 where there is no answer).

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
    """Examples and where they come from, in the words of `record.py`."""

    source: str
    name: str
    examples: tuple[Example, ...]
    lengths: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of all that the figures depend on."""
        shown = [[e.ids, e.first, e.segments] for e in self.examples]
        return hashlib.sha256(json.dumps(shown, separators=(",", ":")).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The `data` of a record."""
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
    """An example of text. The answer is the first of those that are right, followed by the tokenizer's end-of-sequence token.

    Documents stand in the prompt, verbatim and in their order; a segment is the tokens that lie wholly inside one.
    Raises ProfileError if a document is not there or nothing can be predicted.
    """
    # Special tokens are written out in the text of a chat; a tokenizer that adds its own does so for bare prompts only.
    bare = not any(token in prompt for token in tokenizer.all_special_tokens)
    found = tokenizer(prompt, add_special_tokens=bare, return_offsets_mapping=bool(documents))
    ids = list(found["input_ids"])
    places = dict(_spans(prompt, documents, found["offset_mapping"])) if documents else {}
    segments = tuple(places.values())
    holders = tuple(at for at, number in enumerate(places) if _holds(documents[number], answers))
    if not answers:
        if len(ids) < 2:
            raise ProfileError("a prompt without an answer needs at least two tokens")
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


def read_jsonl(path: Path, tokenizer: Any) -> Data:
    """Examples of a file of prompts (measure/prompt_file.py); where several answers are right, the first is the example's.

    Raises DataError, which names the line.
    """
    examples = []
    for line in read_prompts(path, other_keys=False)[0]:
        try:
            examples.append(encode(tokenizer, line.prompt, line.answers, line.documents))
        except ProfileError as error:
            raise DataError(f"{line.where}: {error}") from None
    return Data("jsonl", path.name, tuple(examples))


def task_data(tasks: Any, names: Sequence[str], lengths: Sequence[int], count: int, seed: int, tokenizer: Any) -> Data:
    """`count` examples, the seeds from `seed` on, of each task at each length of a task package (measure/tasks.py).

    They take turns, so that a run that uses the first few sees all tasks. Raises ProfileError.
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
    """Random token ids without answers: they show what a profile costs, and nothing about any head."""
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
    """Number and token span of each document that has a token of its own."""
    places = list(offsets)
    begin = 0
    for number, document in enumerate(documents):
        begin = prompt.find(document, begin)
        if begin < 0:
            raise ProfileError(f"document {number} does not stand in the prompt behind those before it")
        end = begin + len(document)
        inside = [i for i, (a, b) in enumerate(places) if begin <= a < b <= end]
        begin = end
        if inside:
            yield number, (inside[0], inside[-1] + 1)
