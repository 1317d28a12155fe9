# SPDX-License-Identifier: Apache-2.0
"""`redknot certify`: measure a head map and repair policies through the server, and write the certificate beside the map."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from redknot_sglang.certify.options import FIRST_SEED, Options
from redknot_sglang.certify.record import tables
from redknot_sglang.certify.run import certify
from redknot_sglang.certify.verdict import BY, PASS, Thresholds
from redknot_sglang.config import LEADS
from redknot_sglang.cpu import has_cuda_driver
from redknot_sglang.errors import CliError

DEVICES = ("auto", "cpu", "cuda")


def add_parser(subparsers: Any) -> None:
    """Register `certify` on what `ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "certify",
        help="measure a head map through the server and write its certificate",
        description="Starts stock SGLang and SGLang --redknot one after the other, asks both the same held-out prompts, and "
        "writes losses, intervals and a verdict to MAP.certificate.json, which a server checks at start. Flags for both "
        "servers go behind `--`, those for stock SGLang alone into --stock-flags. Exit code 1 if the verdict is `fail`.",
        usage='redknot certify MODEL --head-map F [options] [--stock-flags="FLAGS"] [-- SERVER FLAGS]',
    )
    parser.add_argument("model", metavar="MODEL", help="the model's folder")
    parser.add_argument("--head-map", type=Path, metavar="F", required=True, help="head map to certify")
    parser.add_argument(
        "--repair",
        metavar="P,...",
        help="repair policies of segmented mode to certify, beside exact mode, e.g. blend:0.08",
    )
    parser.add_argument(
        "--controls",
        metavar="C,...",
        help="ask also with the documents that a control keeps, as a measure of what `question` is worth: bm25:N, random:N, "
        "oracle:N (those that tell an answer), no-documents",
    )
    parser.add_argument(
        "--lead",
        choices=LEADS,
        default=LEADS[0],
        help="compute documents on their own (none), or behind the text before the first one (lead) (%(default)s)",
    )
    parser.add_argument("--tasks", metavar="NAME,...", help="generated tasks, or `none`; default: all there are")
    parser.add_argument("--task-dir", type=Path, metavar="DIR", help="task package; default: the checkout's eval/tasks")
    parser.add_argument("--lengths", default="1024,2048,4096", metavar="N,...", help="tokens of prompts (%(default)s)")
    parser.add_argument("-n", type=int, default=400, metavar="N", help="prompts of each task and length (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=FIRST_SEED, metavar="S", help="seed of the first prompt (%(default)s)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="F.jsonl",
        action="append",
        default=[],
        help="prompts of your own, with answers or without; repeatable, and each file has figures of its own",
    )
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="limit of an answer (%(default)s)")
    _add_thresholds(parser)
    parser.add_argument("--key", type=Path, metavar="PEM", help="sign the certificate with this Ed25519 private key")
    parser.add_argument("--device", choices=DEVICES, default=DEVICES[0], help="where to serve (GPU if there is one)")
    parser.add_argument(
        "--stock-flags",
        default="",
        metavar='"FLAGS"',
        help="flags of stock SGLang alone, in one word, such as its best attention backend: "
        '--stock-flags="--attention-backend fa3"; they come behind those of both servers, so that they prevail',
    )
    parser.add_argument("--concurrency", type=int, default=8, metavar="C", help="requests in flight (%(default)s)")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the servers' logs there")
    parser.add_argument("--fresh", action="store_true", help="forget the answers of an interrupted run")
    parser.set_defaults(func=run, takes_server_flags=True)


def _add_thresholds(parser: argparse.ArgumentParser) -> None:
    limit = parser.add_argument_group("thresholds of the verdict")
    limit.add_argument(
        "--max-loss", type=float, default=1.0, metavar="P", help="points lost on average, at any length (%(default)s)"
    )
    limit.add_argument(
        "--max-task-loss", type=float, default=2.0, metavar="P", help="points lost on any task and length (%(default)s)"
    )
    limit.add_argument(
        "--min-agreement",
        type=float,
        default=90.0,
        metavar="%",
        help="of data without answers: percent of the dense answer's tokens that must come before the first difference "
        "(%(default)s)",
    )
    limit.add_argument(
        "--min-dense",
        type=float,
        default=50.0,
        metavar="%",
        help="percent that stock SGLang must answer right, or a loss says nothing and the verdict is `fail` (%(default)s)",
    )
    limit.add_argument(
        "--by", choices=BY, default=BY[0], help="judge estimates, or upper ends of 95 %% intervals (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print the figures, and write the certificate. Returns 1 if a policy failed. Raises RedKnotError."""
    # An unhandled SIGTERM would end this process at once and leave the servers running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    path, sealed = certify(_options(args))
    for line in tables(sealed["policies"], sealed["controls"]):
        print(line)
    print(f"\nverdict: {sealed['verdict']}; written: {path}, digest {sealed['digest'][:12]}")
    return 0 if sealed["verdict"] == PASS else 1


def _options(args: argparse.Namespace) -> Options:
    """The options as data. Raises CliError for values that cannot be used."""
    for option, least in (("n", 1), ("seed", 0), ("max_tokens", 1), ("concurrency", 1)):
        if getattr(args, option) < least:
            flag = "-n" if option == "n" else "--" + option.replace("_", "-")
            raise CliError(f"{flag} must be at least {least}, got {getattr(args, option)}")
    device = args.device
    if device == "auto":
        device = "cuda" if has_cuda_driver() else "cpu"
    return Options(
        model=args.model,
        head_map=args.head_map,
        thresholds=Thresholds(args.max_loss, args.max_task_loss, args.min_agreement, args.min_dense, args.by),
        device=device,
        repairs=[] if args.repair is None else [name.strip() for name in args.repair.split(",")],
        controls=args.controls,
        lead=args.lead,
        tasks=args.tasks,
        task_dir=args.task_dir,
        lengths=_lengths(args.lengths),
        n=args.n,
        seed=args.seed,
        data=args.data,
        max_tokens=args.max_tokens,
        key=args.key,
        concurrency=args.concurrency,
        logs=args.logs,
        fresh=args.fresh,
        flags=args.server_flags,
        stock_flags=_stock_flags(args.stock_flags),
    )


def _lengths(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise CliError(f"--lengths {text!r} is not a list of lengths in tokens: write them like 1024,2048")
    return sorted({int(word) for word in words})


def _stock_flags(text: str) -> list[str]:
    """Words of `--stock-flags`, cut as a shell does."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise CliError(f"--stock-flags {text!r} cannot be cut into words: {error}; check its quotes") from error
    if words and not words[0].startswith("--"):
        raise CliError(f"--stock-flags {text!r} must begin with a flag, such as --attention-backend fa3")
    for word in words:
        if word.startswith("--redknot"):
            raise CliError(
                f"--stock-flags: {word} is not for stock SGLang, which is served without RedKnot; leave it out"
            )
    return words
