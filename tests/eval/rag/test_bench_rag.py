# SPDX-License-Identifier: Apache-2.0
"""The whole command against two fake servers, its figures, its files, and what it refuses."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval import bench_rag, servers
from eval.provenance import origin
from eval.rag.chart import draw
from eval.rag.load import Record
from eval.rag.options import check, make_load, make_parser, make_shapes, server_flags
from eval.rag.report import Phase, summarize, traffic_table
from redknot_sglang.errors import CliError
from tests.eval.rag.fake_native import Reply, fake_native, segmented_report

SMALL = ["--documents=6", "--document-tokens=96", "--per-request=3", "--turns=2", "--turn-documents=2", "--requests=4"]


def parse(*words: str) -> argparse.Namespace:
    args = make_parser("").parse_args(words)
    check(args)
    return args


def record(number: int, ttft: float, prompt: str = "same", error: str | None = None, **fields: Any) -> Record:
    place = {"dialogue": number, "turn": 0, "task": "lookup", "prompt": prompt, "prompt_tokens": 100}
    times = {"start_s": float(number), "late_s": 0.0, "ttft_s": ttft, "total_s": 2 * ttft}
    counts = {"output": [1], "output_tokens": 5, "right": True, "reused": 60, "computed": 40}
    return Record(**{**place, **times, **counts, "error": error, **fields})


STOCK = Phase("permuted", "stock", [record(n, ttft) for n, ttft in enumerate((1.0, 2.0, 3.0, 4.0, 5.0))])
BLEND = Phase(
    "permuted", "blend:0.05", [record(0, 0.5, "other", right=False), record(1, 1.5), record(2, 9, error="no")]
)


def test_figures_of_a_phase() -> None:
    found = summarize(STOCK, STOCK)
    assert found["ttft_s"] == {"p50": 3.0, "p99": pytest.approx(4.96)}
    assert found["total_s"]["p50"] == 6.0 and found["ratio"] == 1.0 and found["same_prompts"] == 1.0
    # The first was sent at 0 s, the last answer came at 4 + 10 s.
    assert found["seconds"] == 14.0
    assert found["requests_per_s"] == 5 / 14 and found["output_tokens_per_s"] == 25 / 14
    assert found["shares"] == {"reused": 0.6, "relocated": 0.0, "repaired": 0.0, "computed": 0.4}
    assert (found["right"], found["asked"]) == (5, 5) and found["interval_95"][1] == 1.0


def test_failed_requests_are_counted_and_not_measured() -> None:
    found = summarize(BLEND, STOCK)
    assert (found["n"], found["errors"], found["first_error"]) == (2, 1, "no")
    assert found["ttft_s"]["p50"] == 1.0 and found["ratio"] == 3.0
    assert found["same_prompts"] == 0.5 and found["right"] == 1


def test_a_phase_without_answers_has_no_figures_and_still_a_line() -> None:
    nothing = Phase("permuted", "none", [record(0, 1.0, error="no")])
    found = summarize(nothing, STOCK)
    assert found == {"n": 0, "errors": 1, "first_error": "no"}
    summaries = {"none": found, "blend:0.05": summarize(BLEND, nothing)}
    table = traffic_table(summaries).splitlines()
    assert table[2].split()[:3] == ["none", "0", "-"] and "1/2 (0.09-0.91)" in table[3]
    image = draw([nothing, BLEND], {"permuted": summaries}, "note")
    assert image.size == (1240, 430)


def test_the_chart_has_a_row_for_each_kind_of_traffic_and_every_side_in_its_colour() -> None:
    phases = [STOCK, BLEND, Phase("multiturn", "stock", STOCK.records)]
    summaries = {
        "permuted": {"stock": summarize(STOCK, STOCK), "blend:0.05": summarize(BLEND, STOCK)},
        "multiturn": {"stock": summarize(STOCK, STOCK)},
    }
    image = draw(phases, summaries, "note")
    assert image.size == (1240, 70 + 2 * 360)
    colors = {color for _, color in image.getcolors(2**20) or []}
    assert {(120, 126, 136), (196, 52, 52)} <= colors


def test_the_command_measures_both_servers_and_writes_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bench_rag", *SMALL])
    files = [f"--json={tmp_path / 'new' / 'rag.json'}", f"--png={tmp_path / 'rag.png'}"]
    with (
        fake_native(lambda body: Reply((5, 6), cached=4)) as stock,
        fake_native(lambda body: Reply((5, 6), report=segmented_report(body))) as redknot,
    ):
        args = parse(*SMALL, *files, f"--stock={stock.url}", f"--redknot={redknot.url}", "--policies=none,blend:0.05")
        args.reordered = True
        assert bench_rag.run(args)
    # One request wakes each policy; then, for each kind and side: flush, two requests that show six documents, four that count.
    assert (stock.flushes, redknot.flushes) == (4, 4)
    assert (len(stock.bodies), len(redknot.bodies)) == (1 + 4 * (2 + 4), 2 + 4 * (2 + 4))
    found = json.loads((tmp_path / "new" / "rag.json").read_text())
    assert found["command"].startswith("python -m eval.bench_rag --documents=6")
    assert found["servers"] == "were running" and found["versions"]["sglang"] and found["hardware"]
    assert found["kv"]["stock_bytes"] == 4000 and found["kv"]["redknot_bytes"] == 4001
    assert found["corpus"] == {"documents": 6, "tokens": 576, "longest": 96, "data": None}
    assert len(found["requests"]) == 2 * 4 * 4
    assert {(row["traffic"], row["side"]) for row in found["requests"]} == {
        (kind, side)
        for kind in ("permuted", "multiturn")
        for side in ("stock", "stock, reordered", "none", "blend:0.05")
    }
    sides = found["summary"]["permuted"]
    assert sides["none"]["ratio"] == sides["stock"]["ttft_s"]["p50"] / sides["none"]["ttft_s"]["p50"]
    assert found["summary"]["multiturn"]["blend:0.05"]["same_prompts"] == 1
    assert sides["stock, reordered"]["same_prompts"] < 1, "its documents are in other orders"
    assert Image.open(tmp_path / "rag.png").size[0] == 1240
    printed = capsys.readouterr().out
    assert "TTFT p50, stock/side, permuted: stock, reordered " in printed and "exact match (95 %)" in printed


def test_a_request_that_fails_is_in_the_exit_code(tmp_path: Path) -> None:
    files = [f"--json={tmp_path / 'rag.json'}", f"--png={tmp_path / 'rag.png'}", "--traffic=permuted", "--cold"]
    calls = iter(range(100))
    refuse = Reply((), status=500)
    with (
        fake_native(lambda body: refuse if next(calls) == 3 else Reply((5,))) as stock,
        fake_native(lambda body: Reply((5,), report=segmented_report(body))) as redknot,
    ):
        args = parse(*SMALL, *files, f"--stock={stock.url}", f"--redknot={redknot.url}", "--policies=none")
        assert not bench_rag.run(args)
    assert json.loads((tmp_path / "rag.json").read_text())["summary"]["permuted"]["stock"]["errors"] == 1


def test_a_policy_that_is_not_served_is_an_error_before_anything_is_measured(tmp_path: Path) -> None:
    files = [f"--json={tmp_path / 'rag.json'}", f"--png={tmp_path / 'rag.png'}"]
    with (
        fake_native(lambda body: Reply((5,))) as stock,
        fake_native(lambda body: Reply((), status=400)) as redknot,
    ):
        words = [*SMALL, *files, f"--stock={stock.url}", f"--redknot={redknot.url}", "--policies=bland"]
        with pytest.raises(CliError, match="bland: a request of the warm-up failed: HTTP 400.*refused by the test"):
            bench_rag.run(parse(*words))
    assert len(stock.bodies) == 1 and stock.flushes == 0


@pytest.mark.parametrize(("history", "same"), [("own", 0.5), ("stock", 1.0)])
def test_stock_answers_in_all_dialogues_make_all_prompts_the_same(tmp_path: Path, history: str, same: float) -> None:
    files = [f"--json={tmp_path / 'rag.json'}", f"--png={tmp_path / 'rag.png'}"]
    with (
        fake_native(lambda body: Reply((5, 6))) as stock,
        fake_native(lambda body: Reply((7, 8), report=segmented_report(body))) as redknot,
    ):
        words = [*SMALL, *files, f"--stock={stock.url}", f"--redknot={redknot.url}", "--policies=none"]
        assert bench_rag.run(parse(*words, "--traffic=multiturn", f"--history={history}"))
    assert json.loads((tmp_path / "rag.json").read_text())["summary"]["multiturn"]["none"]["same_prompts"] == same


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stock=http://h"], "neither"),
        (["--rate=1", "--concurrency=2"], "one of them"),
        (["--rate=0"], "--rate must be over 0"),
        (["--requests=0"], "--requests must be at least 1"),
        (["--back=2"], "--back"),
        (["--traffic=permuted,chat"], "'chat' is not known"),
        (["--stock=http://h", "--redknot=http://i", "--data=x"], "--tokenizer"),
        (["--stock=http://h", "--redknot=http://i", "--shape=qwen3-8b"], "--shape"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(CliError, match=message):
        parse(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--documents=3"], "raise --documents"),
        (["--per-request=24", "--document-tokens=500"], "8448 positions"),
        (["--data=/nowhere/data"], "/nowhere/data"),
        (["--data=/dev/null"], "MTRAG"),
        (["--shape=unknown"], "eval/shapes"),
    ],
)
def test_sizes_and_files_that_cannot_be_are_refused_before_a_server_starts(
    tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(CliError, match=message):
        bench_rag.run(parse(f"--json={tmp_path / 'a.json'}", f"--png={tmp_path / 'a.png'}", *words))


def test_servers_that_are_started_here_get_the_same_bytes() -> None:
    served = servers.Served(None, None, "", threads=1)
    common, extra = server_flags(parse("--kv-tokens=5000"), served, longest=4000)
    assert extra["stock"] == ["--max-total-tokens=5000"]
    assert f"--redknot-kv-budget={5000 * 2 * 6 * 4 * 64 * 4}" in extra["redknot"]
    assert "--redknot-repair=blend:0.08" in extra["redknot"]
    assert not any("kv" in flag or "max-total" in flag for flag in common)
    _, extra = server_flags(parse("--policies=boundary:16"), served, longest=4000)
    assert "--redknot-repair=boundary:16" in extra["redknot"]
    assert extra["stock"] == [f"--max-total-tokens={24 * 320 + 8 * 4000}"]


def test_answers_are_scored_only_where_the_model_may_end_them() -> None:
    assert make_load(parse()).scored
    for words in (["--output-tokens=8"], ["--data=x"], ["--shape=qwen3-8b"]):
        load = make_load(parse(*words))
        assert not load.scored and load.answer_tokens == (8 if "8" in words[0][-1] else 16)
    assert make_shapes(parse("--traffic=multiturn", "--turns=3"))["multiturn"].turns == 3


def test_a_result_names_versions_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr("eval.provenance.subprocess.run", missing)
    found = origin(argparse.Namespace(json=Path("/somewhere/a.json"), n=3))
    assert found["options"] == {"json": "a.json", "n": 3}
    assert found["hardware"].startswith("CPU") and found["versions"]["torch"]
