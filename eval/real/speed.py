# SPDX-License-Identifier: Apache-2.0
"""Time to first token over cached documents of public text on pretrained weights: stock SGLang beside SGLang --redknot.

    python -m eval.real.speed out/real/qwen2.5-coder-1.5b --head-map map.json --data nq_16k.jsonl --json out/speed.json \
        --stock-prefill-graphs 6656,7168,7680,8192 --redknot-prefill-graphs 16,32,64,128,512,1088,2176 --stages

The questions are those of `redknot certify --data`, so that speed and accuracy can be told of the same weights, head map, policy
and text. A prompt is the file's text before the documents, all documents in an order of its own, and the text behind them of
one of the file's questions. A document is as many of the file's passages, each once, as make `--document-tokens`. Both servers have
seen every document before and get the same prompts one at a time, while the other server is stopped. One token is asked
for, so the time of a request is its time to first token. A second table says where it went. Prefill graphs are off on both sides unless
sizes are named; SGLang's own list takes minutes to capture. Rows that fill a graph up are computed as well, so the sizes should be near
those of the chunks that a side prefills: stock's are whole ones and what is left of a prompt behind them.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from eval.gpu.ask import generate
from eval.provenance import origin
from eval.real.stages import forwards, since, stage_table, stages
from eval.servers import REDKNOT, STOCK, alone, flush, prefill_graphs, start
from redknot_sglang.certify.questions import load_tokenizer
from redknot_sglang.errors import CliError, ServerError
from redknot_sglang.measure.launch import CPU_ENVIRONMENT, CPU_FLAGS, Server
from redknot_sglang.measure.table import format_table
from redknot_sglang.plan.options import MODE, REPAIR, SEGMENTS
from redknot_sglang.plan.policies import largest


class Text:
    """Documents and questions of a file of prompts, as token ids."""

    def __init__(self, path: Path, tokenizer: Any, count: int, size: int) -> None:
        """count: documents wanted. size: tokens of each, at most. Raises CliError if the file's passages are too few."""
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lead, *_ = lines[0]["prompt"].partition(lines[0]["documents"][0])
        self.lead = tokenizer.encode(lead, add_special_tokens=False)
        self.documents = list(_join(_passages(lines, tokenizer), size))[:count]
        if len(self.documents) < count:
            raise CliError(
                f"{path.name} has passages for {len(self.documents)} documents of {size} tokens, not {count}"
            )
        self._questions = [_question(line, tokenizer) for line in lines]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return len(self.lead) + sum(map(len, self.documents)) + max(map(len, self._questions))

    def prompts(self, seed: int) -> Iterator[tuple[list[int], list[int]]]:
        """Token ids and offsets of the documents, endless; the first prompt has the documents in the file's order."""
        rng, order = random.Random(seed), list(range(len(self.documents)))
        for number in range(len(self._questions) ** 2):
            ids, offsets = list(self.lead), list[int]()
            for document in order:
                offsets += [len(ids), len(ids) + len(self.documents[document])]
                ids += self.documents[document]
            yield ids + self._questions[number % len(self._questions)], offsets
            rng.shuffle(order)


def _passages(lines: Sequence[dict[str, Any]], tokenizer: Any) -> Iterator[list[int]]:
    for passage in dict.fromkeys(passage for line in lines for passage in line["documents"]):
        yield tokenizer.encode(passage, add_special_tokens=False)


def _join(passages: Iterator[list[int]], size: int) -> Iterator[list[int]]:
    """Documents of `size` tokens; the passage that does not fit is cut."""
    held: list[int] = []
    for passage in passages:
        held += passage
        if len(held) >= size:
            yield held[:size]
            held = []


def _question(line: dict[str, Any], tokenizer: Any) -> list[int]:
    last = line["documents"][-1]
    behind = line["prompt"][line["prompt"].rindex(last) + len(last) :]
    return list(tokenizer.encode(behind, add_special_tokens=False))


def measure(server: Server, side: str, text: Text, args: argparse.Namespace) -> dict[str, Any]:
    """Times of one side at one number of documents. side: `stock` or a repair policy. Raises requests.HTTPError, OSError."""
    flush(server.url)
    prompts = text.prompts(args.seed)

    def once() -> tuple[int, dict[str, Any]]:
        ids, offsets = next(prompts)
        params = None if side == STOCK else {MODE: "segmented", SEGMENTS: offsets, REPAIR: side}
        reply = generate(server.url, [ids], 1, params)
        meta = reply.metas[0]
        return len(ids), {
            "seconds": reply.seconds,
            "cached_tokens": meta["cached_tokens"],
            "redknot": meta.get("redknot"),
            "stages": stages(meta, reply.seconds),
        }

    def counted() -> dict[str, int] | None:
        return None if side == STOCK else forwards(server.url)

    for _ in range(1 + args.warm_up):
        once()
    before = counted()
    asked = [once() for _ in range(args.requests)]
    after = counted()
    rows = [row for _, row in asked]
    return {
        "tokens": [tokens for tokens, _ in asked],
        "n": len(rows),
        "median_s": statistics.median(row["seconds"] for row in rows),
        "rows": rows,
        "forwards": None if before is None or after is None else since(before, after),
    }


def flags(args: argparse.Namespace, longest: int, document: int) -> dict[str, list[str]]:
    """Flags of both servers by side. longest: tokens of a prompt. document: tokens of a document."""
    on_cpu = args.device == "cpu"
    common = [
        f"--model-path={args.model}",
        *(CPU_FLAGS if on_cpu else ()),
        "--random-seed=1",
        *(["--enable-metrics"] if args.stages else []),
        f"--context-length={longest + 64}",
        f"--max-total-tokens={4 * longest}",
        f"--chunked-prefill-size={args.chunk}",
        "--max-running-requests=4",
        *([] if on_cpu else ["--cuda-graph-max-bs-decode=4", f"--mem-fraction-static={args.mem_fraction}"]),
        *args.flag,
    ]
    own = ["--redknot", f"--redknot-head-map={args.head_map}", "--redknot-mode=segmented", "--redknot-uncertified"]
    own += [f"--redknot-segment-length={document}", f"--redknot-repair={largest(args.policies.split(','))}"]
    return {
        STOCK: [*common, *prefill_graphs(args.stock_prefill_graphs), *shlex.split(args.stock_flags)],
        REDKNOT: [*common, *prefill_graphs(args.redknot_prefill_graphs), *own],
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All cells, written to the file as they come. Raises CliError, ServerError."""
    if args.device == "cpu" and (args.stock_prefill_graphs or args.redknot_prefill_graphs):
        raise CliError("--stock-prefill-graphs and --redknot-prefill-graphs are of a GPU")
    tokenizer = load_tokenizer(args.model)
    counts = [int(word) for word in args.documents.split(",")]
    texts = {count: Text(args.data, tokenizer, count, args.document_tokens) for count in counts}
    longest = max(text.longest for text in texts.values())
    args.json.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {**origin(args), "cells": []}
    environment = CPU_ENVIRONMENT if args.device == "cpu" else {}
    commands = flags(args, longest, args.document_tokens)
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for side, started in start(stack, commands, environment, args.json.parent / "speed").items():
            if isinstance(started, ServerError):
                raise started
            servers[side] = started
        for count, text in texts.items():
            for side in (STOCK, *args.policies.split(",")):
                with alone(servers, STOCK if side == STOCK else REDKNOT) as server:
                    result["cells"].append({"documents": count, "side": side, **measure(server, side, text, args)})
                args.json.write_text(json.dumps(result, indent=1))
    return result


def table(cells: Sequence[dict[str, Any]]) -> str:
    """One line for each cell, with stock's median over the side's."""
    stock = {cell["documents"]: cell["median_s"] for cell in cells if cell["side"] == STOCK}
    lines = []
    for cell in cells:
        told = cell["rows"][-1]["redknot"] or {}
        share = f"{told['flops'] / told['dense_flops']:.3f}" if "dense_flops" in told else ""
        lines.append(
            [
                str(cell["documents"]),
                str(max(cell["tokens"])),
                cell["side"],
                f"{1000 * cell['median_s']:.1f}",
                f"{stock[cell['documents']] / cell['median_s']:.2f}x",
                str(told.get("computed_tokens", "")),
                share,
                str(cell["n"]),
            ]
        )
    return format_table(["documents", "tokens", "side", "TTFT ms", "stock/side", "rows", "FLOPs/dense", "n"], lines)


def make_parser() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a model, as `make real` writes it")
    parser.add_argument("--head-map", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="questions of eval.real.questions for this model")
    parser.add_argument("--documents", default="16,32", help="of a prompt (%(default)s)")
    parser.add_argument("--document-tokens", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--policies", default="question:2,boundary:16", help="(%(default)s)")
    parser.add_argument("--requests", type=int, default=15, help="that are timed (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=2, help="prompts after the first that are not (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--stock-flags", default="", help="of stock alone, such as its best attention backend")
    for side in (STOCK, REDKNOT):
        parser.add_argument(
            f"--{side}-prefill-graphs", metavar="N,N", help="sizes of prefill CUDA graphs, in rows (none)"
        )
    parser.add_argument(
        "--stages", action="store_true", help="servers time stages, by --enable-metrics, which takes time itself"
    )
    parser.add_argument("--flag", action="append", default=[], help="one more flag of both, as --x=y; repeatable")
    parser.add_argument("--chunk", type=int, default=8192, help="tokens of a prefill chunk (%(default)s)")
    parser.add_argument("--mem-fraction", type=float, default=0.4, help="of each server (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    return parser


def main() -> None:
    """Measure, print, write."""
    cells = run(make_parser().parse_args())["cells"]
    print(table(cells), stage_table(cells), sep="\n\n")


if __name__ == "__main__":
    main()
