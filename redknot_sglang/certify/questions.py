# SPDX-License-Identifier: Apache-2.0
"""Makes the questions of a certification, from generated tasks and from the user's prompts.

Questions are token ids, so that all servers get exactly the same prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from redknot_sglang.errors import CliError, DataError
from redknot_sglang.measure.prompt_file import Prompt, read_prompts
from redknot_sglang.measure.tasks import TaskPackage, is_right, right_answers

DATA = "data"

# What some chat templates write in front of a message, behind a special token.
_ROLE = re.compile(r"\s*(?:system|user|assistant|model|tool)\s*(?:\n|$)")


@dataclass(frozen=True)
class Question:
    """One prompt.

    task: name of its task; for the user's `data`, or the name of their file without its ending where there are several.
    length: tokens that a generated prompt was made for, None for the user's.
    ids: its token ids.
    segments: token offsets of its documents, [start, end, start, end, ...].
    score: tells whether a completion is right; None where the right answer is not known.
    documents: the texts of its documents, in order.
    asks: the text behind the last document, without special tokens and names of roles; empty if there are no documents.
    answers: all that are right, empty where none is known.
    """

    task: str
    length: int | None
    ids: tuple[int, ...]
    segments: tuple[int, ...]
    score: Callable[[str], bool] | None
    documents: tuple[str, ...] = ()
    asks: str = ""
    answers: tuple[str, ...] = ()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a model's folder. Raises CliError if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CliError(
            f"the tokenizer of {folder} cannot be loaded: {error}; put its files into that folder"
        ) from error


def task_questions(
    tasks: TaskPackage, names: Sequence[str], lengths: Sequence[int], seeds: range, tokenizer: Any
) -> list[Question]:
    """One question for each task, length and seed.

    tasks: the task package.
    names: tasks of it.
    lengths: tokens of prompts.
    seeds: of examples.
    tokenizer: the model's.
    Raises CliError if a task cannot make such an example.
    """
    return [
        _task_question(tasks, name, length, seed, tokenizer) for length in lengths for name in names for seed in seeds
    ]


def _task_question(tasks: TaskPackage, name: str, length: int, seed: int, tokenizer: Any) -> Question:
    try:
        example = tasks.make_example(name, length, seed)
    except ValueError as error:
        raise CliError(f"task {name}: {error}") from error
    if tokenizer.chat_template:
        messages = tasks.messages(example)
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    else:
        prompt = tasks.render(example)
    documents = tuple(getattr(example, "documents", ()))
    ids, segments = encode(tokenizer, prompt, documents)
    score, answers = partial(is_right, tasks, example), tuple(right_answers(example) or ())
    return Question(name, length, ids, segments, score, documents, _asking(tokenizer, prompt, documents), answers)


def read_files(paths: Sequence[Path], tokenizer: Any) -> tuple[list[Question], list[dict[str, Any]]]:
    """Questions of files of prompts, each file a task of its own where there are several.

    paths: the files. tokenizer: the model's.
    Returns what `read_data` returns, of all files. Raises DataError, and CliError if two files have one name.
    """
    names = [path.stem for path in paths] if len(paths) > 1 else [DATA]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CliError(
            f"--data: two files are called {twice}, and the figures of each stand under its name; rename one"
        )
    read = [read_data(path, tokenizer, name) for path, name in zip(paths, names[: len(paths)], strict=True)]
    return [question for questions, _ in read for question in questions], [told for _, told in read]


def read_data(path: Path, tokenizer: Any, task: str = DATA) -> tuple[list[Question], dict[str, Any]]:
    """Questions of a file of prompts.

    path: the file, in the format of `measure/prompt_file.py`. `documents` of a line become segments; they must stand in
        the prompt, verbatim and in order.
    tokenizer: the model's.
    task: name of the questions' task.
    Returns the questions, and name, SHA-256 and number of prompts of the file. Raises DataError, which names the line.
    """
    prompts, sha256 = read_prompts(path, other_keys=True)
    questions = [_data_question(prompt, tokenizer, task) for prompt in prompts]
    return questions, {"name": path.name, "sha256": sha256, "prompts": len(questions)}


def _data_question(prompt: Prompt, tokenizer: Any, task: str) -> Question:
    try:
        ids, segments = encode(tokenizer, prompt.prompt, prompt.documents)
    except ValueError as error:
        raise DataError(f"{prompt.where}: {error}") from error
    score = partial(contains_any, prompt.answers) if prompt.answers else None
    asks = _asking(tokenizer, prompt.prompt, prompt.documents)
    return Question(task, None, ids, segments, score, prompt.documents, asks, prompt.answers)


def _asking(tokenizer: Any, prompt: str, documents: Sequence[str]) -> str:
    """The words behind the last document. Special tokens and names of roles around chat messages are no words."""
    if not documents:
        return ""
    *_, (tail, _) = _parts(prompt, documents)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    first, *others = (
        re.split("|".join(map(re.escape, sorted(special, key=len, reverse=True))), tail) if special else [tail]
    )
    return "\n".join([first, *(_ROLE.sub("", part, count=1) if _ROLE.match(part) else part for part in others)])


def contains_any(answers: Sequence[str], completion: str) -> bool:
    """Whether one of the answers occurs in the completion; case and the amount of white space do not matter.

    answers: texts that are right; with none the completion is not.
    completion: a text.
    """
    told = _plain(completion)
    return any(_plain(answer) in told for answer in answers)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def encode(tokenizer: Any, prompt: str, documents: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of a prompt, and token offsets of its documents, [start, end, start, end, ...].

    Each document and each text between them is tokenized by itself, as a server does at separators.

    tokenizer: the model's.
    prompt: the text.
    documents: parts of it, in order.
    Raises ValueError if a document is not in the prompt behind the one before.
    """
    # A chat's text has its special tokens written out; only to a text without any the tokenizer's own are added.
    bare = not any(token in prompt for token in tokenizer.all_special_tokens)
    ids: list[int] = []
    segments: list[int] = []
    for number, (text, is_document) in enumerate(_parts(prompt, documents)):
        begin = len(ids)
        if text or number == 0:
            ids += tokenizer.encode(text, add_special_tokens=bare and number == 0)
        if is_document:
            segments += (begin, len(ids))
    if not ids:
        raise ValueError("the prompt has no tokens; leave the line out, or write a text")
    return tuple(ids), tuple(segments)


def _parts(prompt: str, documents: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """The prompt cut around its documents: text and whether it is one."""
    at = 0
    for number, document in enumerate(documents):
        begin = prompt.find(document, at)
        if begin < 0:
            raise ValueError(
                f"document {number} does not stand in the prompt behind those before it; give documents verbatim and in "
                "the prompt's order"
            )
        yield prompt[at:begin], False
        yield document, True
        at = begin + len(document)
    yield prompt[at:], False
