# SPDX-License-Identifier: Apache-2.0
import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval import tasks
from redknot_sglang.cli import eval as eval_command
from redknot_sglang.errors import CliError
from redknot_sglang.measure.statistics import wilson_interval
from tests.measure.fake_server import FakeServer, Reply, fake_server

LENGTH = 256


def run(url: str, *options: str) -> int:
    parser = argparse.ArgumentParser()
    eval_command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["eval", "--url", url, "--length", str(LENGTH), *options])
    return int(args.func(args))


def oracle(right_until: int, task: str = "lookup") -> Callable[[dict[str, Any]], Reply]:
    """Answers that are right for seeds below `right_until` and wrong above."""
    known = {}
    for seed in range(20):
        example = tasks.make_example(task, LENGTH, seed)
        text = example.answer if seed < right_until else example.answer + " red"
        known[tasks.render(example)] = text
        known[json.dumps(tasks.messages(example))] = text

    def answer(body: dict[str, Any]) -> Reply:
        prompt = body["prompt"] if "prompt" in body else json.dumps(body["messages"])
        return Reply((known[prompt],), prompt_tokens=LENGTH, cached_tokens=64)

    return answer


@pytest.mark.parametrize("mode", ["completions", "chat"])
def test_figures_are_those_of_the_answers(mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.json"
    with fake_server(oracle(right_until=15)) as server:
        code = run(server.url, "--tasks=lookup", "--n=20", f"--mode={mode}", f"--json={out}")
    assert code == 0
    record = json.loads(out.read_text())
    found = record["tasks"]["lookup"]
    assert (found["correct"], found["n"], found["accuracy"], found["errors"]) == (15, 20, 0.75, 0)
    assert found["interval_95"] == list(wilson_interval(15, 20))
    assert found["cached_token_share"] == 0.25
    assert found["prompt_tokens_mean"] == LENGTH
    assert 0 < found["ttft_median_s"] <= found["ttft_p99_s"]
    assert [wrong["seed"] for wrong in found["wrong"]] == list(range(15, 20))
    assert all(wrong["got"] == wrong["expected"] + " red" for wrong in found["wrong"])
    assert record["settings"] == {
        "url": server.url,
        "length": LENGTH,
        "n": 20,
        "seed": 0,
        "concurrency": 8,
        "mode": mode,
        "max_tokens": 64,
        "model": "fake",
        "tasks": ["lookup"],
        "sampling": "greedy",
    }
    printed = capsys.readouterr().out
    assert re.search(r"^lookup +15/20 +75.0 % +53.1-88.8 .* 25.0 % +0$", printed, re.MULTILINE)


def test_all_tasks_run_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(lambda body: Reply(("no",))) as server:
        assert run(server.url, "--n=2") == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[2:]] == list(tasks.TASKS)
    assert "not reported" in printed


def test_a_failed_request_counts_as_wrong_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    right = oracle(right_until=20)
    broken = tasks.render(tasks.make_example("lookup", LENGTH, 3))

    def answer(body: dict[str, Any]) -> Reply:
        return Reply(status=400) if body["prompt"] == broken else right(body)

    with fake_server(answer) as server:
        assert run(server.url, "--tasks=lookup", "--n=10") == 1
    captured = capsys.readouterr()
    assert re.search(r"^lookup +9/10 .* 1$", captured.out, re.MULTILINE)
    assert "refused by the test" in captured.err


def test_the_seed_chooses_other_examples() -> None:
    def prompts(seed: int) -> list[str]:
        with fake_server(lambda body: Reply(("x",))) as server:
            run(server.url, "--tasks=lookup", "--n=2", f"--seed={seed}")
        return sorted(body["prompt"] for body in server.bodies)

    first, shifted = prompts(5), prompts(6)
    assert len({*first, *shifted}) == 3


TASK_PACKAGE = """
from dataclasses import dataclass
TASKS = {"echo": None}
@dataclass
class Example:
    answer: str
def make_example(name, length, seed):
    return Example(str(seed))
def render(example):
    return "say " + example.answer
def messages(example):
    return [{"role": "user", "content": render(example)}]
def score(example, text):
    return text == example.answer
"""


def test_tasks_may_come_from_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "my_tasks"
    folder.mkdir()
    (folder / "__init__.py").write_text(TASK_PACKAGE)
    out = tmp_path / "r.json"
    with fake_server(lambda body: Reply((body["prompt"].removeprefix("say "),))) as server:
        assert run(server.url, f"--task-dir={folder}", "--n=3", f"--json={out}") == 0
    assert json.loads(out.read_text())["tasks"]["echo"]["correct"] == 3


def test_any_of_a_tasks_answers_is_right_and_all_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "many_answers"
    folder.mkdir()
    several = TASK_PACKAGE.replace("    answer: str\n", "    answer: str\n    answers: list\n").replace(
        "Example(str(seed))", 'Example(str(seed), [str(seed), "number " + str(seed)])'
    )
    (folder / "__init__.py").write_text(several)
    out = tmp_path / "r.json"
    said = {"say 0": "0", "say 1": "number 1", "say 2": "two"}
    with fake_server(lambda body: Reply((said[body["prompt"]],))) as server:
        assert run(server.url, f"--task-dir={folder}", "--n=3", f"--json={out}") == 0
    found = json.loads(out.read_text())["tasks"]["echo"]
    assert found["correct"] == 2
    assert found["wrong"] == [{"seed": 2, "expected": ["2", "number 2"], "got": "two", "error": None}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks=lookup,nonsense"], "unknown task 'nonsense'; use some of lookup"),
        (["--tasks="], "unknown task ''"),
        (["--n=0"], "--n must be at least 1, got 0"),
        (["--max-tokens=0"], "--max-tokens must be at least 1"),
        (["--concurrency=-1"], "--concurrency must be at least 1"),
        (["--json=/nowhere/at/all/r.json"], "no directory /nowhere/at/all"),
        (["--task-dir=/nowhere"], "/nowhere is no Python package"),
        (["--length=20"], "task lookup: length 20 is too short"),
    ],
)
def test_what_cannot_be_done_is_said(options: list[str], message: str) -> None:
    with fake_server(lambda body: Reply()) as server, pytest.raises(CliError, match=re.escape(message)):
        run(server.url, *options)


def test_a_package_without_tasks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "no_tasks"
    folder.mkdir()
    (folder / "__init__.py").write_text("TASKS = {}")
    with pytest.raises(CliError, match="no_tasks is no task package: it lacks make_example, render"):
        run("http://127.0.0.1:1", f"--task-dir={folder}")


def test_no_server_is_said() -> None:
    with pytest.raises(CliError, match="no OpenAI-compatible server answers"):
        run(FakeServer("http://127.0.0.1:1").url, "--n=1")
