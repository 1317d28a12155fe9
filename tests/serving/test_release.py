# SPDX-License-Identifier: Apache-2.0
"""`/release_memory_occupation` and `/resume_memory_occupation` empty the cache, and answers stay what they were.

That the memory itself goes and comes needs a GPU; `tests/pool/test_head_class_pool.py` shows which buffers it would be.
"""

from __future__ import annotations

import pytest

from tests.serving.answers import agree, ask
from tests.serving.harness import Server

pytestmark = pytest.mark.serving

PROMPT = list(range(400, 700))


@pytest.mark.parametrize("tags", [None, ["kv_cache"]])
def test_a_release_empties_the_cache_and_answers_stay(redknot_server: Server, tags: list[str] | None) -> None:
    before = redknot_server.get("/redknot/status")["certificate"]
    cold = ask(redknot_server, PROMPT, 4)
    for _ in range(3):
        # Right after an answer, whose step may not be over.
        redknot_server.post("/release_memory_occupation", {"tags": tags}).raise_for_status()
        used = [state["used"] for state in redknot_server.get("/redknot/status")["classes"].values()]
        redknot_server.post("/resume_memory_occupation", {"tags": tags}).raise_for_status()
        assert used == [0, 0]
        again = ask(redknot_server, PROMPT, 4)
        assert again.cached == 0
        agree(again, cold, 1e-4)
        warm = ask(redknot_server, PROMPT, 4)
        assert warm.cached == len(PROMPT) - 1
        agree(warm, cold, 1e-4)
    # Without --enable-memory-saver the weights stay.
    assert redknot_server.get("/redknot/status")["certificate"] == before
