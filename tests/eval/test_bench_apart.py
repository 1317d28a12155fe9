# SPDX-License-Identifier: Apache-2.0
"""The benchmark of prefill and decode servers: what it refuses to call a figure, its servers and its table. No server runs here."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from eval import bench_apart
from eval.bench_apart import Asked, Pair, commands, measure, table
from eval.gpu.ask import NotMeasured
from eval.servers import Served
from redknot_sglang.errors import ServerError
from redknot_sglang.measure.launch import Server
from tests.measure.fake_server import QuietHandler, Reply, fake_server, serving

ARGS = argparse.Namespace(
    requests=2, tail_tokens=10, decode_steps=4, chunk=512, mem_fraction=0.8, ib_device="", stock_flags="--x=1"
)


class Answering(Pair):
    """Servers that answer at once and have cached what `cached` says. Each answer sends its prompt: 10 bytes a token, stock 100."""

    def __init__(self, cached: float = 1.0, cold: int = 0) -> None:
        server = Server("http://nowhere", None, Path())  # type: ignore[arg-type]
        super().__init__(server, server, 1)
        self.__dict__.update(asked=[], cached=cached, cold=cold)

    def ask(self, prompt: Sequence[int], answer: int) -> Asked:
        asked: list[list[int]] = self.__dict__["asked"]
        known = any(prompt[: len(other)] == other for other in asked)
        asked.append(list(prompt))
        had = int(self.__dict__["cached"] * len(prompt)) if known else self.__dict__["cold"]
        return Asked(2.0, 1.0 + answer, had)

    def sent_bytes(self) -> dict[str, int] | None:
        tokens = sum(map(len, self.__dict__["asked"]))
        return {"sent": 10 * tokens, "stock": 100 * tokens}


@pytest.fixture(autouse=True)
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_apart, "flush", lambda url: None)


def test_a_step_is_what_lies_between_the_first_token_and_the_last() -> None:
    pair = Answering()
    found = measure(pair, 1000, 100, ARGS)
    assert found["cold_s"] == found["cached_s"] == [2.0, 2.0] and found["step_s"] == [1.0, 1.0]
    assert found["bytes"]["sent"] / found["bytes"]["stock"] == pytest.approx(0.1)
    # One to warm up; then each new prompt and its next turn.
    assert [len(prompt) for prompt in pair.__dict__["asked"]] == [100, *(2 * [100, 110])]


def test_tokens_are_timed_as_they_come() -> None:
    """The decode server streams; the prefill server says at its end what it had cached."""
    wait, bodies = 0.3, list[dict[str, Any]]()

    class Streaming(QuietHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            bodies.append(self.body())
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for count in (1, 2, 3):
                event = f'data: {{"meta_info": {{"completion_tokens": {count}}}}}\n\n'.encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                self.wfile.flush()
                time.sleep(wait / 2)
            self.wfile.write(b"c\r\ndata: [DONE]\r\n0\r\n\r\n")

    meta = {"meta_info": {"cached_tokens": 40}}
    with serving(Streaming) as decode, fake_server(lambda body: Reply(json=meta)) as prefill:
        pair = Pair(Server(prefill.url, None, Path()), Server(decode, None, Path()), 8998)  # type: ignore[arg-type]
        asked = pair.ask([1, 2, 3], 3)
        assert asked.cached == 40 and asked.last_s - asked.first_s > 0.9 * wait
        with pytest.raises(NotMeasured, match="3 tokens, not 4"):
            pair.ask([1, 2, 3], 4)
    one, two = bodies
    assert one["stream"] and one["bootstrap_port"] == 8998 and one["bootstrap_room"] != two["bootstrap_room"]


@pytest.mark.parametrize(("cached", "cold", "why"), [(0.5, 0, "only 55 of 100"), (1.0, 7, "7 tokens of a new prompt")])
def test_a_prompt_in_the_wrong_place_is_no_figure(cached: float, cold: int, why: str) -> None:
    with pytest.raises(NotMeasured, match=why):
        measure(Answering(cached, cold), 1000, 100, ARGS)


def test_the_second_gpu_decodes_and_the_first_says_where_it_is() -> None:
    for side in bench_apart.SIDES:
        made = commands(Served("qwen3-8b", None, "one_of_eight.json", 1), side, 8192, 8998, ARGS)
        assert "--base-gpu-id=1" in made["decode"] and "--base-gpu-id=1" not in made["prefill"]
        assert "--disaggregation-bootstrap-port=8998" in made["prefill"]
        for flags in made.values():
            assert ("--redknot" in flags) == (side == "redknot") and ("--x=1" in flags) == (side == "stock")
            (context,) = [int(flag.partition("=")[2]) for flag in flags if flag.startswith("--context-length=")]
            assert context >= 8192 + ARGS.tail_tokens + 1
    assert "--base-gpu-id=1" not in commands(Served(None, None, "", 1), "stock", 512, 8998, ARGS)["decode"]


def test_a_pair_that_fails_leaves_the_other_s_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def launched(served: Served, sides: Sequence[str], *_: Any) -> Any:
        found = {"stock": ServerError("no transfer engine"), "redknot": Answering()}
        return nullcontext({side: found[side] for side in sides})

    monkeypatch.setattr(bench_apart, "launched", launched)
    monkeypatch.setattr(sys, "argv", ["bench", "--lengths", "128,256", "--json", str(tmp_path / "a.json")])
    bench_apart.main()
    sides = json.loads((tmp_path / "a.json").read_text())["sides"]
    assert sides["stock"] == {"error": "no transfer engine"} and list(sides["redknot"]) == ["128", "256"]
    assert "stock: no transfer engine" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [None, "qwen3-8b"])
def test_pairs_of_a_gpu_start_together_and_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shape: str | None
) -> None:
    """What is measured runs, the other pair is stopped; on a CPU there is no other pair."""
    with ExitStack() as stack:
        begun: list[set[str]] = []
        pairs: dict[str, Asleep] = {}

        def started(_: ExitStack, flags: Mapping[str, Sequence[str]], *__: Any) -> dict[str, Server]:
            begun.append(set(flags))
            servers = {}
            for name in flags:
                process = subprocess.Popen(["sleep", "100"], start_new_session=True)
                stack.callback(process.kill)
                servers[name] = Server("http://nowhere", process, Path())
            return servers

        def states() -> dict[str, list[bool]]:
            """Whether each process is stopped, once the signals have arrived."""
            time.sleep(0.5)
            return {
                side: [psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in pair.pids]
                for side, pair in pairs.items()
            }

        class Asleep(Answering):
            """A pair of processes that are asked nothing. pids: theirs."""

            pids: list[int]

            def __init__(self, prefill: Server, decode: Server, port: int) -> None:
                super().__init__()
                servers = (prefill, decode)
                self.__dict__.update(prefill=prefill, decode=decode, pids=[server.process.pid for server in servers])
                pairs[f"pair {len(pairs)}"] = self

        seen: list[dict[str, list[bool]]] = []

        def measured(pair: Pair, *_: Any) -> dict[str, Any]:
            seen.append(states())
            return {"cold_s": [1.0], "cached_s": [1.0], "step_s": [1.0]}

        monkeypatch.setattr(bench_apart, "start", started)
        monkeypatch.setattr(bench_apart, "Pair", Asleep)
        monkeypatch.setattr(bench_apart, "measure", measured)
        words = [f"--shape={shape}"] if shape else []
        monkeypatch.setattr(sys, "argv", ["bench", "--lengths=128", *words, "--json", str(tmp_path / "a.json")])
        bench_apart.main()
        names = [{f"{side}-{role}" for role in ("prefill", "decode")} for side in bench_apart.SIDES]
        stopped, awake = [True, True], [False, False]
        if shape:
            assert begun == [names[0] | names[1]]
            assert seen == [{"pair 0": awake, "pair 1": stopped}, {"pair 0": stopped, "pair 1": awake}]
        else:
            assert begun == names
            assert seen == [{"pair 0": awake}, {"pair 0": awake, "pair 1": awake}]
        assert set(states()) == {"pair 0", "pair 1"} and all(state == awake for state in states().values())


def test_the_table_compares_with_stock() -> None:
    stock = {"cold_s": [3.0], "cached_s": [1.0], "step_s": [0.02]}
    ours = {"cold_s": [1.5], "cached_s": [0.1], "step_s": [0.02], "bytes": {"sent": 14.0, "stock": 100.0}}
    text = table({"stock": {"64": stock}, "redknot": {"64": ours}})
    assert "1500.0 (2.00x)" in text and "100.0 (10.00x)" in text and "20.0 (1.00x)" in text and "14.0 %" in text
    assert "(" not in table({"stock": {"error": "no"}, "redknot": {"64": ours}}).splitlines()[-1]
