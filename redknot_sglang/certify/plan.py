# SPDX-License-Identifier: Apache-2.0
"""The questions of a certification, made and checked before any server starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redknot_sglang.certify.controls import parse_controls
from redknot_sglang.certify.options import Options
from redknot_sglang.certify.questions import Question, load_tokenizer, read_files, task_questions
from redknot_sglang.certify.verdict import Thresholds
from redknot_sglang.errors import CliError, RedKnotError
from redknot_sglang.measure.tasks import TaskPackage, choose_tasks, load_tasks
from redknot_sglang.plan.policies import largest, parse_repair

# Prompts for which a server's KV gets room beside those in flight, so that it can cache some.
_SPARE = 4


@dataclass(frozen=True)
class Plan:
    """The questions, and those of the options that certificates record; see `Options` for the others.

    questions: what every server is asked.
    repairs: repair policies by their full names.
    controls: for each control by its name, the questions as it has them asked, in the same order.
    data: name, SHA-256 and number of prompts of each of the user's files.
    """

    questions: Sequence[Question]
    repairs: Sequence[str]
    controls: Mapping[str, Sequence[Question]]
    lead: str
    tasks: Sequence[str]
    lengths: Sequence[int]
    n: int
    seed: int
    data: Sequence[dict[str, Any]]
    max_tokens: int
    concurrency: int
    thresholds: Thresholds

    @property
    def room(self) -> int:
        """Tokens for which a server on a CPU gets KV: those of the requests in flight and of some cached ones."""
        longest = max(len(question.ids) for question in self.questions)
        # A segmented request holds its segments and its own copies of them.
        return 2 * (longest + self.max_tokens) * (self.concurrency + _SPARE)

    @property
    def segment_length(self) -> int | None:
        """Mean number of tokens of a segment, or None if no policy uses segments or no prompt has any."""
        offsets = [(a, b) for q in self.questions for a, b in zip(q.segments[::2], q.segments[1::2], strict=True)]
        if not self.repairs or not offsets:
            return None
        return max(1, sum(b - a for a, b in offsets) // len(offsets))

    @property
    def largest_repair(self) -> str | None:
        """The policy under which cached segments take most room: one that keeps them wholly, if there is one. None without policies."""
        return largest(self.repairs) if self.repairs else None

    def certified_name(self, policy: str) -> str:
        """The name of a policy in the certificate, as in `RedKnotConfig.certified_name`."""
        return f"{policy}+lead" if policy in self.repairs and self.lead == "lead" else policy


def make_plan(options: Options, folder: Path) -> Plan:
    """Check the options and make the questions.

    options: of the command.
    folder: the model's.
    Raises CliError, and DataError for a file of prompts.
    """
    repairs = _repairs(options.repairs)
    controls = parse_controls(options.controls) if options.controls is not None else []
    package, names = _tasks(options)
    seeds = range(options.seed, options.seed + options.n)
    _check_held_out(options.head_map, names, seeds)
    tokenizer = load_tokenizer(folder)
    questions: list[Question] = []
    if package is not None:
        questions += task_questions(package, names, options.lengths, seeds, tokenizer)
    more, data = read_files(options.data, tokenizer)
    questions += more
    if not questions:
        raise CliError("there is nothing to ask: leave --tasks none out, or give --data")
    for flag, given in (("--repair", repairs), ("--controls", controls)):
        if given and not any(question.segments for question in questions):
            raise CliError(f"{flag} needs prompts with documents: give data with `documents`, or tasks that have them")
    return Plan(
        questions=questions,
        repairs=repairs,
        controls={one.name: [one.ask(question, options.seed) for question in questions] for one in controls},
        lead=options.lead,
        tasks=names,
        lengths=options.lengths if names else (),
        n=options.n,
        seed=options.seed,
        data=data,
        max_tokens=options.max_tokens,
        concurrency=options.concurrency,
        thresholds=options.thresholds,
    )


def _repairs(wanted: Sequence[str]) -> list[str]:
    try:
        names = [parse_repair(name).name for name in wanted]
    except RedKnotError as error:
        raise CliError(f"--repair: {error}") from error
    return list(dict.fromkeys(names))


def _tasks(options: Options) -> tuple[TaskPackage | None, list[str]]:
    """The task package and the names of tasks to use. None and no names for `--tasks none`, and where the user has data of
    their own and there is no checkout with tasks.
    """
    if options.tasks == "none":
        return None, []
    try:
        package = load_tasks(options.task_dir)
    except CliError:
        if not options.data or options.tasks is not None or options.task_dir is not None:
            raise
        return None, []
    return package, choose_tasks(package, options.tasks)


def _check_held_out(head_map: Path, names: Sequence[str], seeds: range) -> None:
    """Raises CliError if generated prompts are those that the map was found on, which its profile beside it would tell."""
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
