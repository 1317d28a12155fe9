# SPDX-License-Identifier: Apache-2.0
"""Retrieval traffic over shared documents: stock SGLang beside SGLang --redknot in segmented mode.

    python -m eval.bench_rag                                              # CPU, embedded model; make bench-rag
    python -m eval.bench_rag --shape qwen3-8b --documents 64 --document-tokens 2048 --per-request 16 --rate 2
    python -m eval.bench_rag --stock URL --redknot URL --data musique_s.json --tokenizer M --concurrency 8

Two kinds of traffic. `permuted`: a lead, documents drawn from the corpus in an order of their own, a question.
`multiturn`: dialogues in which every turn brings documents behind the earlier turns and answers, some of them again.
Stock and each repair policy get the same dialogues, arrivals and, but for `custom_params`, the same requests: token
ids, to `/generate`, streamed. An empty cache is where each of them begins; then all documents are shown once, which
is not counted. In a dialogue the answers that a side gave stay in its prompts, so prompts are the same on both sides
as far as answers are; the result says how many are. `--history stock` puts stock's answers into all prompts, which
are then the same, but not what the other side's cache holds. Documents are generated and their questions have known
answers, or come from a file.

`--reordered` adds a side: stock SGLang, and a client that puts the documents of every prompt in an order that earlier prompts
began with (eval/rag/reorder.py), which is what can be done about document order without touching the server.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from eval.picture import save
from eval.rag.chart import draw
from eval.rag.client import Client
from eval.rag.corpus import Corpus
from eval.rag.load import Load, Place, Record, Runner
from eval.rag.options import check, make_corpus, make_load, make_parser, make_shapes, server_flags
from eval.rag.reorder import REORDERED, reordered
from eval.rag.report import Phase, Summaries, summarize, traffic_table
from eval.rag.result import make_head, read_kv, write_json
from eval.rag.traffic import Dialogue, Shape, make_dialogues
from eval.servers import REDKNOT, STOCK, Served, flush, pair
from redknot_sglang.errors import CliError, ServerError


@contextmanager
def both(args: argparse.Namespace, longest: int) -> Iterator[dict[str, str]]:
    """Addresses of the two servers, started here unless they were given; longest: tokens of prompt and answer.

    Raises CliError for sizes that the model has not, ServerError if a server does not start.
    """
    if args.stock is not None:
        yield {STOCK: args.stock.rstrip("/"), REDKNOT: args.redknot.rstrip("/")}
        return
    served = Served.of(args)
    if not (served.folder / "config.json").is_file():
        raise CliError(f"--shape {args.shape}: there is no such folder in eval/shapes")
    common, extra = server_flags(args, served, longest)
    print("starting both servers", file=sys.stderr, flush=True)
    with pair(served, common, extra, args.json.parent / "rag") as started:
        yield {side: server.url for side, server in started.items()}


def empty(url: str) -> None:
    """Empty a server's cache. Raises CliError."""
    try:
        flush(url)
    except OSError as error:
        raise CliError(f"{url} does not empty its cache: {error}; nothing else may be asking it") from error


async def wake(url: str, corpus: Corpus, policies: Sequence[str | None], load: Load, timeout: float) -> None:
    """See `Runner.wake`; on all policies of a server before anything is measured."""
    async with Client(url, timeout) as client:
        for policy in policies:
            await Runner(client, corpus, policy, load).wake()


async def measure(
    url: str,
    corpus: Corpus,
    dialogues: list[Dialogue],
    policy: str | None,
    load: Load,
    history: Mapping[Place, list[int]] | None,
    args: argparse.Namespace,
) -> list[Record]:
    """One kind of traffic on one side, from an empty cache. Raises CliError if the warm-up fails."""
    await asyncio.to_thread(empty, url)
    async with Client(url, args.timeout) as client:
        runner = Runner(client, corpus, policy, load)
        if not args.cold:
            await runner.show_documents(args.per_request)
        return await runner.run(dialogues, history)


def run(args: argparse.Namespace) -> bool:
    """Measure, print, write, after every side what there is by then; whether all requests were answered.

    Raises CliError, ServerError.
    """
    check(args)
    corpus, load, shapes = make_corpus(args), make_load(args), make_shapes(args)
    try:
        traffic = {
            kind: make_dialogues(corpus, kind, shape, args.requests, args.seed) for kind, shape in shapes.items()
        }
    except ValueError as error:
        raise CliError(str(error)) from error
    for path in (args.json, args.png):
        path.parent.mkdir(parents=True, exist_ok=True)
    phases: list[Phase] = []
    summaries: Summaries = {kind: {} for kind in shapes}
    with both(args, longest_sequence(shapes, corpus, load)) as urls:
        head = make_head(args, corpus, read_kv(urls[STOCK], urls[REDKNOT]))
        policies = args.policies.split(",")
        asyncio.run(wake(urls[STOCK], corpus, [None], load, args.timeout))
        asyncio.run(wake(urls[REDKNOT], corpus, policies, load, args.timeout))
        for kind, dialogues in traffic.items():
            stock: Phase | None = None
            for side in (STOCK, *([REORDERED] if args.reordered else []), *policies):
                begin, policy = time.monotonic(), side if side in policies else None
                url = urls[STOCK if policy is None else REDKNOT]
                history = stock.answers if stock and args.history == STOCK else None
                asked = reordered(dialogues) if side == REORDERED else dialogues
                records = asyncio.run(measure(url, corpus, asked, policy, load, history, args))
                phase = Phase(kind, side, records)
                stock = stock or phase
                phases.append(phase)
                summaries[kind][side] = summarize(phase, stock)
                write_json(args.json, head, summaries, phases)
                print(f"{kind}, {side}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    note = f"{head['hardware'].splitlines()[0]}, {args.requests} requests, {loop(args)}"
    save(draw(phases, summaries, note), args.png)
    show(summaries, head["kv"], args)
    return all(record.error is None for phase in phases for record in phase.records)


def longest_sequence(shapes: dict[str, Shape], corpus: Corpus, load: Load) -> int:
    """Tokens of prompt and answer at most, and a few to spare."""
    return max(shape.longest_prompt(corpus, load.answer_tokens) for shape in shapes.values()) + load.answer_tokens + 8


def loop(args: argparse.Namespace) -> str:
    """The kind of load in words."""
    return f"{args.rate:g} requests/s" if args.rate else f"{args.concurrency} at once"


def show(summaries: Summaries, kv: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the tables and what they do not say."""
    for kind, sides in summaries.items():
        most = max(figures.get("prompt_tokens_max", 0) for figures in sides.values())
        print(
            f"\n{kind}: prompts of up to {most} tokens, {loop(args)}, {'cold' if args.cold else 'all documents seen'}"
        )
        print(traffic_table(sides))
        for side, figures in sides.items():
            if figures["errors"]:
                print(f"{side}: {figures['errors']} requests failed, the first: {figures['first_error']}")
            if figures.get("same_prompts", 1) < 1:
                same = 100 * figures["same_prompts"]
                print(f"{side}: {same:.0f} % of the prompts are those of stock; the others hold other answers")
    print()
    for kind, sides in summaries.items():
        ratios = [f"{side} {f['ratio']:.2f}x" for side, f in sides.items() if side != STOCK and f.get("ratio")]
        print(f"TTFT p50, stock/side, {kind}: {', '.join(ratios)}")
    print(f"KV: stock {kv['stock_bytes'] / 2**20:.0f} MiB, redknot {kv['redknot_bytes'] / 2**20:.0f} MiB")
    print(f"written: {args.json}, {args.png}")


def main() -> None:
    """Exit code 1 if a request failed, 2 if nothing could be measured."""
    args = make_parser(__doc__ or "").parse_args()
    # Servers are ended on the way out, which an unhandled SIGTERM would skip.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        complete = run(args)
    except (CliError, ServerError) as error:
        print(f"bench_rag: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
