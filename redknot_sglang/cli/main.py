# SPDX-License-Identifier: Apache-2.0
"""`redknot`: the parser of all subcommands. Imports neither torch nor SGLang."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from redknot_sglang import __version__
from redknot_sglang.cli import certify, demo, doctor, eval, heads, inspect, preload, profile, report, route
from redknot_sglang.errors import RedKnotError


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands. Each sets `func`, which takes the parsed arguments and returns the exit code."""
    parser = argparse.ArgumentParser(prog="redknot", description="Head-aware KV cache for stock SGLang.")
    parser.add_argument("--version", action="version", version=f"redknot-sglang {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (doctor, heads, profile, certify, report, preload, inspect, route, eval, demo):
        module.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    argv: words of the command line behind `redknot`, or None for this process's. Words behind `--` are flags of a server.
    Returns the exit code: 0 if all went well, 1 if something failed (a request, a check, a policy), 2 if the command could
    not be carried out.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    parser = build_parser()
    args = parser.parse_args(words[:cut])
    args.server_flags = words[cut + 1 :]
    if args.server_flags and not getattr(args, "takes_server_flags", False):
        parser.error(f"{args.command} starts no server to which flags behind -- could go: leave them out")
    try:
        return int(args.func(args))
    except RedKnotError as error:
        print(f"redknot {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
