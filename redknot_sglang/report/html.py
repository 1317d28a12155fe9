# SPDX-License-Identifier: Apache-2.0
"""Pieces of the page as HTML. What comes from files is escaped by `text`; all else is our own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from redknot_sglang.heads.summary import printable


def section(title: str, body: str) -> str:
    """A section of the page; heading and content are HTML already."""
    return f"<section><h2>{title}</h2>{body}</section>"


def lacking(words: str) -> str:
    """The words of a section that has nothing to show, plain text."""
    return f'<p class="soft">{escape(words)}</p>'


def figure(svg: str) -> str:
    """A picture that can be scrolled sideways if it is wider than the page."""
    return f'<div class="figure">{svg}</div>'


def key(shape: str, css: str, words: str) -> str:
    """An entry of a picture's legend.

    shape: `rect`, `square`, `disc` or `line`.
    css: class of the style sheet that colours it.
    words: what it stands for, plain text.
    """
    drawn = {
        "rect": f'<rect width="14" height="14" class="{css}"/>',
        "square": f'<rect x="2.5" y="2.5" width="9" height="9" class="{css}"/>',
        "disc": f'<circle cx="7" cy="7" r="4.5" class="{css}"/>',
        "line": f'<polyline points="0,7 14,7" class="{css}"/>',
    }[shape]
    return f'<span class="key"><svg width="14" height="14" aria-hidden="true">{drawn}</svg>{text(words)}</span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text.

    head: headings of the columns.
    rows: cells of each row.
    """

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{text(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f'<div class="figure"><table>{line("th", head)}{"".join(line("td", row) for row in rows)}</table></div>'


def text(value: Any) -> str:
    """A value as plain text that is safe inside HTML."""
    return escape(printable(str(value)))
