# SPDX-License-Identifier: Apache-2.0
"""What a server's prefix cache holds, as one HTML page without scripts, which fetches nothing.

For keyboard and screen reader: headings, tables with captions and headers, parts that open and close, and boxes that scroll
with the arrow keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from redknot_sglang.report.cache_words import (
    CLASSES,
    TIERS,
    counted,
    kind_words,
    left_out_words,
    place_of,
    read_bytes,
    state_words,
    tenant_words,
    why_words,
)
from redknot_sglang.report.html import figure, lacking, section, text
from redknot_sglang.report.style import STYLE
from redknot_sglang.report.svg import Canvas

_STYLE = """
a { color: var(--s0); } a:focus-visible, summary:focus-visible, [tabindex]:focus-visible { outline: 3px solid var(--s1); }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: .5rem; background: var(--paper); padding: .3rem .6rem; }
caption { text-align: left; white-space: nowrap; color: var(--soft); padding: .2rem 0; }
tbody th { text-align: left; color: var(--ink); font-weight: 400; }
td.words { text-align: left; white-space: normal; min-width: 14rem; } td.text { text-align: left; font-family: monospace; }
svg rect.host { fill: var(--s4); } svg rect.free { fill: var(--panel); stroke: var(--rule); }
"""
_BAR = 420


def render_cache(found: Mapping[str, Any]) -> str:
    """The page. found: what `GET /redknot/inspect.json` answers."""
    ranks = found["ranks"]
    body = "".join(_rank(rank, found["texts"], len(ranks) > 1) for rank in ranks)
    hidden = (
        "Tenants and texts are shown, as --redknot-inspect-texts allows."
        if found["texts"]
        else "Tenants are shown as hashes of their names, and no text; --redknot-inspect-texts shows both."
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>RedKnot: what is cached</title>\n<style>{STYLE}{_STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#cache">Skip to the cache</a>\n<header><h1>What is cached</h1>\n'
        f'<p class="soft">{escape(hidden)}</p>\n'
        '<nav aria-label="This page"><a href="inspect">Look again</a> &middot; <a href="inspect.json">As JSON</a></nav></header>\n'
        f'<main id="cache">{body}</main>\n'
        f'<p class="soft">Made by redknot-sglang {text(found["version"])}.</p>\n</body>\n</html>\n'
    )


def _rank(rank: Mapping[str, Any], texts: bool, several: bool) -> str:
    of = f" of data-parallel rank {rank['rank']}" if several else ""
    status, cache = rank["status"], rank["cache"]
    body = section(f"Room{of}", _room(status))
    if cache is None:
        return body + section(f"Cache{of}", lacking("The prefix cache is off (--disable-radix-cache)."))
    return (
        body
        + section(f"Traffic{of}", _traffic(status["tiers"]))
        + section(f"Tenants{of}", _tenants(cache, texts))
        + section(f"What goes next{of}", _next(cache))
    )


def _room(status: Mapping[str, Any]) -> str:
    """Slots of each class and tier, as a table and as bars."""
    host = (status["tiers"] or {}).get("host")
    rows, bars = [], []
    for tier, classes in (("device", status["classes"]), ("host", host)):
        for name in CLASSES:
            if classes is None:
                continue
            state = classes[name]
            used = state["used"] * state["bytes_per_slot"]
            rows.append((f"{name}, {tier}", f"{state['used']:,}", f"{state['slots']:,}", read_bytes(used)))
            bars.append((f"{name} heads, {TIERS[tier]}", state["used"] / max(1, state["slots"]), f"{name} {tier}"))
    words = "No host tier: what leaves the device is computed again." if host is None else ""
    return _table("Slots in use", ("class, tier", "used", "slots", "bytes used"), rows) + _bars(bars) + lacking(words)


def _bars(bars: Sequence[tuple[str, float, str]]) -> str:
    canvas = Canvas("Share of slots in use, by head class and tier", 680, 24 * len(bars) + 8)
    for row, (words, share, css) in enumerate(bars):
        y = 24 * row + 4
        canvas.text(0, y + 13, words)
        canvas.rect(200, y, _BAR, 16, "free")
        canvas.rect(
            200, y, _BAR * share, 16, "host" if css.endswith("host") else css.split()[0], f"{words}: {share:.0%}"
        )
        canvas.text(210 + _BAR, y + 13, f"{share:.0%}")
    return figure(canvas.svg())


def _traffic(tiers: Mapping[str, Any]) -> str:
    def counts(caption: str, found: Mapping[str, Mapping[str, int]], read: Any = "{:,}".format) -> str:
        rows = [(name.replace("_", " "), *(read(by_class[one]) for one in CLASSES)) for name, by_class in found.items()]
        return _table(caption, ("", *CLASSES), rows)

    ages = [
        (f"{name} heads, {tier}", f"{age['pieces']:,}", "-" if age["mean"] is None else f"{age['mean']:,}")
        for tier, classes in tiers["age_at_eviction"].items()
        for name, age in classes.items()
    ]
    return (
        counts("Tokens of prefixes found in the cache, by where they were", tiers["hit_tokens"])
        + counts("Bytes copied to the host and back", tiers["copied_bytes"], read_bytes)
        + counts("Tokens evicted, by reason", tiers["evicted_tokens"])
        + _table(
            "Age of what was evicted, in tokens that requests brought since its last use",
            ("", "pieces", "mean age"),
            ages,
        )
        + f"<p>Loads from the host: {tiers['loads']:,}, {tiers['load_seconds']:.3f} seconds together.</p>"
    )


def _tenants(cache: Mapping[str, Any], texts: bool) -> str:
    if not cache["tenants"]:
        return lacking("Nothing is cached.")
    legend = (
        '<p class="soft">A piece is a part of prompts that no path leaves; a document is one that was computed by itself. Hot: on the device; '
        "cold: on the host alone; copied: on both; stored: this server has also written it to the store, or read it from there.</p>"
    )
    parts = [legend]
    for tenant in cache["tenants"]:
        pieces = [piece for piece in cache["pieces"] if piece["tenant"] == tenant["tenant"]]
        held = ", ".join(
            f"{name} {tenant['tokens'][name]['device']:,} hot and {tenant['tokens'][name]['host']:,} on the host"
            for name in CLASSES
        )
        title = f"{tenant_words(tenant['tenant'])}: {counted(tenant['pieces'], 'piece')}, {counted(tenant['documents'], 'document')}; tokens: {held}"
        parts.append(f"<details open><summary>{text(title)}</summary>{_pieces(pieces, cache, texts)}</details>")
    parts.append(lacking(left_out_words(cache["left_out"])))
    return "".join(parts)


def _pieces(pieces: Sequence[Mapping[str, Any]], cache: Mapping[str, Any], texts: bool) -> str:
    places = place_of(cache["next"])
    head = [
        "piece",
        "kind",
        "positions",
        *(f"{name} heads" for name in CLASSES),
        *(f"why {name} stays" for name in CLASSES),
    ]
    rows = []
    for piece in pieces:
        behind = "" if piece["behind"] is None else f", behind {piece['behind']}"
        rows.append(
            [
                f"{piece['piece']}{behind}",
                kind_words(piece),
                f"{piece['start']:,} to {piece['end']:,}",
                *(state_words(piece["classes"][name]) for name in CLASSES),
                *(why_words(piece["classes"][name], places.get((piece["piece"], name), [])) for name in CLASSES),
                *([piece.get("text", piece["tokens"])] if texts else []),
            ]
        )
    wide = {len(head) - 1: "words", len(head) - 2: "words", len(head): "text"}
    return _table("Pieces, by kind and length", (*head, *(["begins with"] if texts else [])), rows, wide)


def _next(cache: Mapping[str, Any]) -> str:
    parts = []
    for tier, classes in cache["next"].items():
        for name, entries in classes.items():
            rows = [
                (
                    f"{place}",
                    "not shown" if one["piece"] is None else f"{one['piece']}",
                    tenant_words(one["tenant"]),
                    f"{one['start']:,} to {one['end']:,}",
                    "-" if one["used"] is None else f"{one['used']:.2f}",
                    f"{one['age']:,}",
                    "-" if one["rank"] is None else f"{one['rank']:.2f}",
                )
                for place, one in enumerate(entries, 1)
            ]
            if rows:
                head = ("place", "in piece", "tenant", "positions", "uses of late", "tokens since", "rank")
                parts.append(_table(f"{name} heads, {TIERS[tier]}", head, rows))
    order = (
        "By rank: uses of late, times what it costs to compute again, for what it takes. One more is twice as much."
        if cache["half_life"] is not None
        else "In the order of the server's eviction policy."
    )
    return f'<p class="soft">{escape(order)}</p>' + ("".join(parts) if parts else lacking("Nothing can be evicted."))


def _table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]], css: Mapping[int, str] | None = None
) -> str:
    """A table with a caption and headers of rows and columns. css: classes of cells, by column."""
    columns = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td{_class(css, column)}>{text(cell)}</td>" for column, cell in enumerate(rest, 1))
        lines.append(f'<tr><th scope="row">{text(first)}</th>{cells}</tr>')
    return (
        f'<div class="figure" tabindex="0" role="region" aria-label="{text(caption)}"><table><caption>{text(caption)}</caption>'
        f"<thead><tr>{columns}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _class(css: Mapping[int, str] | None, column: int) -> str:
    return f' class="{css[column]}"' if css and column in css else ""
