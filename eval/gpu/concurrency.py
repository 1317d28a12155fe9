# SPDX-License-Identifier: Apache-2.0
"""Step `concurrency`: requests of one length that run at once in the same bytes of KV."""

from __future__ import annotations

import argparse
import time

from eval.bench_serve import flood, most_running
from eval.gpu.ask import noise
from eval.gpu.results import Cell
from redknot_sglang.measure.launch import Server

# Decode steps between two lines of the server's log, from which the figure is read; answers must be longer.
LOG_INTERVAL = 8
NEW_TOKENS = 64


def prompts_to_send(kv_bytes: float, bytes_per_request: float) -> int:
    """As many as fit by arithmetic and two more, which wait and so show that the pool was full."""
    return int(kv_bytes // bytes_per_request) + 2


def measure(server: Server, side: str, length: int, vocabulary: int, count: int, kv_bytes: int) -> Cell:
    """Most requests in one decode batch while others waited. count: prompts sent, all at once.

    Raises requests.HTTPError, RuntimeError if an answer was not whole, the log says nothing, or no request had to wait, so that
    the pool was not full.
    """
    before = len(server.log_text())
    prompts = [noise(vocabulary, length, "concurrency", number) for number in range(count)]
    begin = time.monotonic()
    if not flood(server, prompts, argparse.Namespace(new_tokens=NEW_TOKENS)):
        raise RuntimeError("an answer was not whole, or not finite")
    log = server.log_text()[before:]
    held = most_running(log)
    if not held:
        raise RuntimeError(
            f"the log {server.log.name} shows no decode batch; answers were too short, or it is not SGLang's"
        )
    if held >= count:
        raise RuntimeError(f"all {count} requests ran at once; the pool was never full")
    details = {
        "kv_bytes": kv_bytes,
        "sent": count,
        "seconds": time.monotonic() - begin,
        "retracted": "KV cache pool is full" in log,
    }
    return Cell("concurrency", side, f"{kv_bytes / 2**30:g} GiB", length, "requests", [held], details)
