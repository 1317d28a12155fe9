# SPDX-License-Identifier: Apache-2.0
"""Permuted documents, twice as many as fit on the device: RedKnot and stock SGLang, each with host memory behind it and without.

    python -m eval.bench_tier_rag --json out/tier_rag.json                                      # CPU, embedded model
    python -m eval.bench_tier_rag --shape qwen3-8b --document-tokens 2048 --kv-gib 4 --per-request 4 --rate 2 --seconds 30 \
        --stock-flags=--page-size=64 --together 2 --json out/tier_rag.json

Four servers, the same model, prompts, arrivals and bytes of KV on the device: `redknot-tier` and `stock-tier` with the hierarchical
cache, `redknot` and `stock` without. Each is shown every document once, each in a request of its own, which is what gives stock the
most prefixes to find; then a few requests that do not count; then requests arrive at a rate (Poisson). A request is a
lead, documents of the corpus in an order of its own, and a new question; one token is asked for.

How many documents fit is RedKnot's number: of a pool in which nothing else is, by the slots that the server says it has, and a
document takes global slots of all its tokens and local ones of sink and window (of all its tokens under `blend` and `question`).
Stock holds fewer in the same bytes, so that its share of the corpus, which is printed, too, is smaller. With `--fits stock` the corpus is
twice what stock holds, which mostly fits into RedKnot's pool, and the tier has little to do there. Running requests take room
from the documents on both sides. Host memory is `--host-ratio` times the device's KV on both; RedKnot's takes fewer bytes than
that, since chunks in flight need no room there.

Stock SGLang pins host memory and needs a GPU for that; on a CPU `stock-tier` is left out.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import requests

from eval.provenance import origin
from eval.rag.client import Client
from eval.rag.load import Load, Record, Runner
from eval.rag.noise import NoiseCorpus, permuted
from eval.rag.report import Phase, summarize
from eval.rag.traffic import PERMUTED
from eval.servers import REDKNOT, STOCK, Served
from eval.tier_rag.options import check, make_parser
from eval.tier_rag.sides import REDKNOT_TIER, STOCK_TIER, commands, held, redknot_status, running
from eval.tier_rag.table import same_answers, table
from redknot_sglang.errors import CliError, ServerError
from redknot_sglang.measure.launch import Server


async def ask(url: str, policy: str | None, corpus: NoiseCorpus, args: Namespace) -> tuple[float, list[Record]]:
    """Seconds in which all documents were shown, and the requests that count. Raises CliError if one of the others fails."""
    count = args.requests or max(1, round(args.rate * args.seconds))
    first = permuted(corpus, args.per_request, args.zipf, args.before, args.seed + 1)
    counted = permuted(corpus, args.per_request, args.zipf, count, args.seed)
    async with Client(url, args.timeout) as client:
        runner = Runner(client, corpus, policy, Load(None, args.rate, 1, False, args.seed))
        await runner.wake()
        begin = time.monotonic()
        await runner.show_documents(1)
        shown = time.monotonic() - begin
        # Copies to the host.
        await asyncio.sleep(args.pause)
        if first:
            once = Runner(client, corpus, policy, Load(1, None, 1, False, args.seed))
            failed = next((record.error for record in await once.run(first) if record.error is not None), None)
            if failed is not None:
                raise CliError(f"{url}: a request before those that count failed: {failed}")
        return shown, await runner.run(counted)


def measure(server: Server, side: str, corpus: NoiseCorpus, args: Namespace) -> tuple[dict[str, Any], Phase]:
    """Figures of a side, from requests that were answered, and these. Raises CliError, requests.RequestException."""
    policy = None if side in (STOCK, STOCK_TIER) else args.policy
    shown, records = asyncio.run(ask(server.url, policy, corpus, args))
    phase = Phase(PERMUTED, side, records)
    figures = {"shown_s": shown, **summarize(phase, phase)}
    # These compare sides, and nothing here does but the reader.
    for name in ("ratio", "same_prompts"):
        figures.pop(name, None)
    if policy is not None:
        figures["tiers"] = redknot_status(server)["tiers"]
    return figures, phase


def make_corpus(held: Mapping[str, int] | None, served: Served, args: Namespace) -> NoiseCorpus:
    """`--documents` documents, or `--times` those that fit. held: RedKnot's. Raises CliError if nothing says how many."""
    if args.documents:
        count = args.documents
    elif args.fits == STOCK:
        count = round(args.times * (int(args.kv_gib * 2**30) // served.token_bytes // args.document_tokens))
    elif held is not None:
        count = round(args.times * held["device"])
    else:
        raise CliError("no server with RedKnot says how many documents fit; name one in --sides, or give --documents")
    if count < args.per_request:
        raise CliError(
            f"a corpus of {count} documents, requests of {args.per_request}: raise --kv-gib or lower --per-request"
        )
    return NoiseCorpus(served.config["vocab_size"], count, args.document_tokens, args.seed)


def one(
    server: Server | ServerError,
    side: str,
    corpus: NoiseCorpus | None,
    served: Served,
    args: Namespace,
    found: dict[str, Any],
) -> tuple[NoiseCorpus, Phase]:
    """Measure a side into `found`. corpus: None at the first one. Returns the corpus and the side's requests.

    Raises CliError, ServerError, requests.RequestException.
    """
    if isinstance(server, ServerError):
        raise server
    holds: dict[str, Any] = held(server, side, served, args)
    found["holds"] = holds
    corpus = corpus or make_corpus(holds if side in (REDKNOT_TIER, REDKNOT) else None, served, args)
    for tier in ("device", "host"):
        holds[f"{tier}_share"] = holds[tier] / len(corpus.documents)
    figures, phase = measure(server, side, corpus, args)
    found |= figures
    found["requests"] = [record.as_json() for record in phase.records]
    return corpus, phase


def run(args: Namespace) -> bool:
    """Measure one side after the other, print, write after each; whether all were measured and all requests answered.

    Raises CliError.
    """
    served = Served.of(args)
    made = commands(served, args)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {**origin(args), "token_bytes": served.token_bytes, "sides": {}}
    corpus: NoiseCorpus | None = None
    phases: dict[str, Phase] = {}
    with closing(running(made, served, args)) as servers:
        for side, server in servers:
            found: dict[str, Any] = {}
            result["sides"][side] = found
            try:
                corpus, phases[side] = one(server, side, corpus, served, args, found)
                result["corpus"] = {"documents": len(corpus.documents), "tokens": sum(map(len, corpus.documents))}
            except (ServerError, CliError, requests.RequestException) as error:
                found["error"] = str(error)
                print(f"{side}: {error}", flush=True)
            args.json.write_text(json.dumps(result, indent=1))
    if REDKNOT_TIER in phases and REDKNOT in phases:
        result["same_answers"] = same_answers(phases[REDKNOT_TIER], phases[REDKNOT])
        args.json.write_text(json.dumps(result, indent=1))
    print(table(result, args))
    return all("error" not in found and not found["errors"] for found in result["sides"].values())


def main() -> None:
    """Exit code 1 if a side was not measured or a request failed, 2 if nothing could be measured."""
    args = make_parser(__doc__ or "").parse_args()
    # Servers are ended on the way out, which an unhandled SIGTERM would skip.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        check(args)
        complete = run(args)
    except (CliError, OSError, ValueError) as error:
        print(f"bench_tier_rag: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
