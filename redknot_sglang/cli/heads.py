# SPDX-License-Identifier: Apache-2.0
"""`redknot heads`: make a head map by hand, look at one, import one from another format."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads.duo_attention import DEFAULT_THRESHOLD
from redknot_sglang.heads.files import write_bytes
from redknot_sglang.heads.global_heads import parse_global_heads
from redknot_sglang.heads.head_map import DEFAULT_SINK, DEFAULT_WINDOW, HeadMap, load_head_map
from redknot_sglang.heads.heat_map import draw, to_png, to_svg
from redknot_sglang.heads.model_info import read_model_shape
from redknot_sglang.heads.provenance import provenance
from redknot_sglang.heads.summary import DEFAULT_LENGTHS, one_line, printable, summary_text

Command = Callable[[argparse.Namespace], int]


def add_parser(subparsers: Any) -> None:
    """Register `heads` with its three commands on what `ArgumentParser.add_subparsers` returned.

    Each command sets `func`: it takes the namespace and returns the exit code, 2 after a user's error.
    """
    heads = subparsers.add_parser("heads", help="make, show and import head maps")
    commands = heads.add_subparsers(dest="heads_command", required=True, metavar="COMMAND")

    make = commands.add_parser("make", help="make a head map by hand")
    make.add_argument("--model", required=True, metavar="DIR", help="directory with the model's config.json")
    choice = make.add_mutually_exclusive_group(required=True)
    choice.add_argument("--all-global", action="store_true", help="every head global: what stock SGLang computes")
    choice.add_argument(
        "--global",
        dest="global_heads",
        metavar="L:H,...",
        help="the global heads, all others local: 0:1,3:*,5-7:0-2",
    )
    _add_local_options(make, "required with --global")
    make.add_argument("--out", required=True, metavar="F", help="the head map to write")
    make.set_defaults(func=_reporting(_make))

    show = commands.add_parser("show", help="print a head map as a table, draw it as a heat map")
    show.add_argument("file", metavar="F", help="head map in any format that can be imported")
    show.add_argument("--svg", metavar="OUT", help="write the heat map as SVG")
    show.add_argument("--png", metavar="OUT", help="write the heat map as PNG")
    show.add_argument("--length", type=int, metavar="N", help="say what a prefix of N tokens keeps, too")
    show.set_defaults(func=_reporting(_show))

    import_ = commands.add_parser("import", help="convert a RedKnot JSON or a DuoAttention TSV")
    import_.add_argument("file", metavar="SRC", help="file to convert; its format is told from its content")
    import_.add_argument("--out", required=True, metavar="F", help="the head map to write")
    import_.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help=f"DuoAttention: gates above it are global ({DEFAULT_THRESHOLD})",
    )
    import_.add_argument(
        "--global-share",
        type=float,
        metavar="R",
        help="DuoAttention, instead of a threshold: the heads with the largest gates, at most this share, are global",
    )
    _add_local_options(import_, "instead of what the source says")
    import_.add_argument("--model", metavar="DIR", help="check against this model's config.json, and record the model")
    import_.set_defaults(func=_reporting(_import))


def _add_local_options(parser: argparse.ArgumentParser, when: str) -> None:
    parser.add_argument("--window", type=int, metavar="W", help=f"tokens a local head sees, own row included; {when}")
    parser.add_argument("--sink", type=int, metavar="S", help=f"first positions a local head always sees; {when}")


def _reporting(command: Callable[[argparse.Namespace], None]) -> Command:
    """Turn a command that raises HeadMapError into one that prints it as one line on stderr and returns 2."""

    @wraps(command)
    def run(args: argparse.Namespace) -> int:
        try:
            command(args)
        except HeadMapError as error:
            print(f"redknot heads {args.heads_command}: error: {printable(str(error))}", file=sys.stderr)
            return 2
        return 0

    return run


def _make(args: argparse.Namespace) -> None:
    window, sink = args.window, args.sink
    missing = [name for name, value in (("--window", window), ("--sink", sink)) if value is None]
    if missing and not args.all_global:
        raise HeadMapError(f"--global needs {' and '.join(missing)}, for example --window 256 --sink 4")
    shape = read_model_shape(args.model)
    if args.all_global:
        window = DEFAULT_WINDOW if window is None else window
        sink = DEFAULT_SINK if sink is None else sink
        spec, record = "*:*", provenance("manual", choice="all global")
    else:
        spec, record = args.global_heads, provenance("manual", choice=args.global_heads)
    chosen = parse_global_heads(spec, shape.num_layers, shape.num_kv_heads)
    head_map = HeadMap.from_global_heads(shape.num_layers, shape.num_kv_heads, chosen, window, sink, shape.info, record)
    _save(head_map, args.out)


def _show(args: argparse.Namespace) -> None:
    head_map = load_head_map(args.file)
    lengths: Sequence[int] = DEFAULT_LENGTHS if args.length is None else (*DEFAULT_LENGTHS, args.length)
    print(summary_text(head_map, lengths), end="")
    if args.svg is not None:
        write_bytes(args.svg, to_svg(draw(head_map)).encode())
    if args.png is not None:
        write_bytes(args.png, to_png(draw(head_map)))


def _import(args: argparse.Namespace) -> None:
    head_map = load_head_map(
        args.file, threshold=args.threshold, window=args.window, sink=args.sink, share=args.global_share
    )
    if args.model is not None:
        shape = read_model_shape(args.model)
        head_map.check_model(shape.num_layers, shape.num_kv_heads, shape.info.model_type)
        head_map = replace(head_map, model=shape.info)
    _save(head_map, args.out)
    for note in _notes(head_map):
        print(f"note: {printable(note)}")


def _save(head_map: HeadMap, path: str) -> None:
    head_map.save(path)
    print(f"wrote {path}: {one_line(head_map)}")


def _notes(head_map: HeadMap) -> list[str]:
    """Sentences about what an import had to change or assume, made from the map's provenance."""
    notes = []
    for key, name, used in (
        ("kv_head_max_distance", "window", head_map.window),
        ("kv_head_sink_size", "sink", head_map.sink),
    ):
        asked = head_map.provenance.get(key)
        if not isinstance(asked, dict):
            continue
        if asked["smallest"] != asked["largest"] or used != asked["largest"]:
            notes.append(
                f"the source asks for a {name} of {asked['smallest']} to {asked['largest']}, the map has {used}"
            )
        if "heads_with_format_default" in asked:
            notes.append(
                f"{asked['heads_with_format_default']} local heads have no {name} in the source: "
                f"took the format's default, {asked['format_default']}"
            )
    return notes
