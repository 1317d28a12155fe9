# SPDX-License-Identifier: Apache-2.0
"""Every attention path on a real GPU against the oracle: shapes, mixed lengths, CUDA graphs, no waiting.

FlashInfer compiles at first use, a minute or more per head dimension. The trials of all head dimensions
therefore start together, in processes of their own, while other tests run.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from redknot_sglang.kernels.batch import CLASSES, ClassSpec, DecodeBatch, ExtendBatch, HeadClass
from redknot_sglang.kernels.extend_fa3 import Fa3Extend
from redknot_sglang.kernels.extend_triton import TritonExtend
from redknot_sglang.kernels.select import PAIRS, Paths, available_paths, select_paths
from redknot_sglang.kernels.trial import extend_trial_error_in_child
from tests.kernels.cases import SCALE, Case, make_case, make_spec

pytestmark = pytest.mark.gpu

# (path, head_dim, group); cheap builds first.
SHAPES = [
    *(("triton", dim, group) for dim, group in ((128, 4), (128, 1), (128, 8), (64, 4), (96, 1), (256, 8))),
    *(("fa3", dim, group) for dim, group in ((128, 4), (128, 1), (128, 8), (64, 4), (96, 1), (256, 8))),
    *(("flashinfer", dim, group) for dim, group in ((128, 4), (128, 1), (128, 8), (64, 4), (256, 8))),
]
WINDOWS = [(16, 0), (16, 4), (128, 1), (512, 4)]
PREFIXES, ROWS = [0, 0, 3, 100, 515, 700, 2000, 9000], [1, 300, 2, 40, 1, 129, 513, 1]
LENS = [1, 2, 15, 17, 127, 129, 511, 513, 517, 2000, 4000, 9000]


class Trials:
    """Trials of the libraries in child processes, all started at once and waited for where needed."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        wanted = [("flashinfer", dim, 4) for dim in (128, 64, 256)]
        wanted += [shape for shape in SHAPES if shape[0] == "fa3"]
        self._running: dict[tuple[str, int, int], Future[str | None]] = {
            (name, dim, group): pool.submit(extend_trial_error_in_child, PAIRS[name].extend, gpu_spec(dim, group))
            for name, dim, group in wanted
        }

    def build(self, name: str, spec: ClassSpec) -> Paths:
        """The pair of paths, once its kernels are there; skips where the machine lacks them, saying what."""
        for (library, dim, _), trial in self._running.items():
            # fa3 decodes by flashinfer.
            if dim == spec.head_dim and library in ("flashinfer", name) and name in ("fa3", "flashinfer"):
                trial.result()
        reason = PAIRS[name].why_not(spec)
        if reason is not None:
            pytest.skip(f"{name}: {reason}")
        return select_paths(name, spec)


@pytest.fixture(scope="module")
def trials() -> Iterator[Trials]:
    with ThreadPoolExecutor(9) as pool:
        yield Trials(pool)


def gpu_spec(
    head_dim: int, group: int = 4, window: int = 128, sink: int = 4, dtype: torch.dtype = torch.bfloat16
) -> ClassSpec:
    return make_spec(head_dim=head_dim, group=group, window=window, sink=sink, dtype=dtype, device="cuda", n_global=2)


def assert_near(out: torch.Tensor, want: torch.Tensor, tolerance: float = 8e-3) -> None:
    """Relative error of the whole and, more loosely, of each row and head: one wrong row must show."""
    error = (out.float() - want).norm(dim=-1) / want.norm(dim=-1)
    assert bool(out.isfinite().all()), "not finite"
    assert float((out.float() - want).norm() / want.norm()) < tolerance
    assert float(error.max()) < 6 * tolerance, f"row, head {divmod(int(error.argmax()), error.shape[1])}"


def check_extend_and_decode(paths: Paths, spec: ClassSpec, tolerance: float = 8e-3) -> None:
    case = make_case(spec, PREFIXES, ROWS)
    paths.extend.plan_extend(case.extend)
    for head_class in CLASSES:
        want, _ = case.expected(case.extend, head_class)
        assert_near(case.run(paths.extend, head_class), want, tolerance)
        assert_near(case.run_to_targets(paths.extend, head_class), want, tolerance)
    case = make_case(spec, [n - 1 for n in LENS], [1] * len(LENS), seed=1)
    for batch in (case.decode, replace(case.decode, seq_lens=case.decode.seq_lens.int(), seq_lens_cpu=None)):
        paths.decode.plan_decode(batch)
        for head_class in CLASSES:
            want, _ = case.expected(batch, head_class)
            assert_near(case.run(paths.decode, head_class), want, tolerance)
            assert_near(case.run_to_targets(paths.decode, head_class), want, tolerance)


@pytest.mark.parametrize(("name", "head_dim", "group"), SHAPES)
def test_extend_and_decode(name: str, head_dim: int, group: int, trials: Trials) -> None:
    for window, sink in WINDOWS:
        spec = gpu_spec(head_dim, group, window, sink)
        check_extend_and_decode(trials.build(name, spec), spec)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.float32, 1e-4)], ids=["fp16", "fp32"])
def test_triton_in_other_dtypes(dtype: torch.dtype, tolerance: float, trials: Trials) -> None:
    spec = gpu_spec(64, 2, dtype=dtype)
    check_extend_and_decode(trials.build("triton", spec), spec, tolerance)


@pytest.mark.parametrize(("head_dim", "group"), [(128, 4), (128, 8), (64, 1), (256, 2), (96, 3)])
def test_triton_splits_the_tail_of_a_long_prompt(head_dim: int, group: int) -> None:
    spec = gpu_spec(head_dim, group)
    case = make_case(spec, [16_000, 40], [129, 3])
    path = TritonExtend(spec)
    path.plan_extend(case.extend)
    assert path.work["global", 2].parts > 8 and path.work["local", 3].parts == 0
    for head_class in CLASSES:
        assert_near(case.run(path, head_class), case.expected(case.extend, head_class)[0])


def test_hopper_has_all_paths_for_head_dim_128(trials: Trials) -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("fa3 is for Hopper")
    trials.build("flashinfer", gpu_spec(128))
    reasons = available_paths(gpu_spec(128))
    assert "CPU" in str(reasons.pop("torch"))
    assert reasons == dict.fromkeys(("fa3", "flashinfer", "triton"))


def subset(case: Case, members: list[int], static_q: dict[HeadClass, torch.Tensor]) -> DecodeBatch:
    """Some requests of the case as a batch of their own; their queries go into the static buffers."""
    index = torch.tensor(members, device="cuda")
    for head_class, buffer in static_q.items():
        buffer[: len(members)] = case.q[head_class][index]
    whole = case.decode
    lens = [LENS[i] for i in members]
    return replace(
        whole,
        req_pool_indices=whole.req_pool_indices[index],
        seq_lens=whole.seq_lens[index],
        seq_lens_cpu=lens,
    )


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("name", ["triton", "flashinfer", "fa3"])
def test_decode_graphs_follow_their_batches(name: str, streams: int, trials: Trials) -> None:
    """Two batch sizes captured with dummy lengths, then replayed in turns over batches of other lengths."""
    spec = gpu_spec(128)
    path = trials.build(name, spec).decode
    case = make_case(spec, [n - 1 for n in LENS], [1] * len(LENS), seed=2)
    static_q = {c: torch.zeros_like(case.q[c]).contiguous() for c in CLASSES}
    side = torch.cuda.Stream()

    def run(bs: int) -> dict[HeadClass, torch.Tensor]:
        def one(head_class: HeadClass) -> torch.Tensor:
            pools = case.k[head_class], case.v[head_class]
            return path.run(head_class, static_q[head_class][:bs], *pools, SCALE)

        if streams == 1:
            return {c: one(c) for c in CLASSES}
        side.wait_stream(torch.cuda.current_stream())
        out: dict[HeadClass, torch.Tensor] = {"global": one("global")}
        with torch.cuda.stream(side):
            out["local"] = one("local")
        torch.cuda.current_stream().wait_stream(side)
        return out

    path.init_graph(max_bs=6, max_context=10_000)
    graphs = {}
    for bs in (5, 2):
        dummy = subset(case, [0] * bs, static_q)
        path.plan_graph(dummy)
        warm = torch.cuda.Stream()
        warm.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm):
            run(bs)
        torch.cuda.current_stream().wait_stream(warm)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run(bs)
        graphs[bs] = graph, out
    for members in ([11, 0, 5, 3, 8], [2, 10], [1, 1, 1, 1, 1], [7, 9], [6, 4, 10, 11, 0]):
        bs = len(members)
        batch = subset(case, members, static_q)
        path.plan_graph(batch)
        graphs[bs][0].replay()
        results = {c: graphs[bs][1][c].clone() for c in CLASSES}
        path.plan_decode(batch)
        index = torch.tensor(members, device="cuda")
        for head_class in CLASSES:
            want = case.expected(case.decode, head_class)[0][index]
            assert_near(results[head_class], want)
            pools = case.k[head_class], case.v[head_class]
            eager = path.run(head_class, static_q[head_class][:bs], *pools, SCALE)
            assert_near(results[head_class], eager.float())


@pytest.mark.parametrize("name", ["triton", "flashinfer", "fa3"])
def test_nothing_waits_for_the_device(name: str, trials: Trials) -> None:
    spec = gpu_spec(128)
    paths = trials.build(name, spec)
    case = make_case(spec, [0, 700, 40], [300, 1, 60])
    paths.decode.init_graph(max_bs=3, max_context=1000)
    for mode in ("default", "error"):  # the first round loads kernels
        torch.cuda.set_sync_debug_mode(mode)
        try:
            paths.extend.plan_extend(case.extend)
            for head_class in CLASSES:
                case.run(paths.extend, head_class)
            paths.decode.plan_decode(case.decode)
            paths.decode.plan_graph(case.decode)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["triton", "flashinfer", "fa3"])
def test_an_extend_plan_leaves_queued_batches_alone(name: str, trials: Trials) -> None:
    """The host is batches ahead of a busy device: each queued batch still runs with its own plan."""
    spec = gpu_spec(128)
    paths = trials.build(name, spec)
    shapes = [([0, 700, 40], [300, 1, 60]), ([9000], [513]), ([0] * 12, [1] * 12), ([100, 3], [129, 400])]
    cases = [make_case(spec, *shape, seed=seed) for seed, shape in enumerate(shapes)]
    check_queued(paths, cases, decode=False)


@pytest.mark.parametrize("name", ["triton", "flashinfer", "fa3"])
def test_a_decode_plan_leaves_queued_batches_alone(name: str, trials: Trials) -> None:
    """As above for decode, whose lists of pages differ in number and length from batch to batch."""
    spec = gpu_spec(128)
    paths = trials.build(name, spec)
    lengths = [[9000], [15] * 40, [4000, 1, 700], LENS]
    cases = [make_case(spec, [n - 1 for n in lens], [1] * len(lens), seed) for seed, lens in enumerate(lengths)]
    check_queued(paths, cases, decode=True)


def check_queued(paths: Paths, cases: list[Case], decode: bool) -> None:
    """Plan and run all cases while the device is still asleep, then compare each with the oracle."""
    wanted = [{c: case.expected(case.decode if decode else case.extend, c)[0] for c in CLASSES} for case in cases]
    for busy in (0, 200_000_000):  # cycles; the first round loads kernels
        results = []
        for case in cases:
            torch.cuda._sleep(busy)
            if decode:
                paths.decode.plan_decode(case.decode)
            else:
                paths.extend.plan_extend(case.extend)
            results.append({c: case.run(paths.decode if decode else paths.extend, c) for c in CLASSES})
        for result, want in zip(results, wanted, strict=True):
            for head_class in CLASSES:
                assert_near(result[head_class], want[head_class])


def test_one_prefill_graph_serves_many_batches(trials: Trials) -> None:
    """Captured over a dummy batch, replayed over batches of other requests, rows and lengths, dead slots beside them."""
    rows, spec = 256, gpu_spec(128)
    path = trials.build("fa3", spec).extend
    assert isinstance(path, Fa3Extend)
    path.init_extend_graphs(max_rows=512, max_context=10_000)
    case = make_case(spec, PREFIXES, ROWS, seed=3)
    whole = case.extend
    static_q = {
        c: torch.randn(rows, spec.group * case.k[c].shape[1], 128, device="cuda").to(spec.dtype) for c in CLASSES
    }

    def batch_of(members: dict[int, int]) -> ExtendBatch:
        """The last so many rows of these requests."""
        index = torch.tensor(list(members), device="cuda")
        seqs = [whole.seq_lens_cpu[i] for i in members]
        prefixes = [seq - n for seq, n in zip(seqs, members.values(), strict=True)]
        lens = torch.tensor([prefixes, seqs], dtype=torch.int32, device="cuda")
        return replace(
            whole,
            req_pool_indices=whole.req_pool_indices[index],
            prefix_lens=lens[0],
            seq_lens=lens[1],
            prefix_lens_cpu=prefixes,
            seq_lens_cpu=seqs,
        )

    def run() -> dict[HeadClass, torch.Tensor]:
        return {c: path.run(c, static_q[c], case.k[c], case.v[c], SCALE) for c in CLASSES}

    assert path.plan_extend_graph(batch_of({1: rows}), rows)
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        run()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for members in ({7: 1}, {1: 200, 3: 40, 6: 16}, {6: 256}, {0: 1, 1: 17, 2: 2, 3: 33, 5: 120, 7: 1}, {5: 129}):
        batch, n = batch_of(members), sum(members.values())
        assert path.plan_extend_graph(batch, rows)
        graph.replay()
        part = replace(case, q={c: q[:n] for c, q in static_q.items()})
        for head_class in CLASSES:
            assert_near(out[head_class][:n], part.expected(batch, head_class)[0])
