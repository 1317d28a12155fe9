# SPDX-License-Identifier: Apache-2.0
"""`redknot eval`: exact match and latency of any OpenAI-compatible server on generated tasks."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from redknot_sglang import __version__
from redknot_sglang.cli.checkout import find_checkout, import_package
from redknot_sglang.cli.table import format_table
from redknot_sglang.cli.task_result import HEADER, TaskResult
from redknot_sglang.errors import CliError

MODES = ("completions", "chat")


class TaskPackage(Protocol):
    """What a package of tasks exports; `eval.tasks` is the one in the repository."""

    TASKS: dict[str, Any]

    def make_example(self, name: str, length: int, seed: int) -> Any:
        """Example `seed` of task `name` with a prompt of `length` tokens; ValueError if there can be none."""

    def render(self, example: Any) -> str:
        """Prompt for /v1/completions."""

    def messages(self, example: Any) -> list[dict[str, str]]:
        """Messages for /v1/chat/completions."""

    def score(self, example: Any, completion: str) -> bool:
        """Whether the answer is right."""


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
    """Measure, print the table, write the JSON; 1 if a request failed, else 0. Raises CliError."""
    tasks = load_tasks(args.task_dir)
    names = choose_tasks(tasks, args.tasks)
    for option in ("length", "n", "concurrency", "max_tokens"):
        if getattr(args, option) < 1:
            raise CliError(f"--{option.replace('_', '-')} must be at least 1, got {getattr(args, option)}")
    if args.json is not None and not args.json.parent.is_dir():
        raise CliError(f"--json: there is no directory {args.json.parent}")
    model, results = asyncio.run(_measure(args, tasks, names))
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


def load_tasks(directory: Path | None) -> TaskPackage:
    """The task package in `directory`, or the checkout's. Raises CliError if it is not one."""
    module = import_package(directory or find_checkout() / "eval" / "tasks")
    missing = [name for name in ("TASKS", "make_example", "render", "messages", "score") if not hasattr(module, name)]
    if missing:
        raise CliError(f"{module.__name__} is no task package: it lacks {', '.join(missing)}")
    return cast(TaskPackage, module)


def choose_tasks(tasks: TaskPackage, wanted: str | None) -> list[str]:
    """Names from `--tasks`, all of them for None. Raises CliError for an unknown or missing one."""
    names = list(tasks.TASKS) if wanted is None else [name.strip() for name in wanted.split(",")]
    unknown = [name for name in names if name not in tasks.TASKS]
    if unknown:
        raise CliError(f"unknown task {unknown[0]!r}; there are {', '.join(tasks.TASKS)}")
    return names


async def _measure(args: argparse.Namespace, tasks: TaskPackage, names: Sequence[str]) -> tuple[str, list[TaskResult]]:
    from redknot_sglang.cli.measure import Client

    async with Client(args.url, model=args.model, api_key=args.api_key, timeout=args.timeout) as client:
        model = await client.model()
        return model, [await _measure_task(args, tasks, name, client) for name in names]


async def _measure_task(args: argparse.Namespace, tasks: TaskPackage, name: str, client: Any) -> TaskResult:
    from tqdm import tqdm

    from redknot_sglang.cli.measure import Request, ask_all, cached_share

    seeds = range(args.seed, args.seed + args.n)
    prompt_of = tasks.render if args.mode == "completions" else tasks.messages
    try:
        # All before the first request: making one keeps the event loop from noting when text arrives.
        examples = [tasks.make_example(name, args.length, seed) for seed in seeds]
    except ValueError as error:
        raise CliError(f"task {name}: {error}") from error
    requests = [Request(prompt_of(example), args.max_tokens) for example in examples]
    with tqdm(total=args.n, desc=name, unit="request", leave=False, disable=None) as bar:
        answers = await ask_all(client, requests, args.concurrency, lambda _: bar.update())
    failed = [answer.error for answer in answers if answer.error is not None]
    complete = [answer for answer in answers if answer.error is None]
    counts = [answer.prompt_tokens for answer in complete if answer.prompt_tokens is not None]
    wrong = [
        {
            "seed": seed,
            "expected": getattr(example, "answer", None),
            "got": answer.text,
            "error": answer.error,
        }
        for seed, example, answer in zip(seeds, examples, answers, strict=True)
        if answer.error is not None or not tasks.score(example, answer.text)
    ]
    return TaskResult(
        task=name,
        n=args.n,
        correct=args.n - len(wrong),
        errors=len(failed),
        first_error=failed[0] if failed else None,
        ttft=[answer.ttft for answer in complete],
        prompt_tokens=sum(counts) / len(counts) if counts else None,
        cached=cached_share(complete),
        wrong=wrong,
    )
