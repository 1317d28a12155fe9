# SPDX-License-Identifier: Apache-2.0
"""Documents and questions from a file of public text; answers are not scored."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from eval.rag.corpus import Frame, Question

FORMATS = "a MuSiQue JSON list (`ctxs[].text`, `question`) or MTRAG JSON lines (`contexts[].text`, `input[].text`)"
# No public question is near this; a longer one would spoil a prompt's length.
_LONGEST_QUESTION = 256


@dataclass(frozen=True)
class Entry:
    """A question and the passages that belong to it."""

    question: str
    passages: tuple[str, ...]


def read_entries(path: Path) -> list[Entry]:
    """Questions with passages from a file in one of `FORMATS`, told apart by content.

    Raises ValueError if it is something else, OSError if it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines() if line.strip()] if text.lstrip()[:1] == "{" else None
        found = [_mtrag(row) for row in lines] if lines is not None else [_musique(row) for row in _list(text)]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"--data {path}: not {FORMATS} ({type(error).__name__}: {error})") from error
    entries = [entry for entry in found if entry.question and entry.passages]
    if not entries:
        raise ValueError(f"--data {path}: no question with passages in it; give {FORMATS}")
    return entries


def _list(text: str) -> list[Any]:
    rows = json.loads(text)
    if not isinstance(rows, list):
        raise TypeError(f"it holds a {type(rows).__name__}")
    return rows


def _musique(row: dict[str, Any]) -> Entry:
    return Entry(row["question"].strip(), _passages(row["ctxs"]))


def _mtrag(row: dict[str, Any]) -> Entry:
    last = row["input"][-1]
    return Entry(last["text"].strip() if last["speaker"] == "user" else "", _passages(row["contexts"]))


def _passages(contexts: list[dict[str, Any]]) -> tuple[str, ...]:
    stripped = (context["text"].strip() for context in contexts)
    return tuple(dict.fromkeys(text for text in stripped if text))


class TextCorpus:
    """The passages of questions drawn from a file, until there are enough; their questions go with them."""

    def __init__(
        self, entries: Sequence[Entry], tokenizer: Tokenizer, documents: int, most_tokens: int, seed: int
    ) -> None:
        """`documents` documents, each cut to `most_tokens` tokens.

        Raises ValueError if the entries have too few passages.
        """

        def encode(text: str) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=False).ids)

        rng = random.Random(f"text corpus {seed}")
        number: dict[str, int] = {}
        self._questions: list[tuple[Question, list[int]]] = []
        for entry in rng.sample(entries, len(entries)):
            added = [text for text in entry.passages if text not in number]
            if len(number) + len(added) > documents:
                # Passages of a question that is not asked fill up the number.
                number |= {text: len(number) + i for i, text in enumerate(added[: documents - len(number)])}
                break
            number |= {text: len(number) + i for i, text in enumerate(added)}
            ids = encode(entry.question)[:_LONGEST_QUESTION]
            self._questions.append((Question(ids, None, "text"), [number[text] for text in entry.passages]))
        if len(number) < documents or not self._questions:
            raise ValueError(
                f"{documents} documents were asked for; the file has {len(number)} distinct passages "
                f"and {len(self._questions)} questions whose passages are all among them; change --documents"
            )
        self.documents = [encode(text)[:most_tokens] for text in number]
        self.frame = Frame(
            # Special tokens that the tokenizer puts before a text (often one) belong before the whole prompt.
            lead=list(tokenizer.encode("Answer the questions from the documents.\n\n").ids),
            ask=encode("\nQuestion: "),
            answer=encode("\nAnswer:"),
            following=encode("\n\n"),
        )

    @property
    def longest_question(self) -> int:
        """Tokens of the longest question."""
        return max(len(question.ids) for question, _ in self._questions)

    def ask(self, rng: random.Random, drawn: Sequence[int], before: Sequence[int]) -> tuple[list[int], Question]:
        """See `Corpus`. The question's own passages take the places of other new documents, as many as there are."""
        question, own = rng.choice(self._questions)
        order = list(drawn)
        missing = [document for document in own if document not in order and document not in before]
        places = [at for at, document in enumerate(order) if document not in own and document not in before]
        for at, document in zip(rng.sample(places, len(places)), missing, strict=False):
            order[at] = document
        return order, question
