# SPDX-License-Identifier: Apache-2.0
"""Packages of generated tasks, whose examples have known answers; `eval.tasks` is the one in the repository."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from redknot_sglang.errors import CliError
from redknot_sglang.measure.checkout import find_checkout, import_package


class TaskPackage(Protocol):
    """What a package of tasks exports.

    An example has its `answer`, or several that are right as `answers`, and where it has documents `documents`, all texts.
    """

    TASKS: dict[str, Any]

    def make_example(self, name: str, length: int, seed: int) -> Any:
        """Example `seed` of task `name` with a prompt of `length` tokens; ValueError if there can be none."""

    def render(self, example: Any) -> str:
        """Prompt for /v1/completions."""

    def messages(self, example: Any) -> list[dict[str, str]]:
        """Messages for /v1/chat/completions."""

    def score(self, example: Any, completion: str) -> bool:
        """Whether the completion gives the example's `answer`."""


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


def right_answers(example: Any) -> Sequence[str] | None:
    """The answers of an example that are right, the first one first, or None if it names none."""
    several = getattr(example, "answers", None)
    if several:
        return tuple(several)
    one = getattr(example, "answer", None)
    return None if one is None else (one,)


def is_right(tasks: TaskPackage, example: Any, completion: str) -> bool:
    """Whether the task's own rule takes the completion for any of the example's answers."""
    return any(tasks.score(variant, completion) for variant in _variants(example))


def _variants(example: Any) -> Iterator[Any]:
    """The example with each of its answers as the one that is right."""
    several = getattr(example, "answers", None)
    if not several:
        yield example
        return
    for answer in several:
        variant = copy.copy(example)
        # Not setattr: examples may be frozen dataclasses.
        object.__setattr__(variant, "answer", answer)
        yield variant
