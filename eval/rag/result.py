# SPDX-License-Identifier: Apache-2.0
"""The result file: where it comes from, the figures, and every request."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import requests

from eval.provenance import origin
from eval.rag.corpus import Corpus
from eval.rag.report import Phase, Summaries
from redknot_sglang.errors import CliError


def make_head(args: argparse.Namespace, corpus: Corpus, kv: Mapping[str, Any]) -> dict[str, Any]:
    """Command, options, hardware, versions, documents, and what both servers have for KV."""
    lengths = list(map(len, corpus.documents))
    data = args.data and {"file": args.data.name, "sha256": sha256(args.data.read_bytes()).hexdigest()}
    return {
        "command": shlex.join(["python", "-m", "eval.bench_rag", *sys.argv[1:]]),
        **origin(args),
        "servers": "started by this command" if args.stock is None else "were running",
        "kv": dict(kv),
        "corpus": {"documents": len(lengths), "tokens": sum(lengths), "longest": max(lengths), "data": data},
    }


def read_kv(stock: str, redknot: str) -> dict[str, Any]:
    """KV of two running servers, by address: bytes on one rank, and slots as they report them.

    Raises CliError if one of them does not answer, or is not what it should be.
    """
    tokens = _get(stock, "/server_info").get("max_total_num_tokens")
    status = _get(redknot, "/redknot/status")
    if tokens is None or "classes" not in status:
        raise CliError(f"{stock} or {redknot} does not say what it has for KV; are both SGLang 0.5.17?")
    classes = status["classes"]
    token_bytes = sum(found["bytes_per_slot"] for found in classes.values())
    return {
        "stock_tokens": tokens,
        "stock_bytes": tokens * token_bytes,
        "redknot_slots": {name: found["slots"] for name, found in classes.items()},
        "redknot_bytes": sum(found["slots"] * found["bytes_per_slot"] for found in classes.values()),
        "head_map": status["head_map"],
    }


def _get(url: str, path: str) -> dict[str, Any]:
    try:
        reply = requests.get(url.rstrip("/") + path, timeout=60)
        reply.raise_for_status()
        return dict(reply.json())
    except (requests.RequestException, ValueError) as error:
        raise CliError(f"{url}{path} does not answer; check --stock and --redknot: {error}") from error


def write_json(path: Path, head: Mapping[str, Any], summaries: Summaries, phases: Sequence[Phase]) -> None:
    """Write it all; each request has a line of its own, so that a reader and a diff see them side by side."""
    rows = [
        json.dumps({"traffic": phase.traffic, "side": phase.side, **record.as_json()})
        for phase in phases
        for record in phase.records
    ]
    body = ",\n".join(rows)
    top = json.dumps({**head, "summary": summaries}, indent=1)
    path.write_text(f'{top[:-2]},\n "requests": [\n{body}\n]}}\n')
