# SPDX-License-Identifier: Apache-2.0
"""`redknot demo`: stock SGLang beside SGLang --redknot on the embedded model, in one table."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from redknot_sglang.cpu import has_cuda_driver, install_kernel_stand_in
from redknot_sglang.errors import CliError
from redknot_sglang.measure.checkout import load_demo

DEVICES = ("auto", "cpu", "cuda")


def add_parser(subparsers: Any) -> None:
    """Register `demo` on what `ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "demo",
        help="stock SGLang beside SGLang --redknot on the embedded model",
        description="Runs the same retrieval conversations on both servers with equal bytes for KV, through "
        "the OpenAI client and a frontend program; prints one table, writes it as JSON and PNG.",
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to serve (GPU if there is one)")
    parser.add_argument("--conversations", type=int, metavar="N", help="conversations through the OpenAI client")
    parser.add_argument("--turns", type=int, metavar="N", help="turns of each")
    parser.add_argument("--length", type=int, metavar="N", help="document tokens of each")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), metavar="DIR", help="results (%(default)s)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo and print its table. Returns 1 if a server fails. Raises CliError for sizes below 1."""
    device = args.device
    if device == "auto":
        device = "cuda" if has_cuda_driver() else "cpu"
    sizes = {name: getattr(args, name) for name in ("conversations", "turns", "length")}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    for name, size in sizes.items():
        if size < 1:
            raise CliError(f"--{name} must be at least 1, got {size}")
    # The demo's frontend language imports SGLang here as well, before any server is up.
    install_kernel_stand_in()
    demo = load_demo()
    # An unhandled SIGTERM would end this process at once and leave the servers running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    settings = demo.Settings(device=device, **sizes)
    print(
        f"{settings.conversations} conversations of {settings.turns} turns over {settings.length} document "
        f"tokens; {settings.kv_budget / 2**20:.0f} MiB of KV for each server ({device}), "
        "half of what stock needs to keep them all",
        file=sys.stderr,
    )
    try:
        table = demo.run_demo(settings, args.out)
    except (RuntimeError, OSError) as error:
        print(f"redknot demo: {error}", file=sys.stderr)
        return 1
    print(table)
    print(f"\nwritten: {args.out / 'demo.json'}, {args.out / 'demo.png'}, server logs beside them")
    return 0
