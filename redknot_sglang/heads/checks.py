# SPDX-License-Identifier: Apache-2.0
"""Small checks of values that come from files. Each raises HeadMapError with one line that names the value.

In all of them `value` is what was found, and `what` is how the error calls it, e.g. `local.window`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from redknot_sglang.errors import HeadMapError


def shown(value: object) -> str:
    """`value` as it appears in an error: its type and at most 40 characters of it, on one line."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        text = "..."
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def require_int(value: object, what: str, at_least: int) -> int:
    """Return `value` if it is an integer >= `at_least`; else raise HeadMapError.

    A bool is an int to Python, but `"window": true` in a file is a mistake, so it is refused.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise HeadMapError(f"{what} must be an integer, got {shown(value)}")
    if value < at_least:
        raise HeadMapError(f"{what} must be at least {at_least}, got {shown(value)}")
    return value


def require_str(value: object, what: str) -> str:
    """Return `value` if it is a string that is not blank; else raise HeadMapError."""
    if not isinstance(value, str) or not value.strip():
        raise HeadMapError(f"{what} must be a non-empty string, got {shown(value)}")
    return value


def require_object(value: object, what: str) -> Mapping[str, Any]:
    """Return `value` if it is a JSON object; else raise HeadMapError."""
    if not isinstance(value, Mapping):
        raise HeadMapError(f"{what} must be an object, got {shown(value)}")
    return value


def require_list(value: object, what: str) -> list[Any]:
    """Return `value` if it is a JSON list; else raise HeadMapError."""
    if not isinstance(value, list):
        raise HeadMapError(f"{what} must be a list, got {shown(value)}")
    return value


def require_keys(value: Mapping[str, Any], what: str, required: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Raise HeadMapError if an object lacks a `required` key, or has one that is neither required nor `optional`."""
    required = tuple(required)
    known = {*required, *optional}
    missing = [key for key in required if key not in value]
    if missing:
        raise HeadMapError(f"{what} lacks {', '.join(map(repr, missing))}")
    unknown = sorted(set(value) - known)
    if unknown:
        raise HeadMapError(f"{what} has unknown key {', '.join(map(repr, unknown))}; known: {', '.join(sorted(known))}")


def require_matrix(value: object, what: str, num_layers: int, num_kv_heads: int) -> list[list[Any]]:
    """Return `value` if it is a list of `num_layers` lists of `num_kv_heads` entries each; else raise HeadMapError."""
    rows = require_list(value, what)
    if len(rows) != num_layers:
        raise HeadMapError(f"{what} has {len(rows)} layers, num_layers is {num_layers}")
    for layer, row in enumerate(rows):
        if len(require_list(row, f"{what}, layer {layer}")) != num_kv_heads:
            raise HeadMapError(f"{what}, layer {layer} has {len(row)} heads, num_kv_heads is {num_kv_heads}")
    return rows
