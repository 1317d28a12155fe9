# SPDX-License-Identifier: Apache-2.0
"""Reads files of the user's own prompts, one JSON object a line.

```
{"prompt": "...", "answer": "...", "documents": ["...", "..."]}
{"prompt": "...", "answers": ["...", "..."]}
```

`answer`, or `answers` if several are right, and `documents` may be left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redknot_sglang.errors import DataError

KEYS = ("prompt", "answer", "answers", "documents")


@dataclass(frozen=True)
class Prompt:
    """One line of a file.

    where: file and line, for messages.
    prompt: the text.
    answers: all that are right; empty if none is known.
    documents: parts of the prompt, in order.
    """

    where: str
    prompt: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]


def read_prompts(path: Path, *, other_keys: bool) -> tuple[list[Prompt], str]:
    """Read a file.

    path: the file.
    other_keys: whether lines may have keys beside KEYS, which are not read then.
    Returns the prompts, at least one, and the SHA-256 of the file's bytes. Raises DataError, which names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
    prompts = list(_prompts(path, text, other_keys))
    if not prompts:
        raise DataError(f'{path} has no prompts in it; write one a line, such as {{"prompt": "..."}}')
    return prompts, hashlib.sha256(content).hexdigest()


def _prompts(path: Path, text: str, other_keys: bool) -> Iterator[Prompt]:
    # Not str.splitlines: characters such as U+2028, at which it cuts too, may stand in JSON texts as they are.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        if line.strip():
            yield _prompt(line, f"{path}, line {number}", other_keys)


def _prompt(line: str, where: str, other_keys: bool) -> Prompt:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}; write one JSON object a line") from error
    if not isinstance(entry, dict) or not _is_text(entry.get("prompt")):
        raise DataError(f'{where}: not an object with a prompt, such as {{"prompt": "..."}}')
    unknown = sorted(set(entry) - set(KEYS))
    if unknown and not other_keys:
        raise DataError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(KEYS)}")
    documents = entry.get("documents", [])
    if not isinstance(documents, list) or not all(map(_is_text, documents)):
        raise DataError(f"{where}: documents must be a list of texts that are not empty")
    return Prompt(where, entry["prompt"], _answers(entry, where), tuple(documents))


def _answers(entry: dict[str, Any], where: str) -> tuple[str, ...]:
    one = entry.get("answer")
    if "answers" not in entry:
        if one is not None and not _is_told(one):
            raise DataError(f"{where}: answer must be text that is not blank; leave it out where it is not known")
        return () if one is None else (one,)
    if "answer" in entry:
        raise DataError(f"{where}: answer and answers are both given; put all that are right into answers")
    several = entry["answers"]
    if not isinstance(several, list) or not several or not all(map(_is_told, several)):
        raise DataError(
            f"{where}: answers must be a list of at least one text, none of them blank; leave it out where none is known"
        )
    return tuple(several)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_told(value: object) -> bool:
    return isinstance(value, str) and value.strip() != ""
