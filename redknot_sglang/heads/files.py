# SPDX-License-Identifier: Apache-2.0
"""Reading and writing the small text files of this package, with errors a user can act on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads.checks import require_object, shown

StrPath = str | os.PathLike[str]

# The largest public map (80 layers, spelled out one entry a line) is below 100 KB. The limit keeps model
# weights, named by mistake, from being read into memory.
MAX_BYTES = 16 << 20


def read_text(path: StrPath) -> str:
    """Text of a UTF-8 file of at most `MAX_BYTES`.

    Raises HeadMapError whose message is the end of a sentence: the caller puts the path before it.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise HeadMapError("no such file; check the path") from None
    except IsADirectoryError:
        raise HeadMapError("is a directory, give the file itself") from None
    except OSError as error:
        raise HeadMapError(f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise HeadMapError(f"is larger than {MAX_BYTES >> 20} MiB, too large for a head map; name the map's own file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HeadMapError(f"is not UTF-8 text (byte {error.start}); name a JSON or TSV file") from None


def parse_json_object(text: str) -> dict[str, Any]:
    """Parse strict JSON whose top level is an object.

    Raises HeadMapError for anything else, NaN, Infinity and keys that stand twice in one object included.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except HeadMapError:
        raise
    except json.JSONDecodeError as error:
        raise HeadMapError(f"is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError):  # an integer of thousands of digits; thousands of nested brackets
        raise HeadMapError("is not usable JSON: a number is too long or the nesting too deep") from None
    return dict(require_object(value, "the top level"))


def write_bytes(path: StrPath, data: bytes) -> None:
    """Write a file, replacing one that is there. Raises HeadMapError, e.g. if the directory does not exist."""
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise HeadMapError(f"{os.fspath(path)}: cannot be written: {error.strerror}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise HeadMapError(f"key {shown(key)} appears twice in one object")
        value[key] = item
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise HeadMapError(f"is not valid JSON: {name} is not a number")
