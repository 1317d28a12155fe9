# SPDX-License-Identifier: Apache-2.0
"""Stock SGLang beside SGLang --redknot on one GPU: equal outputs, and how many requests the same KV bytes hold.

    python -m eval.make_checkpoint --shape qwen3-8b --layers 12 --out /tmp/qwen3
    python -m eval.bench_serve --steps parity,graphs --checkpoint /tmp/qwen3 --json out/parity.json
    python -m eval.bench_serve --steps concurrency --shape qwen3-8b --json out/held.json

Real shapes. Without a checkpoint weights are SGLang's dummies, good for what does not look at outputs. Steps:
- parity: an all-global map and stock's other backends against stock, greedy tokens and logprobs of random prompts;
- graphs: the windowed map with decode CUDA graphs against the same server without;
- concurrency: requests of `--context` tokens that run at once when both servers get `--kv-gib` for KV.
- accuracy: the embedded model, stock and with its shipped map, exact match through `redknot eval`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import requests

from eval.agreement import compare, replies
from eval.provenance import provenance
from eval.servers import FLAGS, ROOT, STOCK_FLAGS, TIMEOUT
from redknot_sglang.measure.launch import Server, launch


class Bench:
    """One run: servers of a shape, logs beside the JSON."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = args.checkpoint or ROOT / "shapes" / args.shape
        self.weights = [] if args.checkpoint else ["--load-format=dummy"]
        self.logs = args.json.parent
        config = json.loads((self.model / "config.json").read_text())
        self.vocabulary = config["vocab_size"]
        self.token_bytes = 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]

    def server(self, stack: ExitStack, name: str, flags: Sequence[str]) -> Server:
        """A started server whose log is `name`.log; it ends with `stack`."""
        command = [f"--model-path={self.model}", *self.weights, *FLAGS, *flags]
        return stack.enter_context(launch(command, self.logs / f"{name}.log", timeout=TIMEOUT))

    def redknot(self, head_map: str) -> list[str]:
        """Flags that switch RedKnot on with a map of this shape."""
        return ["--redknot", f"--redknot-head-map={self.model / head_map}", "--redknot-uncertified"]

    def prompts(self, count: int, low: int, high: int, seed: int) -> list[list[int]]:
        """Random prompts of `low` to `high` tokens; the first token makes them distinct from the start."""
        rng = random.Random(seed)
        return [
            [10 + number, *(rng.randrange(100, self.vocabulary) for _ in range(rng.randint(low, high) - 1))]
            for number in range(count)
        ]

    def compared(self, sides: dict[str, list[str]], prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """Each side against the first, all servers up at once; printed before they stop, which takes long."""
        with ExitStack() as stack, ThreadPoolExecutor(len(sides)) as pool:
            futures = [pool.submit(self.server, stack, f"{self.args.shape}-{n}", f) for n, f in sides.items()]
            servers = [future.result() for future in futures]
            asked = list(pool.map(lambda server: replies(server.url, prompts, new_tokens), servers))
            first, *others = sides
            result = {
                f"{name} against {first}": compare(found, asked[0], self.args.tolerance).report()
                for name, found in zip(others, asked[1:], strict=True)
            }
            print(json.dumps(result), flush=True)
            return result

    def parity(self) -> dict[str, Any]:
        """All-global map against stock on the same prompts, 8 at a time, prefill in chunks of 1,024."""
        flags = ["--chunked-prefill-size=1024", "--max-running-requests=8", "--cuda-graph-max-bs-decode=8"]
        # bf16 logits of this size are 0.03 apart.
        flags += ["--enable-fp32-lm-head", "--max-total-tokens=32768"]
        sides = {f"stock-{name}": [*flags, f"--attention-backend={name}"] for name in ("fa3", "flashinfer")}
        for path in ("fa3", "flashinfer"):
            sides[f"redknot-{path}"] = [*flags, *self.redknot("all_global.json"), f"--redknot-attention={path}"]
        return self.compared(sides, self.prompts(self.args.prompts, 1000, 3000, seed=1), 16)

    def graphs(self) -> dict[str, Any]:
        """The windowed map with decode CUDA graphs against the eager path, prompts of 300 to 6,000 tokens.

        The control is the eager path once more with other requests in its batches.
        """
        flags = ["--max-total-tokens=65536", "--enable-fp32-lm-head", *self.redknot("one_of_eight.json")]
        eager = "--cuda-graph-backend-decode=disabled"
        sides = {
            "eager": [*flags, "--max-running-requests=8", eager],
            "graphs": [*flags, "--max-running-requests=8", "--cuda-graph-max-bs-decode=8"],
            "eager-batch-5": [*flags, "--max-running-requests=5", eager],
        }
        return self.compared(sides, self.prompts(24, 300, 6000, seed=2), 64)

    def concurrency(self) -> dict[str, Any]:
        """Most requests that ran at once, read from the servers' own decode log while others waited."""
        args = self.args
        budget = int(args.kv_gib * 2**30)
        common = [
            "--max-running-requests=96",
            "--cuda-graph-max-bs-decode=64",
            f"--context-length={args.context + 2048}",
        ]
        prompts = self.prompts(args.requests, args.context, args.context, 3)
        sides = {
            "stock": [*STOCK_FLAGS, f"--max-total-tokens={budget // self.token_bytes}"],
            "redknot": [
                *self.redknot("one_of_eight.json"),
                f"--redknot-kv-budget={budget}",
                f"--redknot-context-length={args.context + args.new_tokens}",
            ],
        }
        result: dict[str, Any] = {"kv_bytes": budget, "context": args.context, "sent": args.requests}
        # Stock holds a few; the rest would only wait in its queue.
        counts = {"stock": max(2, 2 * budget // (self.token_bytes * args.context)), "redknot": args.requests}
        for name, flags in sides.items():
            with ExitStack() as stack:
                server = self.server(stack, f"{args.shape}-held-{name}", [*common, *flags])
                begin = time.monotonic()
                finite = flood(server, prompts[: counts[name]], args)
                result[name] = {
                    "held": most_running(server.log_text()),
                    "seconds": round(time.monotonic() - begin, 1),
                    "all_finite": finite,
                    "retracted": "KV cache pool is full" in server.log_text(),
                }
        result["ratio"] = result["redknot"]["held"] / max(1, result["stock"]["held"])
        return result

    def accuracy(self) -> dict[str, Any]:
        """Exact match of the embedded model on this device, stock and with its map."""
        model = ROOT / "model"
        flags = [
            "--grammar-backend=none",
            "--sampling-backend=pytorch",
            "--skip-server-warmup",
            "--enable-cache-report",
        ]
        flags += ["--cuda-graph-backend-prefill=disabled", "--cuda-graph-max-bs-decode=16", "--max-running-requests=16"]
        sides = {"stock": ["--attention-backend=flashinfer"]}
        sides["redknot"] = ["--redknot", f"--redknot-head-map={model / 'head_map.json'}"]
        sides = {name: extra for name, extra in sides.items() if name in self.args.sides.split(",")}
        result: dict[str, Any] = {}
        for name, extra in sides.items():
            command = [f"--model-path={model}", "--max-total-tokens=98304", *flags, *extra]
            with launch(command, self.logs / f"accuracy-{name}.log", timeout=TIMEOUT) as server:
                for length in map(int, self.args.lengths.split(",")):
                    out = self.logs / f"accuracy-{name}-{length}.json"
                    words = [
                        "eval",
                        "--url",
                        server.url,
                        "--length",
                        str(length),
                        "--n",
                        str(self.args.n),
                        "--json",
                        str(out),
                    ]
                    words += ["--tasks", "lookup,multivalue,tracking,twohop,crossdoc", "--concurrency", "16"]
                    subprocess.run(
                        [sys.executable, "-m", "redknot_sglang.cli.main", *words], check=True, timeout=TIMEOUT
                    )
                    result[f"{name}-{length}"] = json.loads(out.read_text())
        return result


def flood(server: Server, prompts: list[list[int]], args: argparse.Namespace) -> bool:
    """Send all prompts at once and wait; True if every answer came whole, with finite logprobs."""

    def one(ids: list[int]) -> bool:
        sampling = {"temperature": 0, "max_new_tokens": args.new_tokens, "ignore_eos": True}
        body: dict[str, Any] = {"input_ids": ids, "sampling_params": sampling, "return_logprob": True}
        reply = requests.post(server.url + "/generate", json=body, timeout=TIMEOUT)
        reply.raise_for_status()
        logprobs = [entry[0] for entry in reply.json()["meta_info"]["output_token_logprobs"]]
        return len(logprobs) == args.new_tokens and all(abs(value) < 1e4 for value in logprobs)

    with ThreadPoolExecutor(len(prompts)) as pool:
        return all(pool.map(one, prompts))


def most_running(log: str) -> int:
    """The largest number of requests in one decode batch while others queued (any batch if none ever did)."""
    found = [
        (int(match[1]), int(match[2]))
        for match in re.finditer(r"Decode batch.*?#running-req: (\d+).*?#queue-req: (\d+)", log)
    ]
    return max((running for running, queued in found if queued), default=max((r for r, _ in found), default=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="parity,graphs,concurrency,accuracy")
    parser.add_argument("--shape", default="qwen3-8b")
    parser.add_argument("--checkpoint", type=Path, help="weights from eval.make_checkpoint instead of dummies")
    parser.add_argument("--tolerance", type=float, default=2e-2, help="a lead up to this is a tie, in nats")
    parser.add_argument("--lengths", default="4096", help="prompt lengths of the accuracy step")
    parser.add_argument("--sides", default="stock,redknot", help="servers of the accuracy step")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--new-tokens", type=int, default=512)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--kv-gib", type=float, default=24.0)
    parser.add_argument("--n", type=int, default=400)
    args = parser.parse_args()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(args)
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        name: getattr(bench, name) for name in ("parity", "graphs", "concurrency", "accuracy")
    }
    results: dict[str, Any] = provenance(args)
    failed = False
    for name in args.steps.split(","):
        begin = time.monotonic()
        try:
            results[name] = steps[name]()
        except Exception:
            # A later step may still work, and GPU time is too scarce to lose it.
            results[name] = {"error": traceback.format_exc()}
            failed = True
        print(name, f"{time.monotonic() - begin:.0f} s", json.dumps(results[name])[:1500], flush=True)
        args.json.write_text(json.dumps(results, indent=1))
    sys.exit(failed)


if __name__ == "__main__":
    main()
