# SPDX-License-Identifier: Apache-2.0
"""The generated corpus: one document has one tokenization, and every question is answered by its prompt."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from eval.rag.task_corpus import TaskCorpus
from eval.rag.traffic import KINDS, Shape, make_dialogues, prompt_of
from eval.tasks import TASKS, Example
from eval.tasks.vocabulary import decode, encode
from tests.eval.test_tasks import known_facts, solve

MODEL = Path(__file__).parents[3] / "eval" / "model"
SHAPES = (Shape(1, 6), Shape(4, 2, back=0.3))


@pytest.fixture(scope="module")
def corpus() -> TaskCorpus:
    return TaskCorpus(12, 160, seed=3)


def test_a_corpus_is_its_seed(corpus: TaskCorpus) -> None:
    again, other = TaskCorpus(12, 160, seed=3), TaskCorpus(12, 160, seed=4)
    assert again.documents == corpus.documents and again.frame == corpus.frame
    assert not any(document in corpus.documents for document in other.documents)
    assert [len(document) for document in corpus.documents] == [160] * 12


@pytest.mark.parametrize(("kind", "shape"), list(zip(KINDS, SHAPES, strict=True)))
def test_documents_tokenize_alike_alone_and_in_a_prompt(corpus: TaskCorpus, kind: str, shape: Shape) -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    for dialogue in make_dialogues(corpus, kind, shape, 8, seed=1):
        answers = [encode(turn.question.answer or "") for turn in dialogue]
        prompt = prompt_of(corpus, dialogue, answers)
        # The prompt as text gives the very ids that were put together from parts.
        assert tokenizer.encode(decode(prompt.ids)).ids == prompt.ids
        spans = list(zip(prompt.offsets[::2], prompt.offsets[1::2], strict=True))
        order = [document for turn in dialogue for document in turn.documents]
        for document, (start, end) in zip(order, spans, strict=True):
            assert prompt.ids[start:end] == corpus.documents[document]
            assert tokenizer.encode(decode(corpus.documents[document])).ids == corpus.documents[document]
        assert all(a <= b for a, b in pairwise(prompt.offsets))


@pytest.mark.parametrize(("kind", "shape"), list(zip(KINDS, SHAPES, strict=True)))
def test_the_documents_so_far_answer_the_question(corpus: TaskCorpus, kind: str, shape: Shape) -> None:
    asked = set()
    for dialogue in make_dialogues(corpus, kind, shape, 120, seed=2):
        given: list[str] = []
        for turn in dialogue:
            given += [decode(corpus.documents[document]) for document in turn.documents]
            question, answer = decode(turn.question.ids), turn.question.answer
            example = Example("", given, question, answer or "", turn.question.task)
            assert solve(example) == answer
            asked.add(turn.question.task)
            if TASKS[turn.question.task].causal_only:
                assert definition_comes_first(example)
    assert asked == set(TASKS)


def definition_comes_first(example: Example) -> bool:
    """Whether the first document with the definition stands before the first with its use."""
    kind, label, _ = example.answer.split()
    (mark,) = known_facts(example.documents)[kind, label]
    facts = [known_facts([document]) for document in example.documents]
    use = next(at for at, found in enumerate(facts) if (kind, label) in found)
    definition = next(at for at, found in enumerate(facts) if ("code" if kind == "box" else kind, mark) in found)
    return definition < use


def test_a_turn_keeps_its_documents_and_only_changes_their_order(corpus: TaskCorpus) -> None:
    rng = random.Random(5)
    orders = []
    for _ in range(60):
        drawn = rng.sample(range(12), 6)
        order, _ = corpus.ask(rng, drawn, [])
        assert sorted(order) == sorted(drawn)
        orders.append(order == drawn)
    assert any(orders) and not all(orders)


def test_what_cannot_be_is_refused(corpus: TaskCorpus) -> None:
    with pytest.raises(ValueError, match="--data"):
        TaskCorpus(129, 100, seed=0)
    with pytest.raises(ValueError, match="at least 24 tokens"):
        TaskCorpus(4, 8, seed=0)
    with pytest.raises(ValueError, match="raise --documents"):
        make_dialogues(corpus, "permuted", Shape(1, 13), 1, seed=0)
