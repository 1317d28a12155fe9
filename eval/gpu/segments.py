# SPDX-License-Identifier: Apache-2.0
"""Step `segments`: time to first token of cached documents in new orders, as in eval/bench_segment_hit.py."""

from __future__ import annotations

import argparse

from eval import bench_segment_hit
from eval.gpu.results import Cell
from eval.servers import STOCK, flush
from redknot_sglang.measure.launch import Server

LEAD = 32


def document_tokens(length: int, segments: int, tail: int) -> int:
    """Tokens of each of so many documents in a prompt of at most `length` tokens."""
    return (length - LEAD - tail) // segments


def measure(
    server: Server, side: str, policy: str, length: int, vocabulary: int, n: int, segments: int, tail: int
) -> Cell:
    """policy: a repair policy, `stock` for stock SGLang. Everything is flushed first; then all documents are seen once.

    Stock computes nearly all of every prompt, so that one warm-up, in which it sees the documents, is enough for it.
    Raises requests.HTTPError, OSError.
    """
    traffic = argparse.Namespace(
        seed=1,
        lead_tokens=LEAD,
        tail_tokens=tail,
        documents=segments,
        document_tokens=document_tokens(length, segments, tail),
        warm_up=0 if policy == STOCK else 2,
        requests=n,
        # Profiling would cost another request and change nothing that is reported here.
        shape=None,
        trace=None,
    )
    flush(server.url)
    found = bench_segment_hit.measure(server, policy, traffic, vocabulary)
    rows = found["rows"]
    details = {"tokens": found["tokens"], "cached_share": found["cached_share"], "redknot": rows[-1]["redknot"]}
    if policy != STOCK:
        # Fewer than the policy repairs where two orders begin alike.
        details["computed_tokens"] = [row["redknot"]["computed_tokens"] for row in rows]
        if "chosen_before_s" in found:
            details["chosen_before_s"] = found["chosen_before_s"]
    case = "" if policy == STOCK else policy
    return Cell("segments", side, case, length, "s", [row["seconds"] for row in rows], details)
