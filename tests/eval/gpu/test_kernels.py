# SPDX-License-Identifier: Apache-2.0
"""The kernel benchmarks without their clocks: on a CPU nothing can be timed, but what is timed can be run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from eval import bench_kernels, bench_scattered
from eval.gpu import kernels, relocation
from eval.gpu.kernel_work import Work
from redknot_sglang.kernels.extend_torch import TorchExtend


def run_once(calls: Sequence[Callable[[], object]], replays: int = 1) -> float:
    """In place of `graph_time`: every call once, and a time that no figure can be mistaken for."""
    for call in calls:
        call()
    return 2.0


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bench_kernels, bench_scattered, relocation):
        monkeypatch.setattr(module, "DEVICE", torch.device("cpu"))
        monkeypatch.setattr(module, "graph_time", run_once)


def test_relocation_counts_the_bytes_that_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[torch.Tensor, torch.Tensor]] = []
    relocate = relocation.relocate

    def watch(layers: relocation.KVLayers, source: torch.Tensor, target: torch.Tensor, *rest: object) -> None:
        moved.append((source, target))
        assert len(layers.k) == len(layers.v) == 36 and layers.k[0].shape == (65, 2, 128)
        relocate(layers, source, target, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(relocation, "relocate", watch)
    found = relocation.bench(32, 2, bench_kernels.Hardware(bandwidth=1e6, products=1e6))
    source, target = moved[0]
    # No slot is both, none is the dummy, all are in the pool.
    assert sorted(torch.cat([source, target]).tolist()) == list(range(1, 65))
    read_and_written = 2 * 2 * 32 * 2 * 128 * 2 * 36
    assert found["us"] == 2.0 and found["tb_s"] == pytest.approx(read_and_written / 2 / 1e6)
    assert found["share_of_copy"] == pytest.approx(read_and_written / 2 / 1e6)


@pytest.mark.parametrize(("batch", "rows", "context"), [(1, 8, 64), (3, 4, 32)])
def test_batches_of_the_kernel_benchmarks_can_be_planned_and_run(batch: int, rows: int, context: int) -> None:
    extend, decode = bench_kernels.make_batches(batch, rows, context)
    split, _ = bench_kernels.specs(group=2, window=16)
    pools = bench_kernels.make_layers(batch * rows, batch * context, 10**9, 1, 2)
    for phase, n in (("extend", batch * rows), ("decode", batch)):
        path, plan = bench_kernels.build(phase, "torch", split, extend, decode)
        plan()
        assert path.run("global", pools[0].q[:n], pools[0].k, pools[0].v, 0.1).shape == (n, 2, 128)


@pytest.mark.parametrize(
    ("rows", "context", "reach"), [(10, 10, 10), (10, 30, 30), (10, 30, 5), (8, 12, 6), (12, 12, 3), (1, 9, 4)]
)
def test_work_counts_pairs_and_tokens_within_reach(rows: int, context: int, reach: int) -> None:
    seen = [set(range(max(0, at + 1 - reach), at + 1)) for at in range(context - rows, context)]
    work = Work(3, rows, context, reach, group=2, dim=16)
    assert work.flops == 3 * 2 * 4 * 16 * sum(map(len, seen))
    assert work.kv_tokens == 3 * len(set().union(*seen))
    assert work.rate("extend", 5, 2.0) == pytest.approx(5 * work.flops / 2e6)
    assert work.rate("decode", 5, 2.0) == pytest.approx(5 * work.kv_tokens * 2 * 16 * 2 / 2e6)


@pytest.mark.parametrize("scattered", [True, False])
def test_rows_of_the_scattered_benchmark_agree_with_its_oracle(scattered: bool) -> None:
    batch, at = bench_scattered.make_rows(12, 96, scattered)
    assert len(at) == 12 == len(set(at)) and at == sorted(at) and at[-1] < 96
    (layer, *_) = bench_scattered.make_layers(12, 96, 10**9, 1, bench_scattered.GROUP)
    spec = bench_kernels.ClassSpec(
        bench_scattered.GROUP, 128, (1,), (7,), bench_scattered.WINDOW, 4, torch.bfloat16, torch.device("cpu")
    )
    path = TorchExtend(spec)
    path.plan_extend(batch)
    out = path.run("global", layer.q, layer.k, layer.v, bench_kernels.SCALE)
    want, chosen = bench_scattered.oracle(batch, at, "global", layer)
    error, worst = bench_scattered.errors(out[chosen], want)
    assert error < bench_scattered.TOLERANCE and worst < bench_scattered.ROW_TOLERANCE


def test_a_benchmark_runs_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = "import sys, pathlib\npathlib.Path(sys.argv[1].split('=')[1]).write_text('{\"rows\": [1]}')\nsys.exit(1)\n"
    (tmp_path / "writes.py").write_text(write)
    (tmp_path / "fails.py").write_text("raise SystemExit('no GPU here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(kernels, "MODULES", {"writes": "writes", "fails": "fails"})
    cell = kernels.measure("writes", tmp_path, timeout=60)
    assert cell.details == {"rows": [1], "exit_code": 1} and cell.side == "writes" and cell.unit == "s"
    with pytest.raises(RuntimeError, match="no GPU here"):
        kernels.measure("fails", tmp_path, timeout=60)


def test_every_benchmark_is_a_module_with_a_json_option() -> None:
    for module in kernels.MODULES.values():
        source = Path(__file__).resolve().parents[3] / (module.replace(".", "/") + ".py")
        assert '"--json"' in source.read_text()
