# SPDX-License-Identifier: Apache-2.0
"""Which documents controls keep, and what is left of a prompt."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from redknot_sglang.certify.controls import Control, parse_controls, without_others
from redknot_sglang.certify.questions import Question, read_data
from redknot_sglang.errors import CliError
from tests.serving.harness import MODEL
from tests.serving.segmented import kept, make_choosing_requests

TOKENIZER = AutoTokenizer.from_pretrained(MODEL)


def question(documents: list[str], asks: str = "", answers: tuple[str, ...] = ()) -> Question:
    """A question over documents of ten tokens each behind a lead of three, with five tokens behind them."""
    length = 10 * len(documents)
    segments = [at for number in range(len(documents)) for at in (3 + 10 * number, 13 + 10 * number)]
    return Question("data", None, tuple(range(length + 8)), tuple(segments), None, tuple(documents), asks, answers)


def keeps(control: str, asked: Question, seed: int = 0) -> list[int]:
    (one,) = parse_controls(control)
    return one.kept(asked, seed)


PETS = ["The cat sleeps all day.", "A dog runs home.", "Cats of Cairo, and a cat.", "Rain."]


def test_bm25_ranks_by_the_words_that_ask() -> None:
    assert keeps("bm25:1", question(PETS, "Who is running?")) == [1], "stems, and no stop words"
    assert keeps("bm25:2", question(PETS, "the cat?")) == [0, 2]
    assert keeps("bm25:2", question(PETS, "rain")) == [0, 3], "what has no word of it comes in the prompt's order"
    assert keeps("bm25:2", question(PETS, "zebra")) == keeps("bm25:2", question(PETS, "")) == [0, 1]
    assert keeps("bm25:2", question(["?", "the", "!"], "cat")) == [0, 1], "no words anywhere"


def test_the_oracle_keeps_what_tells_an_answer() -> None:
    assert keeps("oracle:1", question(PETS, "", ("a dog  RUNS",))) == [1]
    assert keeps("oracle:1", question(PETS, "", ("nothing", "rain"))) == [3], "any of the answers"
    assert keeps("oracle:2", question(PETS, "", ("rain",))) == [0, 3], "filled up in the prompt's order"
    assert keeps("oracle:1", question(PETS, "", ("cat",))) == [0], "the first of those that tell it"
    assert keeps("oracle:2", question(PETS, "", ("cat",))) == [0, 2]
    assert keeps("oracle:2", question(PETS, "", ("zebra",))) == keeps("oracle:2", question(PETS)) == [0, 1], "none does"


def test_chance_depends_on_the_question_and_the_seed() -> None:
    asked = [question([f"document {number}"] * 8) for number in range(2)]
    other = question(["document"] * 9)
    assert [keeps("random:3", one, 5) for one in asked] == [keeps("random:3", asked[0], 5)] * 2
    drawn = {tuple(keeps("random:3", asked[0], seed)) for seed in range(40)}
    assert len(drawn) > 20 and all(len(set(found)) == 3 and sorted(found) == list(found) for found in drawn)
    assert {number for found in drawn for number in found} == set(range(8))
    assert any(keeps("random:3", asked[0], seed) != keeps("random:3", other, seed) for seed in range(5))


@pytest.mark.parametrize("kind", ["bm25", "random", "oracle"])
def test_more_than_there_are_is_all_of_them(kind: str) -> None:
    asked = question(PETS, "cat", ("rain",))
    for count in (4, 5, 1000):
        (control,) = parse_controls(f"{kind}:{count}")
        assert control.kept(asked, 1) == [0, 1, 2, 3]
        assert control.ask(asked, 1).ids == asked.ids and control.ask(asked, 1).segments == ()
    assert keeps(f"{kind}:1", question([])) == []


def test_without_documents_lead_and_question_are_left() -> None:
    asked = question(PETS)
    (control,) = parse_controls("no-documents")
    assert control.ask(asked, 0).ids == (0, 1, 2, *asked.ids[-5:])
    assert control.ask(question([]), 0).ids == question([]).ids


def test_what_is_left_is_what_the_server_would_leave() -> None:
    rng = random.Random("left")
    for request in make_choosing_requests(rng, 30, longest=300, limit=1500):
        count = len(request.offsets) // 2
        asked = Question("data", None, tuple(request.prompt), tuple(request.offsets), None, ("",) * count)
        chosen = sorted(rng.sample(range(count), rng.randint(0, count)))
        found = without_others(asked, chosen)
        assert list(found.ids) == kept(request, {"chosen_segments": chosen}), "as the server test has it"


def test_the_last_token_is_nobody_s() -> None:
    """The server computes it always: its row gives the first token of the answer."""
    asked = Question("data", None, tuple(range(10)), (2, 2, 2, 6, 6, 10), None, ("", "a", "b"))
    assert without_others(asked, []).ids == (0, 1, 9)
    assert without_others(asked, [1]).ids == (0, 1, 2, 3, 4, 5, 9)
    assert without_others(asked, [2]).ids == (0, 1, 6, 7, 8, 9), "numbers count documents without tokens"


def test_controls_are_read_from_a_list() -> None:
    found = parse_controls("bm25:2, random:2,oracle:1,none,no-documents,bm25:2")
    assert found == [Control("bm25", 2), Control("random", 2), Control("oracle", 1), Control("no-documents", 0)]
    assert [one.name for one in found] == ["bm25:2", "random:2", "oracle:1", "no-documents"]


@pytest.mark.parametrize("word", ["", "bm25", "bm25:0", "oracle:x", "random:-1", "magic:2", "no-documents:2", "none:1"])
def test_what_is_no_control_is_said(word: str) -> None:
    with pytest.raises(CliError, match="--controls: .* is none; use some of bm25:N, random:N, oracle:N, no-documents"):
        parse_controls(f"random:1,{word}")


@pytest.mark.parametrize("library", ["bm25s", "Stemmer"])
def test_a_missing_library_is_said(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(CliError, match=rf"needs {library}: .*redknot-sglang\[measure\]"):
        keeps("bm25:1", question(PETS, "cat"))


@pytest.mark.parametrize(
    ("tail", "asks"),
    [
        ("\nWho?", "\nWho?"),
        ("\nWho?<|end|>assistant\n", "\nWho?\n"),
        ("one<|end|>assistant\nyes, the assistant<|end|>user\ntwo<|end|>", "one\nyes, the assistant\ntwo\n"),
        ("the user<|end|> assistants\n", "the user\n assistants\n"),
    ],
)
def test_words_that_ask_are_those_of_people(tail: str, asks: str, tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    line: dict[str, Any] = {"prompt": f"lead one two{tail}", "documents": ["one", "two"], "answers": ["x", "y"]}
    data.write_text(json.dumps(line) + "\n" + json.dumps({"prompt": "no documents"}))
    (asked, plain), _ = read_data(data, TOKENIZER)
    assert (asked.documents, asked.asks, asked.answers) == (("one", "two"), asks, ("x", "y"))
    assert (plain.documents, plain.asks, plain.answers) == ((), "", ())


def test_bm25_leaves_a_gpu_alone_where_jax_is_installed(tmp_path: Path) -> None:
    # A package `jax` whose import says so; the library imports it if it can.
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("")
    (tmp_path / "jax" / "lax.py").write_text("raise SystemExit('jax was made ready')")
    program = (
        "import random, sys\n"
        "from redknot_sglang.certify.controls import by_words\n"
        "from redknot_sglang.certify.questions import Question\n"
        "asked = Question('data', None, (1, 2), (), None, ('a cat', 'a dog'), 'Which dog?', ())\n"
        "print(by_words(asked, random.Random(1)), 'jax' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "[1, 0] False", done.stderr
