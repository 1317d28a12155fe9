# SPDX-License-Identifier: Apache-2.0
"""A prefill server and a decode server of two tensor-parallel ranks each, their heads dealt out, answer as one server
of one rank.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serving import apart, harness
from tests.serving.answers import agree
from tests.serving.apart import Request
from tests.serving.conversations import check_no_leak
from tests.serving.maps import lopsided_map, save_map
from tests.serving.prompts import mixed
from tests.serving.ranks import TWO_RANKS, needs_two
from tests.serving.segmented import make_requests

pytestmark = [pytest.mark.serving, needs_two, apart.needs_host_memory]

ANSWER, TOLERANCE = 12, 1e-4


def test_answers_are_those_of_one_server_of_one_rank(tmp_path: Path) -> None:
    """Exact and segmented, cold and from the prefill server's cache."""
    head_map = save_map(lopsided_map(()), tmp_path)
    flags = ["--redknot", f"--redknot-head-map={head_map}", "--redknot-segment-length=100", "--max-total-tokens=12000"]
    rng = random.Random("apart on two ranks")
    sent: list[Request] = [mixed(rng, length) for length in (3, 129, 300, 700)]
    sent += make_requests(rng, 6, most=4, longest=300, limit=900)
    with harness.launch(flags) as single, ThreadPoolExecutor(4) as pool:
        expected = list(pool.map(lambda request: apart.alone(single, request, ANSWER), sent))
    with apart.launch_pair(*flags, "--tp-size=2", env=TWO_RANKS) as pair:
        for at_once in (1, 4):
            for answer, reference in zip(pair.ask_all(sent, ANSWER, at_once), expected, strict=True):
                agree(answer, reference, TOLERANCE)
        for server in (pair.prefill, pair.decode):
            assert server.get("/redknot/status")["ranks"]["global_heads"] == [3, 3]
            check_no_leak(server)
