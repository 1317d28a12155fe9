# SPDX-License-Identifier: Apache-2.0
"""Options of eval/bench_rag.py, and what follows from them: corpus, sizes, load, flags of the servers."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Tokenizer

from eval import servers
from eval.rag.corpus import Corpus
from eval.rag.load import Load
from eval.rag.task_corpus import TaskCorpus
from eval.rag.text_corpus import FORMATS, TextCorpus, read_entries
from eval.rag.traffic import KINDS, MULTITURN, PERMUTED, Shape
from redknot_sglang.errors import CliError
from redknot_sglang.plan.policies import largest

ANSWER_TOKENS, FIXED_TOKENS = 64, 16
# Requests that run at once in open loop; those that arrive while so many run wait in the server.
OPEN_LOOP_RUNNING = 32
# Prompts of the longest kind that fit beside the corpus by default. In segmented mode old prompts stay cached, too, and
# with room for few of them a document that is not drawn for a while has to make place.
_CACHED_PROMPTS = 8
_COUNTS = ("documents", "per_request", "document_tokens", "turns", "turn_documents", "requests", "threads")


def make_parser(description: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    running = parser.add_argument_group("servers", "Both are started here unless both addresses are given.")
    running.add_argument("--stock", metavar="URL", help="a stock server that runs, with its radix cache on")
    running.add_argument("--redknot", metavar="URL", help="a --redknot server that runs, on the same model")
    servers.add_arguments(running, threads=1)
    running.add_argument("--kv-tokens", type=int, help="KV of each, in tokens of stock (the corpus and 8 prompts)")
    running.add_argument("--chunk", type=int, help="tokens of a prefill chunk (8192 on a GPU, 2048 on the CPU)")
    running.add_argument(
        "--hicache-ratio",
        type=float,
        help="host memory behind both, as a multiple of the GPU's KV (none; stock needs a GPU)",
    )
    running.add_argument("--policies", default="boundary:16,blend:0.08", help="repair policies (%(default)s)")
    running.add_argument(
        "--reordered", action="store_true", help="stock once more, documents in orders that earlier prompts began with"
    )
    traffic = parser.add_argument_group("traffic")
    traffic.add_argument("--traffic", default=",".join(KINDS), help="kinds (%(default)s)")
    traffic.add_argument("--documents", type=int, default=24, help="in the shared corpus (%(default)s)")
    traffic.add_argument("--document-tokens", type=int, default=320, help="of each; with --data at most (%(default)s)")
    traffic.add_argument("--per-request", type=int, default=12, help="documents of a permuted request (%(default)s)")
    traffic.add_argument("--turns", type=int, default=4, help="of a dialogue (%(default)s)")
    traffic.add_argument("--turn-documents", type=int, default=3, help="documents of a turn (%(default)s)")
    traffic.add_argument("--back", type=float, default=0.25, help="chance of a document to come again (%(default)s)")
    traffic.add_argument(
        "--history",
        choices=("own", servers.STOCK),
        default="own",
        help="answers in a dialogue's prompts: the side's own (default), or stock's, for the same prompts on all sides",
    )
    traffic.add_argument("--data", type=Path, help=f"public text instead of generated: {FORMATS}")
    traffic.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json for --data (the embedded model's)")
    traffic.add_argument("--output-tokens", type=int, help="exactly so many in each answer, and no exact match")
    traffic.add_argument("--seed", type=int, default=1)
    load = parser.add_argument_group("load, of each kind of traffic and each side")
    load.add_argument("--requests", type=int, default=20, help="turns count as requests (%(default)s)")
    load.add_argument("--concurrency", type=int, help="closed loop: dialogues under way at once (2)")
    load.add_argument("--rate", type=float, help="open loop: requests a second on average, Poisson arrivals")
    load.add_argument("--cold", action="store_true", help="do not show the servers all documents first")
    load.add_argument("--timeout", type=float, default=600, help="seconds of a request (%(default)s)")
    parser.add_argument(
        "--json", type=Path, default=Path("out/rag/rag.json"), help="server logs beside it (%(default)s)"
    )
    parser.add_argument("--png", type=Path, default=Path("out/rag/rag.png"), help="(%(default)s)")
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuse what makes no sense together; fills in the concurrency. Raises CliError."""
    if (args.stock is None) != (args.redknot is None):
        raise CliError("give --stock and --redknot, or neither to have both started here")
    if args.stock is not None and args.shape is not None:
        raise CliError("--shape is of servers started here; leave it out with --stock and --redknot")
    if args.stock is not None and args.data is not None and args.tokenizer is None:
        raise CliError("--data with servers that run: name the folder of their tokenizer.json with --tokenizer")
    if args.rate is not None and args.concurrency is not None:
        raise CliError("--rate is open loop, --concurrency closed loop: give one of them")
    if args.rate is None and args.concurrency is None:
        args.concurrency = 2
    for name in (*_COUNTS, "concurrency", "chunk", "kv_tokens", "output_tokens", "rate"):
        value = getattr(args, name)
        if value is not None and (value <= 0 if name == "rate" else value < 1):
            raise CliError(
                f"--{name.replace('_', '-')} must be {'over 0' if name == 'rate' else 'at least 1'}, got {value}"
            )
    if not 0 <= args.back <= 1:
        raise CliError(f"--back is a chance between 0 and 1, got {args.back}")
    unknown = [kind for kind in args.traffic.split(",") if kind not in KINDS]
    if unknown:
        raise CliError(f"--traffic {unknown[0]!r} is not known; there are {', '.join(KINDS)}")


def make_corpus(args: argparse.Namespace) -> Corpus:
    """From the file of --data, else generated. Raises CliError."""
    try:
        if args.data is None:
            return TaskCorpus(args.documents, args.document_tokens, args.seed)
        folder = args.tokenizer or servers.ROOT / "model"
        if not (folder / "tokenizer.json").is_file():
            raise CliError(f"--tokenizer: there is no {folder / 'tokenizer.json'}")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return TextCorpus(read_entries(args.data), tokenizer, args.documents, args.document_tokens, args.seed)
    except (OSError, ValueError) as error:
        raise CliError(str(error)) from error


def make_shapes(args: argparse.Namespace) -> dict[str, Shape]:
    """Sizes of each kind of traffic that was asked for."""
    known = {
        PERMUTED: Shape(turns=1, documents=args.per_request),
        MULTITURN: Shape(turns=args.turns, documents=args.turn_documents, back=args.back),
    }
    return {kind: known[kind] for kind in args.traffic.split(",")}


def make_load(args: argparse.Namespace) -> Load:
    """Answers are scored where documents are generated and the embedded model may end them itself."""
    scored = args.output_tokens is None and args.data is None and args.shape is None
    tokens = args.output_tokens or (ANSWER_TOKENS if scored else FIXED_TOKENS)
    return Load(args.concurrency, args.rate, tokens, scored, args.seed)


def server_flags(
    args: argparse.Namespace, served: servers.Served, longest: int
) -> tuple[list[str], dict[str, list[str]]]:
    """Flags of both servers and of each, with the same bytes for KV; longest: tokens of prompt and answer at most.

    Raises CliError if the model has not so many positions.
    """
    positions = served.config["max_position_embeddings"]
    if longest > positions:
        raise CliError(
            f"prompts and answers take up to {longest} tokens, the model has {positions} positions; "
            "lower --per-request, --turns, --turn-documents or --document-tokens"
        )
    running = args.concurrency or OPEN_LOOP_RUNNING
    tokens = args.kv_tokens or args.documents * args.document_tokens + _CACHED_PROMPTS * longest
    policies = args.policies.split(",")
    common = [
        f"--context-length={longest}",
        # Chunks in flight hold local slots; SGLang's default would take a quarter of so small a cache as the CPU's.
        f"--chunked-prefill-size={args.chunk or (8192 if args.shape else 2048)}",
        f"--max-running-requests={max(4, running)}",
        *([f"--cuda-graph-max-bs-decode={max(4, running)}"] if args.shape else []),
        *(
            ["--enable-hierarchical-cache", f"--hicache-ratio={args.hicache_ratio}"]
            if args.hicache_ratio is not None
            else []
        ),
    ]
    redknot = [
        f"--redknot-kv-budget={tokens * served.token_bytes}",
        f"--redknot-context-length={longest}",
        f"--redknot-segment-length={args.document_tokens}",
        # The local pool is sized for the policy whose cached segments need most of it.
        f"--redknot-repair={largest(policies)}",
    ]
    return common, {servers.STOCK: [f"--max-total-tokens={tokens}"], servers.REDKNOT: redknot}
