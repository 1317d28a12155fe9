# SPDX-License-Identifier: Apache-2.0
"""Prompts of a given length: questions over their passages among distractors, as a chat with the model's own template.

Distractors are passages of the same split. None of them tells an accepted answer or comes from a page that a question needs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.real.sources import Passage, Question
from eval.real.splits import Part
from redknot_sglang.certify.questions import encode
from redknot_sglang.errors import CliError

LEAD = "Read the documents, most of which have nothing to do with the question. Then answer it with a few words of theirs.\n\n"
TAIL = "Question: {}?\nGive the shortest answer that the documents allow."
# The model goes on behind this, and its answer begins with a space.
BEGIN = "Answer:"
# A prompt is full when fewer tokens than this are left, or none of the passages fits; a shorter one is not made.
_LEFT = 32
FULL = 0.9


@dataclass(frozen=True)
class Line:
    """A line of a file of prompts, and its size as servers count it."""

    prompt: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]
    tokens: int

    def as_json(self) -> dict[str, Any]:
        """What `redknot certify` and `redknot profile` read; profile's answer is the first one."""
        return {"prompt": self.prompt, "answers": list(self.answers), "documents": list(self.documents)}


def document(passage: Passage) -> str:
    """A passage as it stands in prompts; it tokenizes alike alone and among others."""
    return f"Title: {passage.title}\n{passage.text}\n\n" if passage.title else f"{passage.text}\n\n"


class PromptMaker:
    """Makes prompts of one split for one tokenizer. Raises CliError if that has no chat template."""

    def __init__(self, tokenizer: Any, part: Part, length: int) -> None:
        """length: tokens that the longest prompt of a question may have."""
        if not tokenizer.chat_template:
            raise CliError("the model's tokenizer has no chat template; take an instruct model")
        self._tokenizer, self._length = tokenizer, length
        # A passage with the text of a special token would end a turn.
        special = tokenizer.all_special_tokens
        self._passages = [p for p in part.passages if not any(token in document(p) for token in special)]
        self._sizes: dict[Passage, int] = {}

    def make(self, questions: Sequence[Question], rng: random.Random) -> list[Line] | None:
        """One line for each question, asked one after the other over the same documents, each after the last one's answer.

        None if not all passages that they need fit, or if the split has too few distractors to fill `FULL` of the length.
        """
        needed = list(dict.fromkeys(passage for question in questions for passage in question.needed))
        if not set(needed) <= set(self._passages):
            return None
        room = self._length - len(encode(self._tokenizer, self._chat(questions, ()), ())[0])
        room -= sum(map(self._size, needed))
        if room < 0:
            return None
        chosen = needed + self._distractors(questions, {passage.page for passage in needed}, room, rng)
        rng.shuffle(chosen)
        documents = tuple(map(document, chosen))
        lines = [self._line(questions[: turn + 1], documents) for turn in range(len(questions))]
        return lines if FULL * self._length <= lines[-1].tokens <= self._length else None

    def _distractors(
        self, questions: Sequence[Question], pages: set[str], room: int, rng: random.Random
    ) -> list[Passage]:
        answers = [answer for question in questions for answer in question.answers]
        chosen = []
        for passage in rng.sample(self._passages, len(self._passages)):
            if room < _LEFT:
                break
            if passage.page in pages or self._size(passage) > room or passage.tells(answers):
                continue
            chosen.append(passage)
            room -= self._size(passage)
        return chosen

    def _line(self, asked: Sequence[Question], documents: tuple[str, ...]) -> Line:
        prompt = self._chat(asked, documents)
        ids, segments = encode(self._tokenizer, prompt, documents)
        if segments[1:-1:2] != segments[2::2]:
            raise CliError(
                "the model's chat template changes what stands in a message, so documents cannot be found again"
            )
        return Line(prompt, tuple(f" {answer}" for answer in asked[-1].answers), documents, len(ids))

    def _chat(self, asked: Sequence[Question], documents: Sequence[str]) -> str:
        messages = []
        for number, question in enumerate(asked):
            tail = TAIL.format(question.text.rstrip("?"))
            messages.append({"role": "user", "content": tail if number else LEAD + "".join(documents) + tail})
            messages.append({"role": "assistant", "content": f"{BEGIN} {question.answers[0]}"})
        prompt: str = self._tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        return prompt + BEGIN

    def _size(self, passage: Passage) -> int:
        if passage not in self._sizes:
            self._sizes[passage] = len(self._tokenizer.encode(document(passage), add_special_tokens=False))
        return self._sizes[passage]
