# SPDX-License-Identifier: Apache-2.0
"""Evaluation examples as text: a question over documents of a given total length, and its exact match.

Seeds: an example's random stream is `SeedSequence([EVALUATION, family, length, seed])`, a conversation's is
`SeedSequence([CONVERSATION, turns, length, seed])`, that of a corpus which many prompts share is
`SeedSequence([TRAFFIC, documents, tokens, seed])` (eval/rag), and training uses `SeedSequence([TRAINING, ...])`
(eval/train/data.py). The first word differs, so no evaluation stream is ever a training stream, whatever the
seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import vocabulary as vocab
from .documents import MIN_DOCUMENT_TOKENS, Rng
from .questions import FAMILIES, Question, ask, question_tokens
from .world import World, build_world

TRAINING, EVALUATION, CONVERSATION, TRAFFIC = 1, 2, 3, 4

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Read the reports and answer the question.",
    "Use only the reports below to answer. Be brief.",
    "Documents follow. Answer each question from the documents.",
)
QUESTION_HEAD = "Question:\n"
MIN_LENGTH = 160


@dataclass(frozen=True)
class Task:
    """A task family.

    causal_only: its documents mean something only through earlier ones, so a document computed in isolation
    loses what the answer needs; the model was trained on this family in plain causal form only.
    """

    name: str
    description: str
    causal_only: bool = False


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("lookup", "one fact out of many, by its two-word key"),
        Task("multivalue", "all two to four numbered facts of one name, gathered over the documents"),
        Task("tracking", "a chain of two to four variables back to its number, each step written out"),
        Task("twohop", "an attribute of somebody's manager, the manager written out first"),
        Task("crossdoc", "what a mark means, by a code or theme given in an earlier document", causal_only=True),
    )
}
assert tuple(TASKS) == FAMILIES


@dataclass(frozen=True)
class Example:
    """One prompt and its answer; documents end with a newline and tokenize alike alone and together."""

    system: str
    documents: list[str]
    question: str
    answer: str
    task: str


def split_tokens(rng: Rng, total: int, low: int, high: int) -> list[int]:
    """Document sizes of about `low` to `high` tokens that add up to `total`; two or more where they fit."""
    count = max(1, total // low if total < 2 * high else round(total / rng.uniform(low, high)))
    count = max(min(2, total // MIN_DOCUMENT_TOKENS), min(count, max(1, total // low)))
    weights = rng.uniform(low, high, count)
    spare = total - count * MIN_DOCUMENT_TOKENS
    sizes = MIN_DOCUMENT_TOKENS + np.floor(weights / weights.sum() * spare).astype(int)
    sizes[-1] += total - sizes.sum()
    return [int(size) for size in sizes]


def make_world(rng: Rng, tokens: int) -> World:
    """Documents of `tokens` tokens together, sized like retrieved passages, prose between the facts."""
    sizes = split_tokens(rng, tokens, *((96, 400) if tokens >= 1024 else (40, 160)))
    return build_world(rng, sizes, rng.uniform(0.1, 0.5))


def draw(rng: Rng, world: World, family: str) -> Question | None:
    """A random question of the family over `world`, or None where the world holds none."""
    items = world.items[family]
    return ask(world, family, items[int(rng.integers(len(items)))]) if items else None


def make_example(name: str, length: int, seed: int) -> Example:
    """The example `seed` of family `name` whose rendered prompt has exactly `length` tokens.

    Deterministic. Raises KeyError for an unknown family and ValueError for a length below `MIN_LENGTH`.
    """
    family = TASKS[name].name
    if length < MIN_LENGTH:
        raise ValueError(f"length {length} is too short for documents and a question; use at least {MIN_LENGTH}")
    rng = np.random.default_rng(np.random.SeedSequence([EVALUATION, FAMILIES.index(family), length, seed]))
    system = SYSTEM_PROMPTS[int(rng.integers(len(SYSTEM_PROMPTS)))]
    empty = render(Example(system, [], "", "", family))
    budget = length - len(vocab.encode(empty)) - question_tokens(family)
    while True:
        world = make_world(rng, budget)
        question = draw(rng, world, family)
        if question is not None:
            documents = [vocab.decode(d.tolist()) for d in world.documents]
            return Example(system, documents, vocab.decode(question.question), vocab.decode(question.answer), family)


def user_content(documents: list[str], question: str, separator: str = "") -> str:
    """Text of a user turn: documents, each and their end marked by `separator`, then the question."""
    marked = "".join(separator + document for document in documents)
    return marked + (separator if documents else "") + QUESTION_HEAD + question


def messages(example: Example, separator: str = "") -> list[dict[str, str]]:
    """OpenAI chat messages; the tokenizer's chat template turns them into `render(example, separator)`."""
    return [
        {"role": "system", "content": example.system},
        {"role": "user", "content": user_content(example.documents, example.question, separator)},
    ]


def render(example: Example, separator: str = "") -> str:
    """Prompt text for /v1/completions; the model's next tokens are the answer and the end marker.

    separator: text put before each document and after the last, `<|seg|>` for prompts that name their
    segments.
    """
    turns = "".join(f"<|{m['role']}|>{m['content']}{vocab.END}" for m in messages(example, separator))
    return vocab.BOS + turns + vocab.ASSISTANT


def score(example: Example, completion: str) -> bool:
    """Exact match of the whole answer, steps included, up to the end marker; outer space is ignored."""
    return completion.split(vocab.END, 1)[0].strip() == example.answer
