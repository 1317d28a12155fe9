# SPDX-License-Identifier: Apache-2.0
"""Server arguments for readers that start no server. SGLang 0.5.23's are a record of what was given, without what that comes to."""

from __future__ import annotations

from typing import Any

from sglang.srt.server_args import prepare_server_args as _prepare

from redknot_sglang.seams.v0_5_23.arguments import resolved


def prepare_server_args(argv: list[str]) -> Any:
    """The arguments in force, of the words of a command line. Raises what SGLang raises for words that it does not take."""
    server_args = _prepare(argv)
    server_args.resolve_once()
    return resolved(server_args)
