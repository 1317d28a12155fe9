# SPDX-License-Identifier: Apache-2.0
"""What a server's prefix cache holds, in words: for the page and for the terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

CLASSES = ("global", "local")
TIERS = {"device": "on the device", "host": "on the host"}


def counted(number: int, thing: str) -> str:
    """So many things. thing: one of them."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def tenant_words(tenant: str | None) -> str:
    """A tenant, by name or hash."""
    return "no tenant named" if tenant is None else f"tenant {tenant}"


def kind_words(piece: Mapping[str, Any]) -> str:
    """What a piece is part of."""
    return f"{piece['kind']}, all local KV" if piece["whole"] else str(piece["kind"])


def state_words(held: Mapping[str, Any]) -> str:
    """Where a piece's KV of one class is. held: of this class, as in the JSON."""
    parts = [
        (held["device"] + held["both"], "hot"),
        (held["host"], "cold"),
        (held["both"], "copied"),
        (held["stored"], "stored"),
        (held["locked"], "locked"),
    ]
    # A copy and a lock are said of what is hot or cold already; what is stored may be neither.
    return ", ".join(f"{tokens:,} {words}" for tokens, words in parts if tokens) or "none"


def why_words(held: Mapping[str, Any], places: Sequence[str]) -> str:
    """Why a piece's KV of one class is kept. places: where it stands among those that go next."""
    if held["age"] is None:
        return "-"
    parts = ["a running request or a copy holds it"] if held["locked"] else []
    if held["used"] is not None:
        parts.append(f"{held['used']:.2f} uses of late, rank {held['rank']:.1f}")
    parts.append(f"last use {held['age']:,} tokens ago{', its lifetime is over' if held['over'] else ''}")
    return "; ".join([*parts, *places])


def place_of(following: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> dict[tuple[int, str], list[str]]:
    """Of each piece and class where parts of it stand among those that go next. following: `next` of the JSON."""
    found: dict[tuple[int, str], list[str]] = defaultdict(list)
    for tier, classes in following.items():
        for name, entries in classes.items():
            for place, entry in enumerate(entries, 1):
                if entry["piece"] is not None:
                    found[entry["piece"], name].append(f"number {place} to go, {TIERS[tier]}")
    return found


def left_out_words(left_out: Mapping[str, int]) -> str:
    """What is not shown."""
    parts = []
    if left_out["pieces"]:
        parts.append(f"{counted(left_out['pieces'], 'smaller piece')} of {counted(left_out['tokens'], 'token')}")
    if left_out["nodes"]:
        parts.append(
            f"{counted(left_out['nodes'], 'node')} of the tree that nobody looked at, so that requests do not wait"
        )
    return f"Left out: {'; '.join(parts)}." if parts else ""


def read_bytes(size: int) -> str:
    """A number of bytes for people, in units of 1,000."""
    amount, unit = float(size), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.2f} {unit}"
