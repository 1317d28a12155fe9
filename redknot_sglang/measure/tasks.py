# SPDX-License-Identifier: Apache-2.0
"""Loads packages of generated tasks, whose examples have known answers. `eval.tasks` is the one in the repository."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from redknot_sglang.errors import CliError
from redknot_sglang.measure.checkout import find_checkout, import_package


class TaskPackage(Protocol):
    """The names that a package of tasks must have.

    An example is an object with `answer`, a text, or `answers`, several that are right; and with `documents`, texts, if its
    prompt has some.
    """

    TASKS: dict[str, Any]

    def make_example(self, name: str, length: int, seed: int) -> Any:
        """Make one example.

        name: of the task.
        length: tokens of its prompt.
        seed: the same seed gives the same example.
        Raises ValueError if the task has no example of this length.
        """

    def render(self, example: Any) -> str:
        """The example's prompt as text, for /v1/completions."""

    def messages(self, example: Any) -> list[dict[str, str]]:
        """The example's prompt as messages, for /v1/chat/completions."""

    def score(self, example: Any, completion: str) -> bool:
        """Whether the completion gives the example's `answer`."""


def load_tasks(directory: Path | None) -> TaskPackage:
    """The task package in a folder, or for None the one of the repository. Raises CliError if it is not one."""
    module = import_package(directory or find_checkout() / "eval" / "tasks")
    missing = [name for name in ("TASKS", "make_example", "render", "messages", "score") if not hasattr(module, name)]
    if missing:
        raise CliError(
            f"{module.__name__} is no task package: it lacks {', '.join(missing)}; eval/tasks shows what one has"
        )
    return cast(TaskPackage, module)


def choose_tasks(tasks: TaskPackage, wanted: str | None) -> list[str]:
    """The tasks to use.

    tasks: the package.
    wanted: names separated by commas, as in `--tasks`, or None for all.
    Raises CliError for a name that the package does not have.
    """
    names = list(tasks.TASKS) if wanted is None else [name.strip() for name in wanted.split(",")]
    unknown = [name for name in names if name not in tasks.TASKS]
    if unknown:
        raise CliError(f"unknown task {unknown[0]!r}; use some of {', '.join(tasks.TASKS)}")
    return names


def right_answers(example: Any) -> Sequence[str] | None:
    """All right answers of an example, in its order, or None if it names none."""
    several = getattr(example, "answers", None)
    if several:
        return tuple(several)
    one = getattr(example, "answer", None)
    return None if one is None else (one,)


def is_right(tasks: TaskPackage, example: Any, completion: str) -> bool:
    """Whether a completion gives any of an example's right answers, by the rule of its task."""
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
