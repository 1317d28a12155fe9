# SPDX-License-Identifier: Apache-2.0
"""`redknot eval` against real servers, stock included."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.serving.harness import Server, run_redknot

pytestmark = pytest.mark.serving


@pytest.mark.parametrize("fixture", ["stock_server", "redknot_server"])
@pytest.mark.parametrize("mode", ["completions", "chat"])
def test_the_embedded_model_answers_and_a_second_run_finds_its_prompts_cached(
    fixture: str, mode: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    server: Server = request.getfixturevalue(fixture)
    server.flush()

    def measure() -> dict[str, Any]:
        out = tmp_path / "eval.json"
        done = run_redknot(
            "eval",
            f"--url={server.url}",
            "--tasks=lookup,crossdoc",
            "--length=512",
            "--n=10",
            f"--mode={mode}",
            f"--json={out}",
        )
        assert done.returncode == 0, done.stderr
        assert "lookup" in done.stdout and "crossdoc" in done.stdout
        return dict(json.loads(out.read_text())["tasks"])

    cold, warm = measure(), measure()
    for task in ("lookup", "crossdoc"):
        # The card says 100 % of 400; nine of ten leaves room for nothing but a broken prompt or server.
        assert cold[task]["correct"] >= 9
        assert cold[task]["correct"] == warm[task]["correct"]
        assert cold[task]["prompt_tokens_mean"] == 512
        assert warm[task]["cached_token_share"] > 0.9
    assert (cold["lookup"]["cached_token_share"] or 0) < 0.2


def test_a_prompt_beyond_the_context_is_counted_and_the_server_goes_on(stock_server: Server) -> None:
    done = run_redknot("eval", f"--url={stock_server.url}", "--tasks=lookup", "--length=9000", "--n=2")
    assert done.returncode == 1
    assert "first error" in done.stderr and "400" in done.stderr
    assert stock_server.generate([5, 6, 7], 2)["meta_info"]["completion_tokens"] == 2
