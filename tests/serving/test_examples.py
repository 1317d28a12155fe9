# SPDX-License-Identifier: Apache-2.0
"""The examples against a real server: right answers, next turns from the cache, documents shared between dialogues."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from redknot_sglang.config import DEFAULT_SEPARATOR
from tests.serving import harness
from tests.serving.conversations import check_no_leak

pytestmark = pytest.mark.serving

TURN = re.compile(r"(\d+) new documents\..*\n  answer (.*), expected (.*)\n  (\d+) prompt tokens, (\d+) from the cache")


@pytest.fixture(scope="module")
def server() -> Iterator[harness.Server]:
    args = ["--redknot", f"--redknot-head-map={harness.HEAD_MAP}", "--redknot-mode=segmented"]
    with harness.launch([*args, "--redknot-segment-length=300"]) as running:
        yield running
        check_no_leak(running)


def run(name: str, server: harness.Server, seed: int) -> list[tuple[int, bool, int, int]]:
    """New documents, whether the answer is right, prompt tokens and cached tokens of each turn."""
    command = [sys.executable, "-m", f"examples.{name}", "--url", server.url, "--seed", str(seed)]
    done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return [(int(n), a == b, int(p), int(c)) for n, a, b, p, c in TURN.findall(done.stdout)]


@pytest.mark.parametrize("name", ["rag_openai", "rag_frontend"])
def test_a_dialogue_over_documents(server: harness.Server, name: str, full: bool) -> None:
    server.flush()
    first = run(name, server, seed=1)
    assert len(first) == 3 and all(right for _, right, _, _ in first), first
    assert first[0][3] == 0, "nothing is there yet"
    assert any(new for new, *_ in first[1:]), "documents have to come in the middle, too"
    for (_, _, before, _), (_, _, _, cached) in zip(first[:-1], first[1:], strict=True):
        assert cached >= before - 1, "a next turn has its former prompt from the cache"
    if name == "rag_frontend" and not full:
        # A second time its process would import SGLang once more to send what the other example sends.
        return
    again = run(name, server, seed=1)
    assert [right for _, right, _, _ in again] == [True] * 3
    assert again[0][3] == again[0][2] - 1, "the same prompt is all there but its last row"


def test_documents_of_a_later_turn_are_segments_of_their_own(server: harness.Server) -> None:
    """The same document in turn 1 and turn 3, and what is between the turns is context."""
    server.flush()
    document, other = "report one " * 60, "report two " * 40
    mark = DEFAULT_SEPARATOR
    turns = [f"<|user|>{mark}{document}{mark}Question:\nfirst<|end|><|assistant|>"]
    turns.append(turns[0] + f"yes<|end|><|user|>{mark}{other}{mark}Question:\nsecond<|end|><|assistant|>")
    turns.append(turns[1] + f"no<|end|><|user|>{mark}{document}{mark}Question:\nthird<|end|><|assistant|>")
    reports = [server.generate(turn, 2)["meta_info"] for turn in turns]
    assert [meta["redknot"]["segments"] for meta in reports] == [1, 2, 3]
    fresh = reports[2]["redknot"]["computed_tokens"]
    assert reports[2]["prompt_tokens"] - reports[1]["prompt_tokens"] > 100 > fresh, "the document was there already"
    again = server.generate(turns[2], 2)
    server.flush()
    assert server.generate(turns[2], 2)["output_ids"] == again["output_ids"]
