# SPDX-License-Identifier: Apache-2.0
"""Time to first token of prompts made of cached documents in new orders: stock SGLang beside SGLang --redknot.

    python -m eval.bench_segment_hit --json out/hit.json                       # CPU, embedded model
    python -m eval.bench_segment_hit --shape qwen3-8b --documents 16 --document-tokens 2048 --json out/hit.json

Every prompt is a lead, all documents in an order of its own, and a tail of its own. Both servers have seen all documents
before, have their prefix cache on and get the same prompts, one at a time, while the other server is stopped: stock finds the lead and what the order has in
common with an earlier one, RedKnot finds the documents. `--max-new-tokens` is 1, so the time of a request is its time to
first token. A shape is served with dummy weights, stock with FA3; dummy weights are so small that context changes no row,
and `blend` repairs none, so for it give weights of eval.make_checkpoint; on a GPU one more prompt is profiled on each side, and
the kernels' time is shared out between relocation, attention and everything else.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests

from eval.gpu.ask import NotMeasured, generate
from eval.provenance import origin
from eval.servers import REDKNOT, STOCK, TIMEOUT, Served, add_arguments, alone, pair
from redknot_sglang.measure.launch import Server
from redknot_sglang.measure.table import format_table
from redknot_sglang.plan.policies import largest

# Parts of kernel names, looked for in this order.
KERNELS = {
    "relocation": ("relocate",),
    "attention": ("flash", "fmha", "extend_kernel", "sink_fold", "BatchPrefill", "write_pages", "Attention"),
}


class Traffic:
    """Prompts over the same documents. Each prompt is (token ids, flat offsets of its segments).

    lead, documents: token ids. tail: tokens behind the documents, new ones in each prompt.
    """

    def __init__(self, args: argparse.Namespace, vocabulary: int) -> None:
        self._rng = random.Random(args.seed)
        self._vocabulary, self.tail = vocabulary, args.tail_tokens
        self.lead = self.noise(args.lead_tokens)
        self.documents = [self.noise(args.document_tokens) for _ in range(args.documents)]

    def noise(self, count: int) -> list[int]:
        """`count` token ids that never came before."""
        return [self._rng.randrange(300, self._vocabulary) for _ in range(count)]

    def prompts(self) -> Iterator[tuple[list[int], list[int]]]:
        """Endless; the first is in the documents' own order."""
        order = list(range(len(self.documents)))
        while True:
            ids, offsets = list(self.lead), list[int]()
            for document in order:
                offsets += [len(ids), len(ids) + len(self.documents[document])]
                ids += self.documents[document]
            yield ids + self.noise(self.tail), offsets
            self._rng.shuffle(order)


def ask(server: Server, ids: list[int], params: dict[str, Any] | None) -> dict[str, Any]:
    """Seconds, and what the server says it found. Raises requests.HTTPError."""
    reply = generate(server.url, [ids], 1, params)
    meta = reply.metas[0]
    return {"seconds": reply.seconds, "cached_tokens": meta["cached_tokens"], "redknot": meta.get("redknot")}


def measure(server: Server, side: str, args: argparse.Namespace, vocabulary: int) -> dict[str, Any]:
    """Warm up, time, and on a GPU profile; `side` is stock or a repair policy. Raises requests.HTTPError."""
    traffic = Traffic(args, vocabulary)
    prompts = traffic.prompts()

    def params(offsets: list[int]) -> dict[str, Any] | None:
        named = {"redknot_mode": "segmented", "redknot_segments": offsets, "redknot_repair": side}
        return None if side == STOCK else named

    for _ in range(1 + args.warm_up):
        ids, offsets = next(prompts)
        ask(server, ids, params(offsets))
    rows = []
    for _ in range(args.requests):
        ids, offsets = next(prompts)
        rows.append(ask(server, ids, params(offsets)))
    seconds = [row["seconds"] for row in rows]
    found: dict[str, Any] = {
        "tokens": len(ids),
        "n": len(rows),
        "median_s": statistics.median(seconds),
        "max_s": max(seconds),
        "cached_share": statistics.mean(row["cached_tokens"] for row in rows) / len(ids),
        "rows": rows,
    }
    if side.startswith("question"):
        found["chosen_before_s"] = [chosen_before(server, traffic, row["redknot"]) for row in rows]
    if args.shape:
        ids, offsets = next(prompts)
        found["profile"] = profile(server, ids, params(offsets))
    if args.trace is not None:
        ids, offsets = next(prompts)
        traced(server, ids, params(offsets), (args.trace / side.replace(":", "-")).resolve(), host=True)
    return found


def chosen_before(server: Server, traffic: Traffic, report: dict[str, Any]) -> float:
    """Seconds to first token of the same rows where nothing has to be chosen: what is above it is what choosing costs.

    A request under `question:N` asks all documents, then computes lead, chosen documents and question in exact mode. Here a
    client sends such a prompt: as many tokens are cached, as many are new. report: what the server said of the request. Raises
    requests.HTTPError, NotMeasured if a prompt did not find what it should.
    """
    new = traffic.noise(report["computed_tokens"])
    total = len(traffic.lead) + len(report["chosen_segments"]) * len(traffic.documents[0]) + traffic.tail
    # A chosen document behind the lead is taken as it is in the cache, and so are more where they were chosen before.
    cached = [*traffic.lead, *chain(*traffic.documents)][: total - len(new)]
    exact = {"redknot_mode": "exact"}
    generate(server.url, [cached + traffic.noise(1)], 1, exact)
    reply = generate(server.url, [cached + new], 1, exact)
    found = reply.metas[0]["cached_tokens"]
    if found != len(cached):
        raise NotMeasured(f"{found} tokens of a prompt were cached, not {len(cached)}")
    return reply.seconds


def traced(server: Server, ids: list[int], params: dict[str, Any] | None, folder: Path, host: bool) -> float:
    """Seconds of a request of which PyTorch's profiler writes a trace into `folder`. host: what the host does, as well."""
    body = {"output_dir": str(folder), "activities": ["CPU", "GPU"] if host else ["GPU"]}
    requests.post(server.url + "/start_profile", json=body, timeout=TIMEOUT).raise_for_status()
    seconds = float(ask(server, ids, params)["seconds"])
    requests.post(server.url + "/stop_profile", timeout=TIMEOUT).raise_for_status()
    return seconds


def profile(server: Server, ids: list[int], params: dict[str, Any] | None) -> dict[str, float]:
    """Milliseconds of GPU kernels by kind in one request, and of the request itself, which profiling slows down."""
    with TemporaryDirectory() as folder:
        seconds = traced(server, ids, params, Path(folder), host=False)
        traces = [json.loads(gzip.decompress(path.read_bytes())) for path in Path(folder).rglob("*.trace.json.gz")]
    spent = dict.fromkeys((*KERNELS, "everything else"), 0.0)
    for event in (event for trace in traces for event in trace["traceEvents"] if event.get("cat") == "kernel"):
        kind = next((k for k, names in KERNELS.items() if any(name in event["name"] for name in names)), None)
        spent[kind or "everything else"] += event["dur"] / 1000
    return {"request": 1000 * seconds, **spent}


def common_flags(args: argparse.Namespace) -> list[str]:
    """What both servers get beside the model."""
    tokens = args.lead_tokens + args.documents * args.document_tokens + args.tail_tokens
    graphs = ["--cuda-graph-max-bs-decode=4"] if args.shape else []
    return [
        f"--max-total-tokens={4 * tokens}",
        f"--context-length={tokens + 64}",
        f"--chunked-prefill-size={args.chunk}",
        "--max-running-requests=4",
        *graphs,
    ]


def main() -> None:
    """Start both servers, measure one side after the other, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, threads=2)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--document-tokens", type=int, default=496)
    parser.add_argument("--lead-tokens", type=int, default=32)
    parser.add_argument("--tail-tokens", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=8192, help="tokens of a prefill chunk (%(default)s)")
    parser.add_argument("--requests", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=2, help="prompts after the first that are not counted")
    parser.add_argument("--policies", default="none,boundary:16,blend:0.08")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--trace", type=Path, metavar="DIR", help="keep a trace of one request of each side, host included"
    )
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    served = Served.of(args)
    vocabulary = served.config["vocab_size"]
    policies = args.policies.split(",")
    result: dict[str, Any] = {**origin(args), "sides": {}}
    own = {REDKNOT: [f"--redknot-repair={largest(policies)}"]}
    with pair(served, common_flags(args), own, args.json.parent / "segment-hit") as servers:
        for side in (STOCK, *policies):
            with alone(servers, STOCK if side == STOCK else REDKNOT) as server:
                result["sides"][side] = measure(server, side, args, vocabulary)
            args.json.write_text(json.dumps(result, indent=1))
    print_table(result["sides"])


def print_table(sides: dict[str, dict[str, Any]]) -> None:
    """One line for each side; the ratio is stock's median over the side's."""
    stock, lines = sides["stock"]["median_s"], []
    for name, side in sides.items():
        spent = [f"{value:.1f}" for value in side.get("profile", {}).values()]
        ratio = f"{stock / side['median_s']:.2f}x"
        lines.append(
            [
                name,
                f"{1000 * side['median_s']:.1f}",
                f"{1000 * side['max_s']:.1f}",
                ratio,
                f"{side['cached_share']:.3f}",
            ]
            + spent
        )
    profiled = ["profiled", *(f"{kind} ms" for kind in (*KERNELS, "everything else"))]
    head = ["side", "TTFT ms", "max", "stock/side", "cached", *(profiled if len(lines[0]) > 5 else [])]
    print(f"{sides['stock']['tokens']} tokens, n = {sides['stock']['n']}")
    print(format_table(head, lines))


if __name__ == "__main__":
    main()
