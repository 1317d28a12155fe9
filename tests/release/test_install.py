# SPDX-License-Identifier: Apache-2.0
"""A machine that has nothing: pinned SGLang and the built wheel in an empty environment, `redknot doctor`, and a server that answers.

`make test-install` runs this; it needs uv and the package index.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from redknot_sglang import __version__
from redknot_sglang.measure.launch import CPU_ENVIRONMENT, CPU_FLAGS, reserved_port, stop
from redknot_sglang.versions import PINNED_SGLANG, SUPPORTED_SGLANG
from tests.release.built import ROOT, build, copy_tracked, unpacked

pytestmark = pytest.mark.install

# The first start of an environment compiles all that it imports.
START_TIMEOUT = 600
# Of this process's variables what a login shell has; nothing that leads into the checkout.
BARE = {name: os.environ[name] for name in ("HOME", "PATH", "LANG") if name in os.environ}


def said(command: Sequence[str | Path], folder: Path, env: Mapping[str, str] = BARE) -> str:
    """What a command prints, run in `folder` with the variables `env`. Raises AssertionError with all it printed if it fails."""
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fetched(url: str, body: dict[str, Any] | None = None) -> Any:
    """JSON of a GET, or with `body` of a POST."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@pytest.fixture(scope="module", params=SUPPORTED_SGLANG)
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder with the programs of an environment of a pinned SGLang and the wheel, and that SGLang's version."""
    version, folder = str(request.param), tmp_path_factory.mktemp("machine")
    sdist = build("sdist", copy_tracked(folder / "checkout"), folder / "dist")
    wheel = build("wheel", unpacked(sdist, folder / "unpacked"), folder / "dist")
    pins = ROOT / ("requirements.txt" if version == PINNED_SGLANG else f"requirements-{version}.txt")
    python = folder / "venv" / "bin" / "python"

    def uv(*words: str | Path) -> str:
        # With all variables: an index, a proxy and certificates may be named there.
        return said(["uv", *words], folder, os.environ)

    uv("venv", "--quiet", "--python", "3.11", python.parents[1])
    uv("pip", "install", "--quiet", "--python", python, "--no-deps", "--requirement", pins)
    overrides = ROOT / ".ci" / f"overrides-{version}"
    # With its dependencies: what the wheel asks for must be there, and nothing that is pinned may change.
    before = uv("pip", "freeze", "--python", python).splitlines()
    extra: list[str | Path] = ["--overrides", overrides] if overrides.exists() else []
    uv("pip", "install", "--quiet", "--python", python, *extra, wheel)
    after = uv("pip", "freeze", "--python", python).splitlines()
    assert [line for line in after if not line.startswith("redknot-sglang @")] == before
    shutil.rmtree(folder / "checkout")
    return python.parent, version


def test_doctor_says_that_a_server_would_start(installed: tuple[Path, str], tmp_path: Path) -> None:
    programs, version = installed
    report = said([programs / "redknot", "doctor"], tmp_path)
    assert f"redknot-sglang {__version__}" in report and f"sglang {version}" in report
    assert "plugin entry point: redknot_sglang.plugin:register\n" in report
    assert report.endswith("ready: a server starts with --redknot\n")


def test_a_server_answers(installed: tuple[Path, str], tmp_path: Path) -> None:
    programs, version = installed
    model = shutil.copytree(ROOT / "eval" / "model", tmp_path / "model")
    flags = [f"--model-path={model}", "--redknot", f"--redknot-head-map={model / 'head_map.json'}", *CPU_FLAGS]
    if version != PINNED_SGLANG:
        # The embedded model's certificate was measured with the pinned one.
        flags.append("--redknot-uncertified")
    log = tmp_path / "server.log"
    with reserved_port() as port, log.open("wb") as output:
        address = ["--host=127.0.0.1", f"--port={port}", "--max-total-tokens=24576", "--max-running-requests=4"]
        command: list[str | Path] = [programs / "python", "-m", "sglang.launch_server", *flags, *address]
        env = {**BARE, **CPU_ENVIRONMENT, "HF_HUB_OFFLINE": "1"}
        server = subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(server, url, log)
            message = {"role": "user", "content": "What is the code of Ada?"}
            answer = fetched(f"{url}/v1/chat/completions", {"model": "default", "messages": [message], "max_tokens": 4})
            assert answer["usage"]["completion_tokens"] > 0
            assert answer["choices"][0]["message"]["role"] == "assistant"
            assert fetched(f"{url}/redknot/status")["versions"] == {"redknot": __version__, "sglang": version}
        finally:
            stop(server)


def wait_for(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Return when the server is healthy. Raises AssertionError with the end of its log if it ends or takes too long."""
    end = time.monotonic() + START_TIMEOUT
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=30):
                return
        except OSError:
            text = log.read_text(errors="replace")[-3000:]
            assert server.poll() is None, text
            assert time.monotonic() < end, text
            time.sleep(1)
