# SPDX-License-Identifier: Apache-2.0
"""What `redknot certify` asks all servers: the same token ids, from generated tasks and from the user's prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from redknot_sglang.errors import CliError
from redknot_sglang.measure.tasks import TaskPackage

DATA = "data"


@dataclass(frozen=True)
class Question:
    """One prompt.

    task: its name, or `data` for the user's. length: tokens that a generated prompt was asked to have, else None.
    segments: flat token offsets of the documents, as `custom_params.redknot_segments` wants them.
    score: whether a completion is right, None where nobody knows.
    """

    task: str
    length: int | None
    ids: tuple[int, ...]
    segments: tuple[int, ...]
    score: Callable[[str], bool] | None


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer. Raises CliError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CliError(f"the tokenizer of {folder} cannot be loaded: {error}") from error


def task_questions(
    tasks: TaskPackage, names: Sequence[str], lengths: Sequence[int], seeds: range, tokenizer: Any
) -> list[Question]:
    """One question of each task at each length for every seed. Raises CliError for what a task cannot make."""
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
    documents = getattr(example, "documents", ())
    return Question(name, length, *encode(tokenizer, prompt, documents), partial(tasks.score, example))


def read_data(path: Path, tokenizer: Any) -> tuple[list[Question], dict[str, Any]]:
    """Questions of a JSONL of `prompt` and, where known, `answer` and `documents`; and name, SHA-256 and size of the file.

    `documents` stand in the prompt, verbatim and in order; they are its segments. Raises CliError, which names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CliError(f"--data {path} cannot be read: {error.strerror}") from error
    questions = [
        _data_question(line, f"{path} line {number}", tokenizer)
        for number, line in enumerate(content.splitlines(), 1)
        if line.strip()
    ]
    if not questions:
        raise CliError(f"--data {path} has no prompts in it")
    return questions, {"name": path.name, "sha256": hashlib.sha256(content).hexdigest(), "prompts": len(questions)}


def _data_question(line: bytes, where: str, tokenizer: Any) -> Question:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise CliError(f"{where} is not JSON: {error}") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str) or not entry["prompt"]:
        raise CliError(f'{where} is not an object with a prompt, such as {{"prompt": "..."}}')
    answer, documents = entry.get("answer"), entry.get("documents", [])
    if answer is not None and (not isinstance(answer, str) or not answer.strip()):
        raise CliError(f"{where}: answer must be text that is not blank; leave it out where it is not known")
    if not isinstance(documents, list) or not all(isinstance(document, str) and document for document in documents):
        raise CliError(f"{where}: documents must be a list of texts that are not empty")
    try:
        encoded = encode(tokenizer, entry["prompt"], documents)
    except ValueError as error:
        raise CliError(f"{where}: {error}") from error
    return Question(DATA, None, *encoded, None if answer is None else partial(_contains, answer))


def _contains(answer: str, completion: str) -> bool:
    """Whether the answer occurs in the completion; case and the amount of white space do not matter."""
    return " ".join(answer.split()).casefold() in " ".join(completion.split()).casefold()


def encode(tokenizer: Any, prompt: str, documents: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids and flat offsets of the documents' tokens; every part is tokenized alone, as the server does at separators.

    Raises ValueError if a document does not stand in the prompt behind those before it.
    """
    # Special tokens are written out in the text of a chat; a tokenizer that adds its own does so for bare prompts only.
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
        raise ValueError("the prompt has no tokens")
    return tuple(ids), tuple(segments)


def _parts(prompt: str, documents: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """The prompt cut around its documents: text and whether it is one."""
    at = 0
    for number, document in enumerate(documents):
        begin = prompt.find(document, at)
        if begin < 0:
            raise ValueError(f"document {number} does not stand in the prompt behind those before it")
        yield prompt[at:begin], False
        yield document, True
        at = begin + len(document)
    yield prompt[at:], False
