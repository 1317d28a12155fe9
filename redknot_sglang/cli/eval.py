# SPDX-License-Identifier: Apache-2.0
"""`redknot eval`: exact match and latency of any OpenAI-compatible server on generated tasks."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from redknot_sglang import __version__
from redknot_sglang.errors import CliError
from redknot_sglang.measure.exact_match import MODES, Options, measure_tasks
from redknot_sglang.measure.table import format_table
from redknot_sglang.measure.task_result import HEADER
from redknot_sglang.measure.tasks import choose_tasks, load_tasks


def add_parser(subparsers: Any) -> None:
    """Register `eval` on what `ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "eval",
        help="measure exact match and time to first token of any OpenAI-compatible server",
        description="Greedy exact match with a 95 % interval (Wilson), time to first token, cached tokens. "
        "Stock SGLang reports cached tokens only with --enable-cache-report.",
    )
    parser.add_argument("--url", required=True, help="address of the server, with or without /v1")
    parser.add_argument("--tasks", metavar="NAME,...", help="tasks to run; default: all")
    parser.add_argument("--length", type=int, default=2048, metavar="N", help="tokens of a prompt (%(default)s)")
    parser.add_argument("--n", type=int, default=100, metavar="N", help="examples of each task (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first example (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=8, metavar="C", help="requests in flight (%(default)s)")
    parser.add_argument("--mode", choices=MODES, default=MODES[0], help="endpoint to ask (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="limit of an answer (%(default)s)")
    parser.add_argument("--model", metavar="NAME", help="model to ask for; default: the first one listed")
    parser.add_argument("--api-key", default="none", metavar="KEY", help="key, where the server wants one")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="limit of a request (%(default)s s)")
    parser.add_argument("--json", type=Path, metavar="F", help="write settings and figures there")
    parser.add_argument("--task-dir", type=Path, metavar="DIR", help="task package; default: the checkout's eval/tasks")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON. Returns 1 if a request failed, else 0. Raises CliError."""
    tasks = load_tasks(args.task_dir)
    names = choose_tasks(tasks, args.tasks)
    for option in ("length", "n", "concurrency", "max_tokens"):
        if getattr(args, option) < 1:
            raise CliError(f"--{option.replace('_', '-')} must be at least 1, got {getattr(args, option)}")
    if args.json is not None and not args.json.parent.is_dir():
        raise CliError(f"--json: there is no directory {args.json.parent}; make it first")
    options = Options(
        url=args.url,
        length=args.length,
        n=args.n,
        seed=args.seed,
        concurrency=args.concurrency,
        mode=args.mode,
        max_tokens=args.max_tokens,
        model=args.model,
        api_key=args.api_key,
        timeout=args.timeout,
    )
    model, results = asyncio.run(measure_tasks(options, tasks, names))
    print(format_table(HEADER, [result.as_row() for result in results]))
    for result in results:
        if result.first_error is not None:
            print(f"{result.task}: first error: {result.first_error}", file=sys.stderr)
    if args.json is not None:
        settings = {k: getattr(args, k) for k in ("url", "length", "n", "seed", "concurrency", "mode", "max_tokens")}
        record = {
            "redknot_sglang": __version__,
            "settings": {**settings, "model": model, "tasks": names, "sampling": "greedy"},
            "tasks": {result.task: result.as_json() for result in results},
        }
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    return 1 if any(result.errors for result in results) else 0
