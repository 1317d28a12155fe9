# SPDX-License-Identifier: Apache-2.0
"""`redknot inspect`: what a running server has cached, in a terminal."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any

from redknot_sglang.measure.inspect_client import read_inventory
from redknot_sglang.measure.table import format_table
from redknot_sglang.report.cache_words import (
    CLASSES,
    TIERS,
    kind_words,
    left_out_words,
    place_of,
    read_bytes,
    state_words,
    tenant_words,
    why_words,
)


def add_parser(subparsers: Any) -> None:
    """Register `inspect` on what `ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "inspect",
        help="show what a running server has cached",
        description="What is in a server's prefix cache, by tenant and head class: where it is, why it is kept, what goes next. "
        "The same as a page is at URL/redknot/inspect.",
    )
    parser.add_argument(
        "url", nargs="?", default="http://127.0.0.1:30000", metavar="URL", help="address of the server (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the server's JSON")
    parser.add_argument("--api-key", metavar="KEY", help="admin key, where the server has one")
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds to wait (%(default)s)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Ask the server and print its answer. Raises CliError."""
    found = read_inventory(args.url, args.api_key, args.timeout)
    print(json.dumps(found, indent=1) if args.json else "\n".join(_words(found)))
    return 0


def _words(found: Mapping[str, Any]) -> Iterator[str]:
    for rank in found["ranks"]:
        if len(found["ranks"]) > 1:
            yield f"data-parallel rank {rank['rank']}"
        yield _room(rank["status"])
        if rank["cache"] is None:
            yield "the prefix cache is off"
            continue
        yield from _cache(rank["cache"], found["texts"])


def _room(status: Mapping[str, Any]) -> str:
    rows = []
    for tier, classes in (("device", status["classes"]), ("host", (status["tiers"] or {}).get("host") or {})):
        for name, state in classes.items():
            size = read_bytes(state["used"] * state["bytes_per_slot"])
            share = state["used"] / max(1, state["slots"])
            rows.append(
                [f"{name} heads, {TIERS[tier]}", f"{state['used']:,}", f"{state['slots']:,}", f"{share:.0%}", size]
            )
    return format_table(["slots", "used", "of", "share", "bytes"], rows) + "\n"


def _cache(cache: Mapping[str, Any], texts: bool) -> Iterator[str]:
    places = place_of(cache["next"])
    for tenant in cache["tenants"]:
        yield f"{tenant_words(tenant['tenant'])}: {tenant['pieces']:,} pieces, {tenant['documents']:,} documents"
        for piece in cache["pieces"]:
            if piece["tenant"] != tenant["tenant"]:
                continue
            yield f"  {piece['piece']}: {kind_words(piece)}, tokens {piece['start']:,} to {piece['end']:,}"
            if texts:
                yield f"    begins with {piece.get('text', piece['tokens'])!r}"
            for name in CLASSES:
                held = piece["classes"][name]
                why = why_words(held, places.get((piece["piece"], name), []))
                yield f"    {name} heads: {state_words(held)}; {why}"
    words = left_out_words(cache["left_out"])
    if words:
        yield words
    for tier, classes in cache["next"].items():
        for name, entries in classes.items():
            if entries:
                yield f"\nnext to go, {name} heads {TIERS[tier]}"
                rows = [
                    [tenant_words(one["tenant"]), f"{one['start']:,} to {one['end']:,}", f"{one['age']:,}"]
                    for one in entries
                ]
                yield format_table(["whose", "tokens", "tokens since its last use"], rows)
