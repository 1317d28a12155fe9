# SPDX-License-Identifier: Apache-2.0
"""The benchmark of drafts from n-grams: its prompts, what it counts as a difference, its servers and its table. No server runs here."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from eval.gpu.ask import NotMeasured
from eval.real import drafts
from eval.real.drafts import Answer, ask, differences, flags, measure, prompts, table
from redknot_sglang.certify.questions import load_tokenizer
from redknot_sglang.errors import CliError
from tests.measure.fake_server import QuietHandler, serving
from tests.serving.harness import MODEL

ARGS = argparse.Namespace(
    model=Path("m"),
    head_map=Path("map.json"),
    prompt_tokens=100,
    new_tokens=11,
    times=2,
    stock_flags="--attention-backend fa3",
    flag=["--x=y"],
    device="cuda",
)


def test_prompts_are_the_beginnings_of_files_that_are_long_enough(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(MODEL)
    long, short = tmp_path / "long.py", tmp_path / "short.py"
    long.write_text("wheels and doors and lamps " * 20)
    short.write_text("roofs")
    (only,) = prompts(tokenizer, [short, long], 30, 5)
    assert only == list(tokenizer.encode(long.read_text(), add_special_tokens=False))[:30]
    assert len(prompts(tokenizer, [long] * 3, 30, 2)) == 2
    with pytest.raises(CliError, match="no file has 3000 tokens"):
        prompts(tokenizer, [short, long], 3000, 5)


def test_a_token_s_time_is_without_the_prompt_s(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[int], int]] = []

    def answered(url: str, prompt: list[int], count: int) -> Answer:
        asked.append((prompt, count))
        return Answer(list(range(count)), 5.0 + 0.25 * (count - 1), 3.0, [])

    monkeypatch.setattr(drafts, "ask", answered)
    monkeypatch.setattr(drafts, "flush", lambda url: None)
    rows = measure("http://nowhere", [[1, 2], [3, 4]], ARGS)
    assert [[row["token_s"] for row in times] for times in rows] == [[0.25, 0.25], [0.25, 0.25]]
    # To warm up; then to fill the cache, and of each time the first token alone and the whole answer.
    assert asked == [([2, 1], 11), *([([1, 2], 1)] * 2), ([1, 2], 11), ([1, 2], 1), ([1, 2], 11), *asked[6:]]


def test_an_answer_has_its_tokens_and_margins() -> None:
    class Handler(QuietHandler):
        def do_POST(self) -> None:
            body = self.body()
            meta = {"output_top_logprobs": [[[-0.1, 7, None], [-2.1, 8, None]]]} if body.get("return_logprob") else {}
            reply = {"output_ids": [7], "meta_info": meta | {"spec_accept_length": 2.5}}
            self.send_text(200, "application/json", json.dumps(reply))

    with serving(Handler) as url:
        assert ask(url, [1], 1).margins == [] and ask(url, [1], 1).per_step == 2.5
        answer = ask(url, [1], 1, margins=True)
        assert answer.tokens == [7] and answer.margins == pytest.approx([2.0])
        with pytest.raises(NotMeasured, match="1 tokens, not 2"):
            ask(url, [1], 2)


def test_where_an_answer_leaves_the_plain_one() -> None:
    plain = [Answer([1, 2, 3], 1.0, 1.0, [5.0, 0.01, 4.0]), Answer([4, 5, 6], 1.0, 1.0, [1.0, 1.0, 1.0])]
    rows = [[{"tokens": [1, 2, 3]}, {"tokens": [1, 9, 9]}], [{"tokens": [4, 5, 6]}, {"tokens": [4, 5, 6]}]]
    assert differences(plain, rows) == [{"prompt": 0, "place": 1, "margin": 0.01}]


def test_servers_differ_in_what_is_compared() -> None:
    made = flags(ARGS)
    assert list(made) == ["stock", "stock+drafts", "redknot", "redknot+drafts"]
    for name, words in made.items():
        assert ("--redknot" in words) == name.startswith("redknot")
        assert ("--speculative-algorithm=NGRAM" in words) == name.endswith("+drafts")
        assert ("fa3" in words) == name.startswith("stock") and "--x=y" in words
    assert "stock+drafts" not in flags(argparse.Namespace(**{**vars(ARGS), "device": "cpu"}))


def test_the_table_tells_guesses_from_repetitions() -> None:
    def rows(first: float, again: float, steps: float) -> list[list[dict[str, object]]]:
        return [[{"token_s": first, "per_step": 1.0}, {"token_s": again, "per_step": steps}] for _ in range(3)]

    sides: dict[str, dict[str, Any]] = {
        "redknot": {"rows": rows(0.004, 0.004, 1.0)},
        "redknot+drafts": {"rows": rows(0.005, 0.002, 4.0), "differences": [{"margin": 0.02}]},
    }
    line = table(sides).splitlines()[-1]
    assert "5.00 (0.80x)" in line and "2.00 (2.00x)" in line and "4.00" in line and "5 of 6" in line and "0.020" in line
    assert "(" not in table({"redknot": sides["redknot"]}).splitlines()[-1]
