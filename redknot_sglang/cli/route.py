# SPDX-License-Identifier: Apache-2.0
"""`redknot route`: one address for many servers, which sends each request where its documents are."""

from __future__ import annotations

import argparse
import asyncio
import logging
from typing import Any
from urllib.parse import urlsplit

from redknot_sglang.errors import CliError

POLICIES = ("documents", "round-robin")


def add_parser(subparsers: Any) -> None:
    """Register `route` on what `ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "route",
        help="one address for many servers: requests go where their documents are cached",
        description="Passes requests and streamed answers on unchanged. A request goes to the server that has least to compute "
        "for it, as long as that is not far busier than the others. Several routers over the same servers need to know nothing "
        "of each other.",
    )
    parser.add_argument(
        "--server", action="append", required=True, metavar="URL", help="a server; give it once for each"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=30000, help="port to listen at (%(default)s)")
    parser.add_argument("--policy", choices=POLICIES, default=POLICIES[0], help="how a server is chosen (%(default)s)")
    parser.add_argument("--check-every", type=float, default=5, metavar="S", help="seconds between looks (%(default)s)")
    parser.add_argument(
        "--check-timeout",
        type=float,
        default=30,
        metavar="S",
        help="seconds to answer one; after two it is down (%(default)s)",
    )
    parser.add_argument("--api-key", metavar="KEY", help="key for looks at the servers, where they want one")
    parser.add_argument("--max-body", type=int, default=512, metavar="MIB", help="largest request body (%(default)s)")
    parser.set_defaults(func=run)


def server_url(text: str) -> str:
    """A server's address as the router names it. Raises CliError for what is none."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise CliError(f"--server {text} is no address: give one such as http://10.0.0.1:30000")
    return text.rstrip("/").removesuffix("/v1")


def run(args: argparse.Namespace) -> int:
    """Run the router until it is interrupted. Raises CliError."""
    urls = tuple(server_url(text) for text in args.server)
    twice = next((url for url in urls if urls.count(url) > 1), None)
    if twice is not None:
        raise CliError(f"--server {twice} is given twice: name each server once")
    for name in ("check_every", "check_timeout", "max_body"):
        if getattr(args, name) <= 0:
            raise CliError(f"--{name.replace('_', '-')} must be more than 0, got {getattr(args, name)}")
    from redknot_sglang.route.app import Options, serve
    from redknot_sglang.route.fleet import Checks

    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s")
    checks = Checks(args.check_every, args.check_timeout, api_key=args.api_key)
    try:
        asyncio.run(serve(Options(urls, args.policy, checks, args.max_body << 20), args.host, args.port))
    except OSError as error:
        raise CliError(f"cannot listen at {args.host}:{args.port}: {error.strerror}; give another --port") from error
    return 0
