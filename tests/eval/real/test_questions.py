# SPDX-License-Identifier: Apache-2.0
"""The command: files are the same each time, those of different splits share nothing, and what is too much is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.real.questions import main
from tests.eval.real.made import make_folder
from tests.eval.real.test_sources import DATA


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model"))


def lines(source: Path, model: Path, out: Path, *options: object) -> list[dict[str, Any]]:
    assert main([str(source), f"--model={model}", f"--out={out}", *map(str, options)]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_same_file_each_time(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--length", 4000, "--n", 5, "--seed", 3)
    found = lines(DATA, model, tmp_path / "new" / "a.jsonl", *options)
    assert "a.jsonl: 5 prompts of the held-out split, " in capsys.readouterr().out
    assert len(found) == 5 and len({line["prompt"] for line in found}) == 5
    assert lines(DATA, model, tmp_path / "b.jsonl", *options) == found
    more = lines(DATA, model, tmp_path / "c.jsonl", *options[:3], 9, *options[4:])
    assert more[:5] == found
    assert lines(DATA, model, tmp_path / "d.jsonl", *options[:-1], 4) != found
    assert len(lines(DATA, model, tmp_path / "e.jsonl", *options, "--turns", 2)) == 10


def test_splits_share_nothing_whatever_seed_and_length(model: Path, tmp_path: Path) -> None:
    def seen(*options: object) -> tuple[set[str], set[str]]:
        found = lines(DATA, model, tmp_path / "a.jsonl", "--n", 6, *options)
        asked = {line["prompt"].split("Question: ")[-1] for line in found}
        return asked, {document for line in found for document in line["documents"]}

    calibration = seen("--split", "calibration", "--length", 4000)
    for seed in range(3):
        for options in (("--length", 4000), ("--length", 6000, "--turns", 2)):
            held_out = seen("--split", "held-out", "--seed", seed, *options)
            assert not calibration[0] & held_out[0] and not calibration[1] & held_out[1]


def test_several_passages(model: Path, tmp_path: Path) -> None:
    """MuSiQue's form: what is needed is always there; questions that need fewer passages are left out."""
    source = tmp_path / "musique.jsonl"
    entries: list[dict[str, Any]] = []
    for n in range(40):
        facts = [f"Person {n} wrote book {n}.", f"Book {n} is kept in the town of Tarn{n:02}."]
        paragraphs = [{"title": f"T{n}.{i}", "paragraph_text": f, "is_supporting": True} for i, f in enumerate(facts)]
        noise = {"title": f"N{n}", "paragraph_text": f"Nothing of {n} here. " * 8, "is_supporting": False}
        entry = {"question": f"where is the book of person {n} kept", "answer": f"Tarn{n:02}", "answer_aliases": []}
        entries.append({**entry, "paragraphs": [*paragraphs[n % 4 == 0 :], noise]})
    source.write_text("\n".join(map(json.dumps, entries)))
    found = lines(source, model, tmp_path / "a.jsonl", "--length", 2000, "--n", 12, "--hops", 2)
    for line in found:
        n = int(line["prompt"].split("person ")[-1].split()[0])
        assert n % 4 and line["answers"] == [f" Tarn{n:02}"]
        assert {f"Title: {p['title']}\n{p['paragraph_text']}\n\n" for p in entries[n]["paragraphs"][:2]} <= set(
            line["documents"]
        )
        assert sum(f"Tarn{n:02}" in document for document in line["documents"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--length=4000", "--n=1000"], "conversations of this kind and length, 1000 are wanted: lower --n"),
        (["--length=4000", "--n=1", "--hops=2"], "make 0 conversations"),
        (["--length=300", "--n=1"], "make 0 conversations"),
        (["--length=4000", "--turns=0"], "--turns must be at least 1, got 0"),
    ],
)
def test_what_is_too_much(
    options: list[str], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.jsonl"
    assert main([str(DATA), f"--model={model}", f"--out={out}", *options]) == 2
    assert message in capsys.readouterr().err and not out.exists()
    assert main([str(DATA), f"--model={tmp_path / 'absent'}", f"--out={out}", "--length=4000"]) == 2
    assert "the tokenizer of" in capsys.readouterr().err
