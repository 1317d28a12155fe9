# SPDX-License-Identifier: Apache-2.0
"""Dialogues, prompts and arrivals: what a seed fixes, and what must hold of them."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest

from eval.rag.task_corpus import TaskCorpus
from eval.rag.traffic import KINDS, Dialogue, Shape, make_arrivals, make_dialogues, make_warm_up, prompt_of

CORPUS = TaskCorpus(10, 96, seed=1)
SHAPES = {"permuted": Shape(1, 5), "multiturn": Shape(3, 2, back=0.4)}


def documents(dialogue: Dialogue) -> list[list[int]]:
    return [turn.documents for turn in dialogue]


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_fixes_everything(kind: str) -> None:
    first, again, other = (make_dialogues(CORPUS, kind, SHAPES[kind], 12, seed) for seed in (1, 1, 2))
    assert first == again
    assert list(map(documents, first)) != list(map(documents, other))
    prompts = [prompt_of(CORPUS, dialogue, [[7]] * 3) for dialogue in first]
    assert [p.digest for p in prompts] == [prompt_of(CORPUS, dialogue, [[7]] * 3).digest for dialogue in again]
    assert len({p.digest for p in prompts}) == len(prompts)


def test_every_permuted_request_has_an_order_of_its_own() -> None:
    found = [turn.documents for (turn,) in make_dialogues(CORPUS, "permuted", SHAPES["permuted"], 40, seed=3)]
    assert all(len(set(order)) == 5 for order in found)
    assert len({tuple(order) for order in found}) == 40
    assert {document for order in found for document in order} == set(range(10))


def test_turns_are_counted_as_requests() -> None:
    made = make_dialogues(CORPUS, "multiturn", SHAPES["multiturn"], 8, seed=1)
    assert list(map(len, made)) == [3, 3, 2]


def test_dialogues_return_to_documents_as_often_as_asked() -> None:
    for back in (0.0, 1.0):
        for dialogue in make_dialogues(CORPUS, "multiturn", Shape(3, 2, back), 30, seed=4):
            first, *later = documents(dialogue)
            assert all(len(set(turn)) == 2 for turn in later)
            seen = set(first)
            for turn in later:
                assert set(turn) <= seen if back else not set(turn) & seen
                seen |= set(turn)


def test_a_dialogue_longer_than_the_corpus_returns_to_documents() -> None:
    (dialogue,) = make_dialogues(CORPUS, "multiturn", Shape(8, 4, back=0.0), 8, seed=1)
    assert all(len(set(turn)) == 4 for turn in documents(dialogue))


def test_a_later_prompt_goes_on_from_the_earlier_one_and_the_answer() -> None:
    dialogue = make_dialogues(CORPUS, "multiturn", SHAPES["multiturn"], 3, seed=6)[0]
    answers = [[901, 902], [903]]
    for turns in (1, 2):
        before, after = (prompt_of(CORPUS, dialogue[:n], answers) for n in (turns, turns + 1))
        grown = [*before.ids, *answers[turns - 1], *CORPUS.frame.following]
        assert after.ids[: len(grown)] == grown
        assert after.offsets[: len(before.offsets)] == before.offsets
        # New documents stand behind all that came before, their segments side by side.
        new = after.offsets[len(before.offsets) :]
        assert new[0] == len(grown) and new[1::2][:-1] == new[2::2]


@pytest.mark.parametrize("kind", KINDS)
def test_no_prompt_is_longer_than_the_sizes_say(kind: str) -> None:
    shape = SHAPES[kind]
    for dialogue in make_dialogues(CORPUS, kind, shape, 24, seed=7):
        prompt = prompt_of(CORPUS, dialogue, [[1] * 9] * 3)
        assert len(prompt.ids) <= shape.longest_prompt(CORPUS, 9)


def test_the_warm_up_shows_each_document_once() -> None:
    made = make_warm_up(CORPUS, 4)
    assert [document for (turn,) in made for document in turn.documents] == list(range(10))
    assert [len(turn.documents) for (turn,) in made] == [4, 4, 2]


def test_arrivals_are_poisson() -> None:
    times = make_arrivals(4000, rate=5.0, seed=1)
    assert times == make_arrivals(4000, 5.0, 1) and times != make_arrivals(4000, 5.0, 2)
    assert times[-1] == pytest.approx(4000 / 5.0)
    assert make_arrivals(7, 0.5, 3)[-1] == pytest.approx(14.0), "few arrivals have their rate, too"
    gaps = [after - before for before, after in pairwise([0.0, *times])]
    assert min(gaps) >= 0
    # Exponential gaps: mean and standard deviation are both 1 / rate.
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.1)
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.1)
