# SPDX-License-Identifier: Apache-2.0
"""Public text: both file formats, made up here, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from eval.rag.text_corpus import Entry, TextCorpus, read_entries
from eval.rag.traffic import Shape, make_dialogues, prompt_of

TOKENIZER = Tokenizer.from_file(str(Path(__file__).parents[3] / "eval" / "model" / "tokenizer.json"))


def passage(number: int) -> str:
    return f"passage {number}: " + " ".join(f"w{number}x{i}" for i in range(20))


def musique(questions: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f" who is {q}?",
            "answers": ["x"],
            "ctxs": [{"title": "", "text": passage(2 * q + i)} for i in range(3)],
        }
        for q in range(questions)
    ]


def mtrag(row: dict[str, Any]) -> dict[str, Any]:
    talk = [{"speaker": "user", "text": "hello"}, {"speaker": "agent", "text": "yes"}]
    contexts = [{"document_id": "1", "text": context["text"]} for context in row["ctxs"]]
    return {"input": [*talk, {"speaker": "user", "text": row["question"]}], "contexts": contexts, "targets": []}


def write(folder: Path, text: str) -> Path:
    path = folder / "data"
    path.write_text(text)
    return path


def test_both_formats_give_the_same_entries(tmp_path: Path) -> None:
    rows = musique(4)
    from_list = read_entries(write(tmp_path, json.dumps(rows)))
    from_lines = read_entries(write(tmp_path, "\n".join(json.dumps(mtrag(row)) for row in rows) + "\n"))
    assert from_list == from_lines
    assert from_list[1] == Entry("who is 1?", (passage(2), passage(3), passage(4)))


def test_entries_without_passages_are_left_out(tmp_path: Path) -> None:
    rows = musique(3)
    rows[1]["ctxs"] = []
    assert [entry.question for entry in read_entries(write(tmp_path, json.dumps(rows)))] == ["who is 0?", "who is 2?"]


@pytest.mark.parametrize(
    "text",
    ["", "# a heading", "[1, 2]", '[{"question": "?"}]', '{"input": []}', '{"a": 1}\n{"b": 2}', '{"ctxs": 1', '"text"'],
)
def test_anything_else_is_refused_with_the_formats(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="MuSiQue JSON list .* or MTRAG JSON lines"):
        read_entries(write(tmp_path, text))


def entries(tmp_path: Path, questions: int = 12) -> list[Entry]:
    return read_entries(write(tmp_path, json.dumps(musique(questions))))


def test_the_corpus_has_as_many_documents_as_asked_for_cut_to_size(tmp_path: Path) -> None:
    corpus = TextCorpus(entries(tmp_path), TOKENIZER, documents=10, most_tokens=40, seed=1)
    assert len(corpus.documents) == 10 == len({tuple(document) for document in corpus.documents})
    known = [TOKENIZER.encode(passage(number), add_special_tokens=False).ids[:40] for number in range(30)]
    assert all(document in known for document in corpus.documents)
    again = TextCorpus(entries(tmp_path), TOKENIZER, 10, 40, seed=1)
    assert again.documents == corpus.documents
    assert TextCorpus(entries(tmp_path), TOKENIZER, 10, 40, seed=2).documents != corpus.documents


def test_a_question_comes_with_its_own_passages(tmp_path: Path) -> None:
    corpus = TextCorpus(entries(tmp_path), TOKENIZER, documents=14, most_tokens=400, seed=1)
    owners = {tuple(TOKENIZER.encode(e.question).ids): e.passages for e in entries(tmp_path)}
    numbers = {tuple(document): at for at, document in enumerate(corpus.documents)}
    rng = random.Random(2)
    for _ in range(20):
        order, question = corpus.ask(rng, rng.sample(range(14), 5), [])
        assert len(set(order)) == 5 and question.answer is None
        own = [numbers[tuple(TOKENIZER.encode(text).ids)] for text in owners[tuple(question.ids)]]
        assert set(own) <= set(order)


def test_documents_of_earlier_turns_stay_where_they_were_drawn(tmp_path: Path) -> None:
    corpus = TextCorpus(entries(tmp_path), TOKENIZER, documents=14, most_tokens=400, seed=1)
    order, _ = corpus.ask(random.Random(1), [3, 5], before=[3, 5, 9])
    assert order == [3, 5]


def test_a_document_has_the_same_ids_in_every_prompt(tmp_path: Path) -> None:
    corpus = TextCorpus(entries(tmp_path), TOKENIZER, documents=14, most_tokens=60, seed=1)
    for dialogue in make_dialogues(corpus, "multiturn", Shape(3, 3, 0.3), 12, seed=1):
        prompt = prompt_of(corpus, dialogue, [[5], [6]])
        order = [document for turn in dialogue for document in turn.documents]
        spans = zip(prompt.offsets[::2], prompt.offsets[1::2], strict=True)
        assert [prompt.ids[a:b] for a, b in spans] == [corpus.documents[document] for document in order]


@pytest.mark.parametrize("documents", [2, 500])
def test_too_few_passages_or_questions_are_an_error(tmp_path: Path, documents: int) -> None:
    with pytest.raises(ValueError, match="change --documents"):
        TextCorpus(entries(tmp_path), TOKENIZER, documents, 40, seed=1)
