# SPDX-License-Identifier: Apache-2.0
"""The one command that makes a model's certificate again: what it runs, up to the first server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.real import certificate, questions


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands of a run over two lengths, in order; no model is fetched, no question made, no server started."""
    words: list[list[str]] = []

    def note(name: str, code: int) -> Any:
        def run(argv: list[str]) -> int:
            words.append([name, *argv])
            return code

        return run

    monkeypatch.setattr(certificate, "get", lambda name, out: out / name)
    monkeypatch.setattr(questions, "main", note("questions", 0))
    monkeypatch.setattr(certificate, "redknot", note("redknot", 1))
    argv = ["qwen2.5-coder-1.5b", "--questions", "nq.jsonl.gz", "--lengths", "2048,8192", "--out", str(tmp_path / "c")]
    assert certificate.main(argv) == 1, "the verdict's exit code is handed on"
    return words


def test_questions_of_every_length_are_made_and_asked(ran: list[list[str]], tmp_path: Path) -> None:
    first, second, certify = ran
    assert first[:2] == ["questions", "nq.jsonl.gz"] and "--length=2048" in first and "--length=8192" in second
    made = [word.removeprefix("--out=") for command in (first, second) for word in command if word.startswith("--out=")]
    assert [word.removeprefix("--data=") for word in certify if word.startswith("--data=")] == made
    assert "--context-length=8272" in certify, "the longest prompt and its answer fit"


def test_stock_gets_its_fastest_attention_or_the_one_that_is_named(
    ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["qwen2.5-coder-1.5b", "--questions", "nq.jsonl.gz", "--lengths", "2048", "--out", str(tmp_path / "c")]
    certificate.main([*argv, "--stock-backend=flashinfer"])
    assert "--stock-flags=--attention-backend fa3" in ran[2]
    assert "--stock-flags=--attention-backend flashinfer" in ran[-1]


def test_the_map_is_the_committed_one_and_certify_takes_the_words(
    ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = json.loads((certificate.ROOT / "results" / "real" / "qwen2.5-coder-1.5b.json").read_text())
    assert json.loads((tmp_path / "c" / "map.json").read_text()) == committed
    # The real command reads the words, and stops at a model that is not there.
    from redknot_sglang.cli.main import main

    assert main(ran[-1][1:]) == 2


@pytest.mark.parametrize("name", sorted(certificate.STOCK_BACKENDS))
def test_there_is_a_map_for_every_model(name: str) -> None:
    assert (certificate.ROOT / "results" / "real" / f"{name}.json").is_file()


def test_lengths_that_are_no_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        certificate.main(["qwen2.5-coder-1.5b", "--questions", "f", "--lengths", "2k", "--out", str(tmp_path)])
    assert "--lengths must be numbers" in capsys.readouterr().err
