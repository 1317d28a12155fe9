# SPDX-License-Identifier: Apache-2.0
"""`redknot preload`: a running server computes the documents of a corpus before anybody asks about them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from redknot_sglang.errors import CliError
from redknot_sglang.measure.segments_client import SegmentsClient


def add_parser(subparsers: Any) -> None:
    """Register `preload` on what `ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "preload",
        help="compute the documents of a JSONL corpus ahead of time",
        description="Sends every line's document to a running server's /redknot/segments. What is in its prefix cache "
        "already is not computed again, so the command may be repeated or go on where it was interrupted.",
    )
    parser.add_argument("corpus", type=Path, metavar="CORPUS.jsonl", help="one JSON object a line")
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="address of the server (%(default)s)")
    parser.add_argument("--field", default="text", metavar="NAME", help="field of the document (%(default)s)")
    parser.add_argument("--lead", metavar="TEXT", help="text before the first segment (--redknot-segment-lead lead)")
    parser.add_argument("--extra-key", metavar="K", help="namespace of the requests that the documents are for")
    parser.add_argument("--repair", metavar="P", help="repair policy to compute them for; default: the server's")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="documents a call (%(default)s)")
    parser.add_argument("--api-key", metavar="KEY", help="key, where the server wants one")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="limit of a call (%(default)s s)")
    parser.set_defaults(func=run)


@dataclass
class Batch:
    """Documents of consecutive lines, sent in one call.

    first: number of the first line.
    last: number of the last line.
    size: bytes of these lines.
    documents: texts or lists of token ids.
    """

    first: int = 0
    last: int = 0
    size: int = 0
    documents: list[Any] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    """Send the corpus and print how much of it was new. Raises CliError."""
    if args.batch < 1:
        raise CliError(f"--batch must be at least 1, got {args.batch}")
    client = SegmentsClient(args.url, args.api_key, args.timeout)
    given = {"lead": args.lead, "extra_key": args.extra_key, "repair": args.repair}
    fields = {name: value for name, value in given.items() if value is not None}
    try:
        with args.corpus.open("rb") as corpus:
            entries = _send(args, corpus, client, fields)
    except OSError as error:
        raise CliError(f"{args.corpus} cannot be read: {error.strerror}") from error
    new = [entry for entry in entries if entry["new"]]
    print(f"{len(entries)} segments, {_tokens(entries)} tokens: {len(new)} new, {_tokens(new)} tokens")
    listed = client.listed()
    if listed is None:
        print("how much of it is still cached is not known: GET /redknot/segments needs the server's admin key")
    else:
        resident = sum(entry["resident_tokens"] for entry in listed)
        print(f"the server lists {len(listed)} segments; {resident} of their {_tokens(listed)} tokens are cached now")
    return 0


def _send(args: argparse.Namespace, corpus: BinaryIO, client: SegmentsClient, fields: dict[str, Any]) -> list[Any]:
    from tqdm import tqdm

    entries: list[Any] = []
    size = args.corpus.stat().st_size
    with tqdm(total=size, unit="B", unit_scale=True, desc="preload", leave=False, disable=None) as bar:
        for batch in _batches(corpus, args):
            try:
                entries += client.preload(batch.documents, fields)
            except CliError as error:
                raise CliError(f"lines {batch.first} to {batch.last}: {error}") from error
            bar.update(batch.size)
            bar.set_postfix(segments=len(entries), new=sum(entry["new"] for entry in entries))
    return entries


def _batches(corpus: BinaryIO, args: argparse.Namespace) -> Iterator[Batch]:
    batch = Batch()
    for number, line in enumerate(corpus, 1):
        batch.size += len(line)
        if not line.strip():
            continue
        batch.documents.append(_document(line, f"{args.corpus} line {number}", args.field))
        batch.first, batch.last = batch.first or number, number
        if len(batch.documents) == args.batch:
            yield batch
            batch = Batch()
    if batch.documents:
        yield batch


def _document(line: bytes, where: str, name: str) -> Any:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise CliError(f"{where} is not JSON: {error}; write one JSON object a line") from error
    if not isinstance(record, dict):
        raise CliError(f'{where} is not a JSON object such as {{"{name}": "..."}}')
    if name not in record:
        raise CliError(
            f"{where} has no field {name!r}, only {', '.join(record) or 'an empty object'}; name it with --field"
        )
    return record[name]


def _tokens(entries: list[Any]) -> int:
    return sum(entry["tokens"] for entry in entries)
