# SPDX-License-Identifier: Apache-2.0
"""The page of `/redknot/inspect`: what it says, what it hides, how it reads without eyes or mouse, and how a browser shows it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from redknot_sglang.radix.inventory import tenant_label
from redknot_sglang.report.cache_page import render_cache
from tests.report.made_cache import SECRET, make_cache
from tests.report.test_page import browse
from tests.versions import needs_host_tier

pytestmark = needs_host_tier

SECTIONS = ("Room", "Traffic", "Tenants", "What goes next")


class Outline(HTMLParser):
    """Collects what a screen reader would announce: headings, captions, and the headers of tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        self.tags.append((tag, dict(attrs)))

    def count(self, tag: str, **wanted: str) -> int:
        """Tags with these attributes."""
        return sum(name == tag and wanted.items() <= attrs.items() for name, attrs in self.tags)


def test_the_page_says_what_is_cached() -> None:
    page = render_cache(make_cache())
    assert all(f"<h2>{words}</h2>" in page for words in SECTIONS)
    label, other = tenant_label(SECRET, False), tenant_label("two", False)
    assert f"tenant {label}: 4 pieces, 0 documents" in page
    assert f"tenant {other}: 1 piece, 1 document; tokens: global 0 hot and 60 on the host" in page
    assert "no tenant named: 1 piece," in page
    assert "document, all local KV" in page and "60 cold, 60 stored" in page and "100 hot, 100 copied" in page
    assert re.search(r"[123]\.\d\d uses of late, rank -?\d", page) and "last use 0 tokens ago" in page
    assert "number 1 to go, on the device" in page and "number 1 to go, on the host" in page
    # Of the figures of the status.
    for words in ("12,345", "5.00 MB", "4,321", "1,234", "5, 0.250 seconds", "13.82 MB", "27.65 MB"):
        assert words in page, words


def test_names_and_texts_are_hidden_unless_allowed() -> None:
    hidden, shown = render_cache(make_cache()), render_cache(make_cache(texts=True))
    assert "ACME" not in hidden and "begins with" not in hidden and "as hashes of their names" in hidden
    assert "tenant &lt;ACME &amp; Sons&gt;" in shown and "&lt;b&gt;tokens [100, 101, 102]" not in shown
    assert "&lt;b&gt;tokens [0, 1, 2]&lt;/b&gt;" in shown and "begins with" in shown
    assert "<b>" not in shown and SECRET not in shown


def test_a_server_without_a_host_tier_or_a_cache_has_a_page() -> None:
    page = render_cache(make_cache(host=False))
    assert "No host tier" in page and "global, host" not in page
    page = render_cache(make_cache(off=True))
    assert "prefix cache is off" in page and "Traffic" not in page


def test_each_rank_has_its_sections() -> None:
    page = render_cache(make_cache(ranks=2))
    for rank in range(2):
        assert f"<h2>Tenants of data-parallel rank {rank}</h2>" in page


def test_it_can_be_read_without_eyes_and_mouse() -> None:
    page = render_cache(make_cache(texts=True))
    outline = Outline(page)
    tables = outline.count("table")
    assert tables == outline.count("caption") == outline.count("thead") > 8
    # Whoever cannot scroll by mouse reaches each table and scrolls it by the arrow keys.
    assert outline.count("div", tabindex="0", role="region") == tables
    assert outline.count("th", scope="col") >= 2 * tables and outline.count("th", scope="row") > tables
    assert (
        outline.count("main", id="cache") == outline.count("a", href="#cache") == outline.count("html", lang="en") == 1
    )
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and set(levels[1:]) == {2}
    assert outline.count("svg", role="img") == page.count("<title>Share of slots") == 1


def test_the_page_needs_nothing_from_outside_and_runs_nothing() -> None:
    page = render_cache(make_cache(texts=True))
    assert not re.search(r"<(script|link|img|iframe|object|form)\b|\bon\w+=|javascript:", page)
    assert set(re.findall(r"https?://[^\"' <]*", page)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in page and "@import" not in page


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_browser_shows_it(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "cache.html"
    path.write_text(render_cache(make_cache(texts=True)))
    found: dict[str, Any] = browse(path, tmp_path / "shot.png", mode)
    assert found["requests"] == [path.as_uri()], "nothing else is fetched"
    assert all(
        words in found["text"] for words in (*SECTIONS, "tenant <ACME & Sons>", "<b>tokens [0, 1, 2]</b>", "60 cold")
    )
    assert found["width"] <= 1100, "nothing makes the page wider than the window"
    (room,) = found["figures"]
    assert room["shapes"] == 8 and len(room["words"]) == 8
    assert {"75%", "20%", "10%"} <= {word["text"] for word in room["words"]}
    red, green, blue = map(int, re.findall(r"\d+", found["background"])[:3])
    assert (min(red, green, blue) > 200) == (mode == "light")
