# SPDX-License-Identifier: Apache-2.0
"""By what the tree tells paths apart that were computed in isolation: their namespace and their tokens."""

from __future__ import annotations

from typing import Any

from redknot_sglang.plan.plan import Path

# Begins what we add to a namespace; clients may not use it.
MARK = "\0redknot"
# Namespace, beside the request's own, of segments of which local heads keep all rows.
WHOLE = f"{MARK} whole"
# Namespace and tokens of a path.
Identity = tuple[str | None, bytes]


def namespace_of(extra_key: str | None, whole: bool) -> str | None:
    """Namespace of the tree for paths computed in isolation. extra_key: of the requests that they are for."""
    return (extra_key or "") + WHOLE if whole else extra_key


def salted(extra_key: str | None, salt: str | None) -> str | None:
    """One namespace of the two that newer SGLang has, which no other pair has. Without a salt it is `extra_key` itself."""
    return f"{MARK} salt {len(salt)} {salt}{extra_key or ''}" if salt else extra_key


def own_part(namespace: str | None) -> tuple[str, str]:
    """What of a namespace is the request's own, and what we have added: `whole`, a plan's identity, or nothing."""
    own = namespace or ""
    at = own.rfind(MARK)
    if at < 0 or own.startswith(f"{MARK} salt ", at):
        return own, ""
    return own[:at], own[at + len(MARK) :].strip()


def identity_of(req: Any, path: Path) -> Identity:
    """Namespace and tokens of a path that a request needs."""
    return namespace_of(req.extra_key, path.whole), path.key.tobytes()
