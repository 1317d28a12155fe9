# SPDX-License-Identifier: Apache-2.0
"""Run the workload on both servers, one after the other, and write what came out."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from eval.demo.chart import draw
from eval.demo.conversations import run_conversations
from eval.demo.figures import Figures, collect, table
from eval.demo.fill import requests_that_fit
from eval.demo.frontend import run_frontend
from eval.demo.settings import SERVERS, Settings
from eval.servers import flush
from redknot_sglang.measure.client import Client, Request
from redknot_sglang.measure.launch import launch


def run_demo(settings: Settings, out: Path) -> str:
    """Run it all; writes `demo.json`, `demo.png` and the servers' logs in `out` and returns the table.

    Raises ServerError if a server does not start, RuntimeError or OSError if it fails to answer.
    """
    out.mkdir(parents=True, exist_ok=True)
    turns = (settings.conversations + settings.frontend_conversations) * settings.turns
    figures = {}
    with tqdm(total=len(SERVERS) * (turns + settings.fill_requests), unit="request", dynamic_ncols=True) as bar:
        for server in SERVERS:
            figures[server] = _run_server(server, settings, out, bar)
        bar.set_description("done")
    record = {
        "settings": {
            **asdict(settings),
            "kv_budget_bytes": settings.kv_budget,
            "kv_tokens_stock": settings.kv_tokens,
        },
        "versions": {name: version(name) for name in ("redknot-sglang", "sglang", "torch")},
        "servers": {server: found.as_json() for server, found in figures.items()},
    }
    (out / "demo.json").write_text(json.dumps(record, indent=2) + "\n")
    draw(figures, settings).save(out / "demo.png")
    return table(figures, settings)


def _run_server(server: str, settings: Settings, out: Path, bar: tqdm) -> Figures:
    log = out / ("redknot.log" if server == SERVERS[1] else "stock.log")
    begin = time.monotonic()

    def starting(seconds: float) -> None:
        bar.set_description(f"{server}: starting, {seconds:.0f} s", refresh=sys.stderr.isatty())

    starting(0)
    with launch(
        settings.server_flags(server),
        log,
        env=settings.server_environment(),
        timeout=settings.start_timeout,
        on_wait=starting,
    ) as running:
        return asyncio.run(_measure(server, running.url, settings, bar, begin))


async def _measure(server: str, url: str, settings: Settings, bar: tqdm, begin: float) -> Figures:
    async with Client(url) as client:
        bar.set_description(f"{server}: warming up")
        # The first request pays for compiling and for memory that the allocator then keeps.
        await client.ask(Request([{"role": "user", "content": "hello " * 200}], 4))
        flush(url)
        bar.set_description(f"{server}: conversations, OpenAI client")
        turns = await run_conversations(client, settings, lambda _: bar.update())
        bar.set_description(f"{server}: conversations, frontend program")
        programs = await asyncio.to_thread(run_frontend, url, settings, bar.update)
        flush(url)
        bar.set_description(f"{server}: filling the pool")
        fit = await requests_that_fit(client, settings, lambda _: bar.update())
    return collect(server, settings, turns, programs, fit, time.monotonic() - begin)
