# SPDX-License-Identifier: Apache-2.0
"""The GPU measurements: stock SGLang (fa3) beside SGLang --redknot, one server for each head map; make bench-gpu.

    python -m eval.bench_gpu --shape qwen3-8b --maps one_of_eight,all_global --json out/gpu/qwen3-8b.json
    python -m eval.bench_gpu --shape qwen3-8b --steps concurrency --lengths 32K --append --json out/gpu/qwen3-8b.json
    python -m eval.bench_gpu --lengths 256,1024 --json out/gpu/cpu.json           # CPU, embedded model: tries the command

As many servers as fit are started at the same time, once; while one is measured the others are stopped (SIGSTOP). Every cell is in
the file as soon as it is measured, with its raw samples; `--append` adds to the file of an earlier run. Steps are gone
through in the order given, each at all lengths, on stock and then on every map. A cell that fails is noted and the run
goes on. Steps:
- kernels: eval/bench_kernels.py, eval/bench_scattered.py and eval/gpu/relocation.py, before any server starts;
- cold: time to first token of prompts of which nothing is cached;
- prefix: of prompts that are cached but for their last tokens: the tail's, and as many as `boundary:16` computes;
- decode: seconds of a step of batches whose requests have a cached prompt;
- segments: time to first token of cached documents in new orders, stock's and each repair policy's (first map only);
- serving: requests a second of `sglang.benchmark.serving`, everything sent at once (first map only);
- load: highest rate of Poisson arrivals at which p99 of the time to first token keeps a limit (first map only);
- concurrency: requests that run at once in the same bytes of KV, on servers of its own (first map only).
Without `--checkpoint` weights are SGLang's dummies, under which `blend` would repair no rows and is refused.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from eval.gpu import cold, concurrency, decode, kernels, load, prefix, segments, serving
from eval.gpu.chart import draw
from eval.gpu.fleet import Plan, Spec, gpu_memory, held_servers, latency_servers, running, waves
from eval.gpu.maps import describe
from eval.gpu.options import SERVED_STEPS, check, load_plan, make_parser, maps_of, steps_of
from eval.gpu.results import Cell, Results, anonymous, chart_path
from eval.gpu.table import tables
from eval.picture import save
from eval.provenance import origin
from eval.servers import STOCK, Served, alone
from redknot_sglang.errors import CliError, ServerError
from redknot_sglang.heads.head_map import load_head_map
from redknot_sglang.measure.launch import Server

Measure = Callable[[], "Cell | list[Cell]"]


class Bench:
    """One run of the command."""

    def __init__(self, args: argparse.Namespace, results: Results, maps: Mapping[str, Path]) -> None:
        self.args, self.results, self.maps = args, results, maps
        self.served = Served.of(args)
        self.vocabulary: int = self.served.config["vocab_size"]
        self.first = next(iter(maps))
        self.begin = time.monotonic()

    def run(self) -> None:
        """All steps; what fails is in the results."""
        steps = steps_of(self.args)
        if "kernels" in steps:
            for name in self.args.kernels.split(","):
                self.note(f"kernels {name}", partial(kernels.measure, name, self.args.json.parent, timeout=500))
        if "load" in steps:
            # The corpus is made while no server waits for it.
            load_plan(self.args).corpus()
        if set(steps) & {*SERVED_STEPS, "load"}:
            self.measured(latency_servers(self.args, self.maps), self.latency)
        if "concurrency" in steps:
            for length in self.args.lengths:
                self.held(length)

    def measured(self, specs: list[Spec], measure: Callable[[dict[str, Server]], None]) -> None:
        """Start as many servers as the GPU holds, or `--together`, and measure what came up; then the next ones."""
        memory = gpu_memory(self.results.run["hardware"], self.args.mem_fraction)
        for wave in waves(specs, memory, self.args.together):
            begin = time.monotonic()
            if self.is_late():
                self.results.fail(", ".join(spec.side for spec in wave), "left out: --seconds are over")
                continue
            with running(wave, self.served, self.args.json.parent / "gpu") as found:
                print(f"servers: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
                for spec in wave:
                    told = {"flags": anonymous(shlex.join(spec.flags)), "seconds": time.monotonic() - begin}
                    if spec.side in self.maps:
                        told["head_map"] = describe(self.maps[spec.side])
                    self.results.add_server(spec.side, told)
                up: dict[str, Server] = {}
                for side, server in found.items():
                    if isinstance(server, ServerError):
                        self.results.fail(f"{side} did not start", str(server))
                        print(f"{side} did not start: {server}", file=sys.stderr, flush=True)
                    else:
                        up[side] = server
                measure(up)

    def latency(self, servers: dict[str, Server]) -> None:
        """Steps of prompts, one after the other, each at all lengths, then `load`."""
        steps = steps_of(self.args)
        for step in (step for step in steps if step in SERVED_STEPS):
            for length in self.args.lengths:
                for side in self.sides(servers, step):
                    for what, measure in self.jobs(step, length, side, servers[side]):
                        self.note(f"{what}, {length} tokens, {side}", measure, servers, side)
        if "load" in steps:
            policies = self.args.load_policy.split(",")
            starts = dict(zip([STOCK, *policies], self.args.load_start or [], strict=False))
            for side in self.sides(servers, "load"):
                for policy in [STOCK] if side == STOCK else policies:
                    repair, plan = None if side == STOCK else policy, load_plan(self.args)
                    measure = partial(load.measure, servers[side].url, side, repair, plan, starts.get(policy))
                    self.note(f"load {policy}, {side}", measure, servers, side)

    def sides(self, servers: Mapping[str, Server], step: str) -> list[str]:
        """Servers that a step measures."""
        further = step in self.args.further_steps.split(",")
        return [side for side in servers if further or side in (STOCK, self.first)]

    def jobs(self, step: str, length: int, side: str, server: Server) -> list[tuple[str, Measure]]:
        """What there is to measure of a step at one length on one server."""
        args, common = self.args, (length, self.vocabulary, self.args.requests)
        if step in ("cold", "prefix") and length not in (getattr(args, f"{step}_lengths") or args.lengths):
            return []
        if step == "cold":
            return [(step, partial(cold.measure, server.url, side, *common))]
        if step == "prefix":
            new = args.new or [args.tail, prefix.boundary_rows(args.segments, 16, args.tail)]
            return [(step, partial(prefix.measure, server.url, side, *common, new))]
        if step == "decode":
            batches = [batch for tokens, batch in args.decode if tokens == length]
            plan, steps = Plan.of(args, load_head_map(self.maps[self.first])), args.decode_steps
            # Further maps have less room than stock and the first one.
            room = plan.base if len(self.maps) > 1 and step in args.further_steps.split(",") else plan.main
            distinct = {batch: decode.distinct_prompts(batch, length, room, steps) for batch in batches}
            measure = partial(decode.measure, server.url, side, *common)
            return [(f"{step} {batch}", partial(measure, batch, distinct[batch], steps)) for batch in batches]
        if step == "serving":
            sizes = args.json.parent, args.serving_prompts, args.serving_answer
            return [(step, partial(serving.measure, server.url, side, length, *sizes))]
        policies = [STOCK] if side == STOCK else args.policies.split(",")
        return [
            (f"{step} {policy}", partial(segments.measure, server, side, policy, *common, args.segments, args.tail))
            for policy in policies
            if length in args.segment_lengths
        ]

    def held(self, length: int) -> None:
        """Step `concurrency` at one length."""
        specs, counts, kv_bytes = held_servers(self.args, self.first, self.maps[self.first], length)

        def measure(servers: dict[str, Server]) -> None:
            for side, server in servers.items():
                sizes = length, self.vocabulary, counts[side], kv_bytes
                job = partial(concurrency.measure, server, side, *sizes)
                self.note(f"concurrency, {length} tokens, {side}", job, servers, side)

        self.measured(specs, measure)

    def is_late(self) -> bool:
        """Whether `--seconds` are over."""
        return self.args.seconds is not None and time.monotonic() - self.begin > self.args.seconds

    def note(self, what: str, measure: Measure, servers: Mapping[str, Server] | None = None, side: str = "") -> None:
        """Measure with all other servers stopped, and write it down, or why it could not be measured."""
        if self.is_late():
            self.results.fail(what, "left out: --seconds are over")
            return
        begin = time.monotonic()
        try:
            living = {name: server for name, server in (servers or {}).items() if server.process.poll() is None}
            if servers and side not in living:
                raise RuntimeError(f"the server has ended; see its log {servers[side].log.name}")
            if servers:
                with alone(living, side):
                    found = measure()
            else:
                found = measure()
            cells = found if isinstance(found, list) else [found]
            for cell in cells:
                self.results.add(cell)
            shown = ", ".join(f"{cell.case} {cell.median:.4g} {cell.unit}".strip() for cell in cells)
        except Exception as error:
            # Another cell may still work, and GPU time is too scarce to lose it.
            self.results.fail(what, traceback.format_exc())
            shown = f"FAILED: {error}"
        print(f"{what}: {shown} ({time.monotonic() - begin:.0f} s)", file=sys.stderr, flush=True)


def run(args: argparse.Namespace) -> bool:
    """Measure, print, draw; whether all cells were measured. Raises CliError."""
    check(args)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="redknot-maps-") as folder:
        maps = maps_of(args, Served.of(args).folder, Path(folder))
        results = Results(args.json, args.append)
        command = shlex.join(["python", "-m", "eval.bench_gpu", *map(anonymous, sys.argv[1:])])
        head = {"command": command, "shape": args.shape or "embedded", **origin(args)}
        results.start_run(head)
        Bench(args, results, maps).run()
    print(tables([results.data]))
    save(draw(results.data), args.chart or chart_path(args.json))
    for failed in results.errors:
        print(f"not measured: {failed['what']}: {failed['error'].splitlines()[-1]}", file=sys.stderr)
    return not results.errors


def main() -> None:
    """Exit code 1 if a cell is missing, 2 if nothing could be measured."""
    args = make_parser(__doc__ or "").parse_args()
    # Servers are ended on the way out, which an unhandled SIGTERM would skip.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        complete = run(args)
    except CliError as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
