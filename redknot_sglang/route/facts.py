# SPDX-License-Identifier: Apache-2.0
"""What servers say of themselves, and the router needs to know in order to read requests as they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redknot_sglang.config import DEFAULT_SEPARATOR


@dataclass(frozen=True)
class Facts:
    """How servers read requests. What no server has said is as they are by default, but for the mode.

    mode: `exact` or `segmented`, for requests that choose none; None if unknown: separators then count as naming documents.
    repair: name of the repair policy of requests that choose none, or None.
    lead: `lead` if documents are computed behind the text before them, else `none`.
    separator: text between the parts of a prompt.
    separator_token: its token, or None if unknown.
    """

    mode: str | None = None
    repair: str | None = None
    lead: str = "none"
    separator: str = DEFAULT_SEPARATOR
    separator_token: int | None = None


def read_facts(status: Any, separator_token: int | None = None) -> Facts:
    """Facts from the answer of `GET /redknot/status`.

    status: JSON. separator_token: as in `Facts`, since the status does not have it.
    """
    given = status.get("segments") if isinstance(status, Mapping) else None
    if not isinstance(given, Mapping):
        return Facts(separator_token=separator_token)
    separator = given.get("separator")
    return Facts(
        mode=_text(given.get("mode")),
        repair=_text(given.get("repair")),
        lead=_text(given.get("lead")) or "none",
        separator=separator if isinstance(separator, str) and separator else DEFAULT_SEPARATOR,
        separator_token=separator_token,
    )


def slots_of(status: Any) -> tuple[int, int] | None:
    """Tokens that a server can cache, and that its prefix cache holds now, from the answer of `GET /redknot/status`.

    With data parallelism those of the rank that the status is about. None if the answer does not say.
    """
    try:
        tree = status["tree"]["global"]
        return int(status["classes"]["global"]["slots"]), int(tree["evictable"]) + int(tree["protected"])
    except (KeyError, TypeError, ValueError):
        return None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
