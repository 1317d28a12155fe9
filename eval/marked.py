# SPDX-License-Identifier: Apache-2.0
"""Generated parts of pages: what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->` is written by a command."""

from __future__ import annotations

from redknot_sglang.errors import CliError


def block(name: str, text: str) -> str:
    """`text` between the markers of the part `name`."""
    begin, end = _markers(name)
    return f"{begin}\n{text}\n{end}" if text else f"{begin}\n{end}"


def with_block(page: str, name: str, text: str) -> str:
    """The page with `text` as its part `name`. Raises CliError unless it has both markers once."""
    begin, end = _markers(name)
    if page.count(begin) != 1 or page.count(end) != 1:
        raise CliError(f"the file needs one line {begin} and one line {end} after it")
    head, _, rest = page.partition(begin)
    return head + block(name, text) + rest.partition(end)[2]


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
