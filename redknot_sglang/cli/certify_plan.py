# SPDX-License-Identifier: Apache-2.0
"""What `redknot certify` will ask, worked out and checked before any server starts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redknot_sglang.cli.certify_questions import Question, load_tokenizer, read_data, task_questions
from redknot_sglang.cli.certify_verdict import Thresholds
from redknot_sglang.cli.eval import TaskPackage, choose_tasks, load_tasks
from redknot_sglang.errors import CliError, RedKnotError
from redknot_sglang.reuse.repair import parse_repair

# Prompts that a server's KV should hold at a time, beyond those in flight: what it has cached.
_SPARE = 4


@dataclass(frozen=True)
class Plan:
    """Questions, and the options that certificates record. data: name, SHA-256 and size of the user's file, or None."""

    questions: Sequence[Question]
    repairs: Sequence[str]
    lead: str
    tasks: Sequence[str]
    lengths: Sequence[int]
    n: int
    seed: int
    data: dict[str, Any] | None
    max_tokens: int
    concurrency: int
    thresholds: Thresholds

    @property
    def room(self) -> int:
        """Tokens of KV that the requests in flight and some cached ones need."""
        longest = max(len(question.ids) for question in self.questions)
        # A segmented request holds its segments and its own copies of them.
        return 2 * (longest + self.max_tokens) * (self.concurrency + _SPARE)

    @property
    def segment_length(self) -> int | None:
        """Mean tokens of a segment, or None where no policy asks for segments."""
        offsets = [(a, b) for q in self.questions for a, b in zip(q.segments[::2], q.segments[1::2], strict=True)]
        if not self.repairs or not offsets:
            return None
        return max(1, sum(b - a for a, b in offsets) // len(offsets))

    def certified_name(self, policy: str) -> str:
        """A policy as certificates name it (RedKnotConfig.certified_name)."""
        return f"{policy}+lead" if policy in self.repairs and self.lead == "lead" else policy


def make_plan(args: argparse.Namespace, folder: Path) -> Plan:
    """Read and check the options, make the questions. Raises CliError."""
    for option, least in (("n", 1), ("seed", 0), ("max_tokens", 1), ("concurrency", 1)):
        if getattr(args, option) < least:
            flag = "-n" if option == "n" else "--" + option.replace("_", "-")
            raise CliError(f"{flag} must be at least {least}, got {getattr(args, option)}")
    repairs = _repairs(args.repair)
    lengths = _lengths(args.lengths)
    package, names = _tasks(args)
    _check_held_out(args.head_map, names, range(args.seed, args.seed + args.n))
    tokenizer = load_tokenizer(folder)
    questions: list[Question] = []
    if package is not None:
        questions += task_questions(package, names, lengths, range(args.seed, args.seed + args.n), tokenizer)
    data = None
    if args.data is not None:
        more, data = read_data(args.data, tokenizer)
        questions += more
    if not questions:
        raise CliError("there is nothing to ask: leave --tasks none out, or give --data")
    if repairs and not any(question.segments for question in questions):
        raise CliError("--repair needs prompts with documents: give data with `documents`, or tasks that have them")
    return Plan(
        questions,
        repairs,
        args.lead,
        names,
        lengths if names else (),
        args.n,
        args.seed,
        data,
        args.max_tokens,
        args.concurrency,
        Thresholds(args.max_loss, args.max_task_loss, args.min_agreement, args.min_dense, args.by),
    )


def _repairs(text: str | None) -> list[str]:
    try:
        names = [] if text is None else [parse_repair(name.strip()).name for name in text.split(",")]
    except RedKnotError as error:
        raise CliError(f"--repair: {error}") from error
    return list(dict.fromkeys(names))


def _lengths(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise CliError(f"--lengths {text!r} is not a list of tokens such as 1024,2048")
    return sorted({int(word) for word in words})


def _tasks(args: argparse.Namespace) -> tuple[TaskPackage | None, list[str]]:
    """The task package and the names to use; none for `--tasks none`, or for data without a checkout."""
    if args.tasks == "none":
        return None, []
    try:
        package = load_tasks(args.task_dir)
    except CliError:
        if args.data is None or args.tasks is not None or args.task_dir is not None:
            raise
        return None, []
    return package, choose_tasks(package, args.tasks)


def _check_held_out(head_map: Path, names: Sequence[str], seeds: range) -> None:
    """Refuse seeds of generated prompts that the map was calibrated on, where its profile lies beside it."""
    profile = head_map.with_name(head_map.stem + ".profile.json")
    if not names or not profile.is_file():
        return
    try:
        data = json.loads(profile.read_bytes())["data"]
        used = data["seeds"] if data["source"] == "tasks" else ()
        first, last = used or (0, -1)
    except (ValueError, KeyError, TypeError) as error:
        raise CliError(f"{profile} is not a profile; make it again with `redknot profile`, or move it away") from error
    if seeds.start <= last and first < seeds.stop:
        raise CliError(
            f"the map was calibrated on seeds {first} to {last} ({profile.name}), so these prompts are not held out: "
            f"take others, such as --seed {last + 1}"
        )
