# SPDX-License-Identifier: Apache-2.0
"""The whole command: against servers that compute nothing, and its steps against real ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval import bench_gpu
from eval.gpu import cold, concurrency, decode, fleet, prefix, segments
from eval.gpu.options import make_parser
from redknot_sglang.errors import CliError, ServerError
from redknot_sglang.measure.launch import Server
from tests.eval.gpu.fake_radix import by_the_token, fake_radix
from tests.serving import harness

SMALL = ["--requests=2", "--lengths=256", "--decode=256:1,256:2", "--decode-steps=4", "--segment-lengths=256"]
SMALL += ["--segments=2", "--tail=16", "--policies=boundary:4", "--load-documents=6", "--load-document-tokens=96"]
SMALL += ["--load-per-request=3", "--load-seconds=0.1", "--load-box=0", "--load-policy=none,boundary:4"]


class FakeStart:
    """Stands for `eval.servers.start`: servers in this process, and a child of each that can be stopped and ended."""

    def __init__(self, broken: Sequence[str] = ()) -> None:
        self.broken, self.waves = broken, list[list[str]]()

    def __call__(
        self, stack: ExitStack, commands: Mapping[str, Sequence[str]], environment: Mapping[str, str], logs: Path
    ) -> dict[str, Server | ServerError]:
        self.waves.append(list(commands))
        return {side: self._one(stack, side, logs) for side in commands}

    def _one(self, stack: ExitStack, side: str, logs: Path) -> Server | ServerError:
        if side in self.broken:
            return ServerError("the server ended with exit code 1; no memory")
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        stack.callback(child.wait)
        stack.callback(child.kill)
        log = logs.with_name(side)
        log.write_text("")
        return Server(stack.enter_context(fake_radix(is_redknot=side != "stock")).url, child, log)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStart]:
    found = FakeStart()
    monkeypatch.setattr(fleet, "start", found)
    # On a busy machine noise is larger than what steps of a server that computes nothing take.
    monkeypatch.setattr(decode, "generate", by_the_token)
    yield found


def run(tmp_path: Path, *words: str) -> tuple[bool, dict[str, Any]]:
    path = tmp_path / "new" / "gpu.json"
    args = make_parser("").parse_args([*SMALL, f"--json={path}", *words])
    return bench_gpu.run(args), json.loads(path.read_text())


def sides(found: dict[str, Any], step: str) -> set[tuple[str, str]]:
    return {(cell["side"], cell["case"]) for cell in found["cells"] if cell["step"] == step}


def test_every_step_on_every_side(tmp_path: Path, fakes: FakeStart, capsys: pytest.CaptureFixture[str]) -> None:
    complete, found = run(tmp_path, "--maps=head_map,rho.25-w64", "--steps=cold,prefix,decode,segments,load")
    assert complete and fakes.waves == [["stock", "head_map", "rho.25-w64"]]
    both = {("stock", ""), ("head_map", ""), ("rho.25-w64", "")}
    assert sides(found, "cold") == both
    assert sides(found, "prefix") == {(side, f"+{new}") for side, _ in both for new in (16, 2 * 16 + 16)}
    assert sides(found, "decode") == {(side, f"batch {batch}") for side, _ in both for batch in (1, 2)}
    # Segments and load are of the first map.
    assert sides(found, "segments") == {("stock", ""), ("head_map", "boundary:4")}
    assert sides(found, "load") == {("stock", ""), ("head_map", "none"), ("head_map", "boundary:4")}
    run_head = found["runs"][0]
    assert run_head["command"].startswith("python -m eval.bench_gpu") and run_head["versions"]["sglang"]
    assert run_head["servers"]["rho.25-w64"]["head_map"] == {"rho": 0.25, "window": 64, "sink": 4}
    assert "/" not in run_head["servers"]["head_map"]["flags"].replace("application/", "")
    assert all(cell["n"] == len(cell["samples"]) >= 1 for cell in found["cells"])
    assert Image.open(tmp_path / "new" / "gpu.webp").size[0] == 1240
    assert "cold prompt of 256 tokens" in capsys.readouterr().out


def test_requests_held_at_once_have_servers_of_their_own(
    tmp_path: Path, fakes: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concurrency, "most_running", lambda log: 2)
    words = ["--maps=head_map,rho.25-w64", "--steps=concurrency", "--lengths=256,512", "--kv-gib=0.02"]
    complete, found = run(tmp_path, *words)
    assert complete and fakes.waves == [["stock", "head_map"]] * 2
    cells = [(cell["side"], cell["case"], cell["length"], cell["samples"]) for cell in found["cells"]]
    assert cells == [(side, "0.02 GiB", length, [2]) for length in (256, 512) for side in ("stock", "head_map")]
    monkeypatch.setattr(concurrency, "most_running", lambda log: 0)
    complete, found = run(tmp_path, *words, "--append")
    assert not complete and "no decode batch" in found["runs"][1]["errors"][0]["error"]


def test_further_maps_can_have_fewer_steps(tmp_path: Path, fakes: FakeStart) -> None:
    words = ["--maps=head_map,rho.25-w64", "--steps=cold,prefix", "--further-steps=cold", "--new=8"]
    complete, found = run(tmp_path, *words)
    assert complete and sides(found, "cold") == {("stock", ""), ("head_map", ""), ("rho.25-w64", "")}
    assert sides(found, "prefix") == {("stock", "+8"), ("head_map", "+8")}


def test_servers_come_one_after_the_other_and_runs_add_up(tmp_path: Path, fakes: FakeStart) -> None:
    run(tmp_path, "--steps=cold", "--together=1")
    complete, found = run(tmp_path, "--steps=prefix", "--append", "--new=8")
    assert complete and fakes.waves == [["stock"], ["head_map"], ["stock", "head_map"]]
    assert [(cell["run"], cell["step"]) for cell in found["cells"]] == [(0, "cold")] * 2 + [(1, "prefix")] * 2
    with pytest.raises(CliError, match="--append"):
        run(tmp_path)


def test_what_fails_is_noted_and_the_rest_is_measured(
    tmp_path: Path, fakes: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.broken = ["rho.25-w64"]
    monkeypatch.setattr(prefix, "WARM_UP", -10)
    complete, found = run(tmp_path, "--maps=head_map,rho.25-w64", "--steps=prefix,cold")
    assert not complete and sides(found, "cold") == {("stock", ""), ("head_map", "")}
    whats = [error["what"] for error in found["runs"][0]["errors"]]
    assert whats == ["rho.25-w64 did not start", "prefix, 256 tokens, stock", "prefix, 256 tokens, head_map"]


def test_a_server_that_dies_takes_only_its_own_cells(
    tmp_path: Path, fakes: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = cold.measure

    def kill_after(url: str, side: str, *sizes: int) -> Any:
        if side == "stock":
            return measure(url, side, *sizes)
        os.killpg(children[side].process.pid, signal.SIGKILL)
        children[side].process.wait()
        raise ConnectionError("gone")

    children: dict[str, Server] = {}
    latency = bench_gpu.Bench.latency

    def remember(self: bench_gpu.Bench, servers: dict[str, Server]) -> None:
        children.update(servers)
        latency(self, servers)

    monkeypatch.setattr(bench_gpu.Bench, "latency", remember)
    monkeypatch.setattr(cold, "measure", kill_after)
    complete, found = run(tmp_path, "--steps=cold,prefix", "--new=8")
    assert not complete and sides(found, "prefix") == {("stock", "+8")}
    assert "the server has ended" in found["runs"][0]["errors"][1]["error"]


def test_no_cell_begins_when_the_time_is_over(tmp_path: Path, fakes: FakeStart) -> None:
    complete, found = run(tmp_path, "--steps=cold", "--seconds=0")
    assert not complete and not found["cells"] and not fakes.waves
    assert "--seconds are over" in found["runs"][0]["errors"][0]["error"]


@pytest.mark.serving
def test_the_steps_on_real_servers(
    stock_server: harness.Server, redknot_server: harness.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "generate", by_the_token)
    for side, server in (("stock", stock_server), ("m", redknot_server)):
        assert len(cold.measure(server.url, side, 600, 2048, 2).samples) == 2
        hits = prefix.measure(server.url, side, 600, 2048, 2, [16, 40])
        assert [cell.details["cached"] for cell in hits] == [600, 600]
        steps = decode.measure(server.url, side, 600, 2048, 2, batch=3, distinct=2, steps=4)
        assert steps.samples == pytest.approx([0.01, 0.01]) and steps.details["distinct_prompts"] == 2
    shape = 700, 2048, 2, 4, 16
    stock = segments.measure(stock_server.running, "stock", "stock", *shape)
    ours = segments.measure(redknot_server.running, "m", "boundary:4", *shape)
    assert stock.details["cached_share"] < 0.9
    most = prefix.boundary_rows(4, 4, 16)
    assert all(most - 2 * 4 <= rows <= most for rows in ours.details["computed_tokens"])
