# SPDX-License-Identifier: Apache-2.0
"""Pieces of the page: what comes from files is escaped here, in `text`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from redknot_sglang.heads.summary import printable


def section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def lacking(words: str) -> str:
    return f'<p class="soft">{escape(words)}</p>'


def figure(svg: str) -> str:
    return f'<div class="figure">{svg}</div>'


def key(shape: str, css: str, words: str) -> str:
    drawn = {
        "rect": f'<rect width="14" height="14" class="{css}"/>',
        "square": f'<rect x="2.5" y="2.5" width="9" height="9" class="{css}"/>',
        "disc": f'<circle cx="7" cy="7" r="4.5" class="{css}"/>',
        "line": f'<polyline points="0,7 14,7" class="{css}"/>',
    }[shape]
    return f'<span class="key"><svg width="14" height="14" aria-hidden="true">{drawn}</svg>{text(words)}</span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{text(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f'<div class="figure"><table>{line("th", head)}{"".join(line("td", row) for row in rows)}</table></div>'


def text(value: Any) -> str:
    return escape(printable(str(value)))
