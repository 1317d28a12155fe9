# SPDX-License-Identifier: Apache-2.0
"""The benchmark of copies: its rows, its memory, its table, and what it says where there is no GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from eval import bench_copy
from eval.bench_copy import DIRECTIONS, LAYERS, WAYS, Ends, copier, host_rows, measure, planned, table
from redknot_sglang.kernels.row_runs import RowRuns


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "sub" / "copy.json"
    monkeypatch.setattr(sys, "argv", ["bench_copy", "--json", str(path)])
    with pytest.raises(SystemExit) as ended:
        bench_copy.main()
    assert ended.value.code == 2 and "torch finds no GPU" in capsys.readouterr().err
    assert not path.parent.exists()


@pytest.mark.parametrize("run", [0, 16, 128])
def test_host_rows_lie_in_runs_of_the_length_asked_for(run: int) -> None:
    rows = host_rows(1024, run, torch.Generator().manual_seed(0))
    assert len(rows) == 1024 and int(rows.max()) < 2048
    assert set(RowRuns(rows).counts.tolist()) == {run or 1024}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", [name for name in WAYS if name != "stock"])
def test_every_way_moves_the_rows(monkeypatch: pytest.MonkeyPatch, name: str, direction: str) -> None:
    """On a CPU, which has not got SGLang's kernel."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    host, device = (torch.randint(1, 256, (3 << 20,), dtype=torch.uint8) for _ in range(2))
    ends = Ends(16, 1024, host, device)
    assert len(ends._layers) == LAYERS and ends.layer(LAYERS + 3) is ends.layer(3)
    source, target = (host, device) if direction == "load" else (device, host)
    target.zero_()
    copier(name, direction, ends, 1024)(5)
    generator = torch.Generator().manual_seed(0)
    rows = host_rows(1024, WAYS[name] or 0, generator)
    slots = torch.randperm(2048, generator=generator)[:1024]
    pair = ends.layer(5)
    for on_device, on_host in zip(pair.device, pair.host, strict=True):
        # Made-up bits may be NaN.
        on_device, on_host = (end.view(torch.uint8).flatten(1) for end in (on_device, on_host))
        assert torch.equal(on_device[slots], on_host[rows])
        assert int((on_device if direction == "load" else on_host).any(1).sum()) == 1024
    layer = 2 * 2048 * 16
    assert not target[: 5 * layer].any() and not target[6 * layer :].any() and bool(source.any())


def test_a_server_takes_the_engine_for_runs_of_256_kib() -> None:
    assert [planned(name, 256, 32768) for name in WAYS] == ["", "", "engine", "engine", "kernel"]
    assert planned("runs of 128", 2048, 32768) == "engine" and planned("one run", 256, 512) == "kernel"


class At:
    """A timing event that is over."""

    def __init__(self, milliseconds: float) -> None:
        self.milliseconds = milliseconds

    def elapsed_time(self, other: At) -> float:
        return other.milliseconds - self.milliseconds


class Streams:
    """Stands in for CUDA's streams."""

    def wait_stream(self, _: Any) -> None: ...

    def synchronize(self) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize(("took", "passes"), [((2.0, 4.0, 1.0), 3), ((400.0,), 1)])
def test_rates_are_medians_of_passes(monkeypatch: pytest.MonkeyPatch, took: tuple[float, ...], passes: int) -> None:
    """A pass that takes long is timed once."""
    left = list(took)
    monkeypatch.setattr(bench_copy, "one_pass", lambda *_: (At(0.0), At(left.pop(0)), LAYERS * 5e-6))
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Streams)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    median = sorted(took)[len(took) // 2]

    class Step:
        alone_ms = 0.5

        @staticmethod
        def beside(work: Any, expected_ms: float) -> list[float]:
            assert expected_ms == median
            return [0.6, 0.5, 0.7]

    step: Any = Step
    found = measure(lambda _: None, 40_000_000, step)
    assert found["gb_s"] == pytest.approx(40 / median) and found["n"] == passes
    assert found["launch_us"] == pytest.approx(5.0) and (found["steps"], found["step_ms"]) == (3, 0.6)


def test_the_table_shows_what_a_step_took_over_what_it_takes_alone() -> None:
    row = {"way": "one run", "direction": "load", "bytes": 256, "rows": 32768, "planned": "engine", "gb_s": 47.25}
    row |= {"launch_us": 24.6, "n": 3}
    text = table([row, {**row, "way": "stock", "step_ms": 0.53, "alone_ms": 0.5, "steps": 20}])
    first, second = text.splitlines()[2:]
    assert first.split() == ["one", "run", "load", "256", "32768", "engine", "47.2", "25", "3"]
    assert "1.060" in second and second.endswith("20")
