# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus reads the metrics of a real server and answers every question of the Grafana dashboard.

`make test-prometheus` runs this. It takes the program on the path, or Debian's package of it, which it unpacks without installing it.
"""

from __future__ import annotations

import math
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from redknot_sglang.measure.launch import reserved_port, stop
from tests.release.test_deploy import DASHBOARD
from tests.serving import harness
from tests.serving.harness import Server
from tests.serving.prompts import noise

pytestmark = pytest.mark.prometheus

# Seconds over which the dashboard's rates are taken, several times Prometheus's own interval.
INTERVAL = 20
# What this server has nothing of: it refuses no stored object, and sends no KV to a decode server.
WITHOUT = {"Refused objects", "Tokens sent", "Bytes sent"}
PANELS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: sglang
    static_configs: [{{targets: ['{target}']}}]
"""


def program(folder: Path) -> Path:
    """Prometheus. Fails, with the sentence that says what to do, where it cannot be had."""
    found = shutil.which("prometheus")
    if found:
        return Path(found)
    for command in (["apt-get", "-qq", "download", "prometheus"], ["sh", "-c", "dpkg -x prometheus_*.deb unpacked"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"there is no Prometheus: put it on the path ({done.stderr.strip()[-300:]})", pytrace=False)
    return folder / "unpacked" / "usr" / "bin" / "prometheus"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that uses all tiers: few slots on the device, host memory, and files."""
    env = {"SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": str(tmp_path_factory.mktemp("store"))}
    flags = [
        *("--redknot", f"--redknot-head-map={harness.HEAD_MAP}", "--redknot-segment-length=100"),
        *("--max-total-tokens=4000", "--enable-hierarchical-cache", "--hicache-ratio=3"),
        *("--hicache-storage-backend=file", "--enable-metrics"),
    ]
    with harness.launch(flags, env) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Prometheus that reads the server every second."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(target=server.url.removeprefix("http://")))
    binary = program(folder)
    with reserved_port() as port, (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            stop(process)


def named(prometheus: str, expression: str) -> str:
    """An expression with the names that this Prometheus has for metrics.

    From version 3 on it asks for names as they are. Before, it asks in a way for which SGLang's library writes `_` in place of `:`
    (docs/deploy.md says what to do then).
    """
    answer = requests.get(prometheus + "/api/v1/status/buildinfo", timeout=30).json()
    old = int(answer["data"]["version"].partition(".")[0]) < 3
    return re.sub(r"\b(redknot|sglang):", r"\1_", expression) if old else expression


def ask(prometheus: str, expression: str) -> list[dict[str, Any]]:
    """Series of an expression of the dashboard. Raises AssertionError with Prometheus's words if it cannot be read."""
    expression = named(prometheus, expression)
    for variable, value in (("$instance", ".*"), ("$__rate_interval", f"{INTERVAL}s")):
        expression = expression.replace(variable, value)
    answer = requests.get(prometheus + "/api/v1/query", params={"query": expression}, timeout=30)
    found = answer.json()
    assert found["status"] == "success", f"{expression}: {found}"
    series: list[dict[str, Any]] = found["data"]["result"]
    return series


def traffic(server: Server, seconds: float) -> None:
    """More prompts and documents than the device holds, each of which comes again."""
    rng = random.Random("prometheus")
    prompts = [noise(rng, 900) for _ in range(8)]
    documents = [noise(rng, 100) for _ in range(4)]
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        for prompt in prompts:
            # Times between tokens are counted of streams only.
            sampling = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
            body = {"input_ids": [*prompt, *noise(rng, 20)], "sampling_params": sampling, "stream": True}
            server.post("/generate", body).raise_for_status()
            rng.shuffle(documents)
            ids, offsets = noise(rng, 10), list[int]()
            for document in documents:
                offsets += [len(ids), len(ids) + len(document)]
                ids = [*ids, *document]
            params = {"redknot_segments": offsets, "redknot_repair": "boundary:16"}
            server.generate([*ids, *noise(rng, 20)], 8, sampling_params={"custom_params": params})


def test_every_question_of_the_dashboard_is_answered(server: Server, prometheus: str) -> None:
    end = time.monotonic() + 60
    while not any(float(one["value"][1]) for one in _up(prometheus)):
        assert time.monotonic() < end, "Prometheus does not reach the server"
        time.sleep(0.5)
    traffic(server, 1.5 * INTERVAL)
    empty = []
    for title, expression in PANELS:
        series = ask(prometheus, expression)
        if title in WITHOUT:
            continue
        if not any(math.isfinite(float(one["value"][1])) for one in series):
            empty.append(f"{title}: {expression} -> {series}")
    assert not empty, "\n".join(empty)


def _up(prometheus: str) -> list[dict[str, Any]]:
    try:
        return ask(prometheus, "up")
    except requests.ConnectionError:
        return []


def test_the_dashboard_s_choice_of_servers_finds_this_one(server: Server, prometheus: str) -> None:
    (variable,) = [one for one in DASHBOARD["templating"]["list"] if one["name"] == "instance"]
    metric, label = re.fullmatch(r"label_values\(([\w:]+), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
    url = f"{prometheus}/api/v1/label/{label}/values"
    values = requests.get(url, params={"match[]": named(prometheus, metric)}, timeout=30).json()["data"]
    assert values == [server.url.removeprefix("http://")]
