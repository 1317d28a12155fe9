# SPDX-License-Identifier: Apache-2.0
"""How the prefix tree tells apart the texts that were computed in isolation: by namespace and tokens.

A segment is kept in SGLang's prefix tree as a path of its own. The tree keeps *namespaces* apart; a client sets its own
by `extra_key`, so that tenants share nothing.
"""

from __future__ import annotations

from typing import Any

from redknot_sglang.plan.plan import Path

# Begins what we add to a namespace; clients may not use it.
MARK = "\0redknot"
# Namespace, beside the request's own, of segments of which local heads keep all rows.
WHOLE = f"{MARK} whole"
# The same for texts that ask for documents (`question:N`). Their KV is there in the layers up to the deepest retrieval head
# only, so nothing that needs all layers may find it.
ASKING = f"{MARK} asking"
# Namespace and tokens of a path.
Identity = tuple[str | None, bytes]


def namespace_of(extra_key: str | None, whole: bool, asks: bool = False) -> str | None:
    """The tree's namespace for a path that was computed in isolation.

    extra_key: namespace of the requests that the path is made for.
    whole: whether local heads keep all rows of the path. Such paths lie apart from those that keep sink and window
        only.
    asks: whether the path is a text that asks for documents (`Path.asks`). Such paths lie apart from all others.
    """
    if asks:
        return (extra_key or "") + ASKING
    return (extra_key or "") + WHOLE if whole else extra_key


def is_whole(namespace: str | None) -> bool:
    """Whether local heads keep all rows of the paths in a namespace of the tree."""
    return bool(namespace) and str(namespace).endswith((WHOLE, ASKING))


def salted(extra_key: str | None, salt: str | None) -> str | None:
    """One namespace for the two fields by which newer SGLang keeps clients apart, `extra_key` and the cache salt.

    No two different pairs give the same one. Without a salt it is `extra_key` itself.
    """
    return f"{MARK} salt {len(salt)} {salt}{extra_key or ''}" if salt else extra_key


def own_part(namespace: str | None) -> tuple[str, str]:
    """What of a namespace is the request's own, and what we have added: `whole`, `asking`, a plan's identity, or nothing."""
    own = namespace or ""
    at = own.rfind(MARK)
    if at < 0 or own.startswith(f"{MARK} salt ", at):
        return own, ""
    return own[:at], own[at + len(MARK) :].strip()


def identity_of(req: Any, path: Path) -> Identity:
    """Namespace and tokens (the bytes of int64 ids) of a path that a scheduler's request needs."""
    return namespace_of(req.extra_key, path.whole, path.asks), path.key.tobytes()
