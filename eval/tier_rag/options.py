# SPDX-License-Identifier: Apache-2.0
"""Options of eval/bench_tier_rag.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval.servers import REDKNOT, STOCK, add_arguments
from eval.tier_rag.sides import SIDES
from redknot_sglang.errors import CliError


def make_parser(description: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, threads=2)
    parser.add_argument("--sides", help=f"of {', '.join(SIDES)}, separated by commas (all that the machine serves)")
    parser.add_argument("--document-tokens", type=int, default=320, help="of each document (%(default)s)")
    parser.add_argument("--documents", type=int, help="in the corpus (--times those that fit)")
    parser.add_argument("--times", type=float, default=2.0, help="documents for each that fits (%(default)s)")
    parser.add_argument("--fits", choices=(REDKNOT, STOCK), default=REDKNOT, help="whose pool that is (%(default)s)")
    parser.add_argument("--per-request", type=int, default=4, help="documents of a request (%(default)s)")
    parser.add_argument("--zipf", type=float, default=0.0, help="exponent of their popularity (0: all alike)")
    parser.add_argument("--rate", type=float, default=1.0, help="requests that arrive a second (%(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="for which they arrive (%(default)s)")
    parser.add_argument("--requests", type=int, help="how many arrive, instead of --seconds")
    parser.add_argument("--before", type=int, default=2, help="requests first that do not count (%(default)s)")
    parser.add_argument("--policy", default="boundary:16", help="RedKnot's repair policy (%(default)s)")
    parser.add_argument("--kv-gib", type=float, default=0.125, help="device KV of each server (%(default)s)")
    parser.add_argument("--host-ratio", type=float, default=3.0, help="host KV for each byte of that (%(default)s)")
    parser.add_argument("--chunk", type=int, default=2048, help="tokens of a prefill chunk (%(default)s)")
    parser.add_argument("--mem-fraction", type=float, default=0.42, help="of the GPU, for a server (%(default)s)")
    parser.add_argument("--stock-flags", default="", help="further flags of both stock servers, in one word")
    parser.add_argument(
        "--together", type=int, default=1, help="servers up at a time, all but one stopped (%(default)s)"
    )
    parser.add_argument("--pause", type=float, default=1.0, help="seconds for copies to the host (%(default)s)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds of a request (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of documents, requests and arrivals (%(default)s)")
    parser.add_argument("--json", type=Path, required=True, help="figures and requests; server logs beside it")
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuse numbers that cannot be. Raises CliError."""
    for name in ("document_tokens", "documents", "per_request", "requests", "chunk", "together"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise CliError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    for name in ("times", "rate", "seconds", "kv_gib", "host_ratio"):
        if getattr(args, name) <= 0:
            raise CliError(f"--{name.replace('_', '-')} must be over 0, got {getattr(args, name)}")
    if args.zipf < 0 or args.before < 0:
        raise CliError(f"--zipf and --before are at least 0, got {args.zipf} and {args.before}")
