# SPDX-License-Identifier: Apache-2.0
"""Where the time of a request went."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from eval.real.stages import STAGES, forwards, since, stage_table, stages

# Times of day, as SGLang gives them, one request through.
TIMES = {
    "request_received_ts": 100.5,
    "api_server_dispatch_finish_ts": 100.75,
    "forward_entry_time": 102.75,
    "prefill_finished_time": 103.25,
    "request_finished_ts": 103.75,
}


def test_stages_add_up_to_what_the_client_measured() -> None:
    spent = stages({"e2e_latency": 3.25, **TIMES}, seconds=4.0)
    assert spent == {"http": 0.75, "dispatch": 0.25, "waiting": 2.0, "forward": 0.5, "answer": 0.5}
    assert tuple(spent) == STAGES and sum(spent.values()) == 4.0


def test_without_metrics_only_what_http_took_is_known() -> None:
    assert stages({"e2e_latency": 3.25}, seconds=4.0) == {"http": 0.75, "server": 3.25}


def test_forwards_since(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reply:
        def raise_for_status(self) -> None:
            pass

        def json(self) -> Any:
            return {"prefill_forwards": {"whole_graph": 5, "broken_graph": {"runs": 2}, "eager": {"size": 1}}}

    replies = {"http://server/redknot/status": Reply()}
    monkeypatch.setattr(requests, "get", lambda url, timeout: replies[url])
    found = forwards("http://server")
    assert found == {"whole_graph": 5, "broken_graph: runs": 2, "eager: size": 1}
    assert since({"whole_graph": 1, "eager: size": 1}, found) == {"whole_graph": 4, "broken_graph: runs": 2}


def test_the_table_has_medians_and_forwards() -> None:
    def row(scale: float) -> dict[str, Any]:
        return {"stages": {name: scale * at for at, name in enumerate(STAGES, 1)}}

    ours = {"documents": 16, "side": "question:2", "rows": [row(0.001), row(0.002), row(0.009)]}
    lines = stage_table(
        [
            {"documents": 16, "side": "stock", "rows": [{"stages": {"http": 0.25, "server": 1.0}}], "forwards": None},
            {**ours, "forwards": {"whole_graph": 6, "eager: size": 1}},
        ]
    ).splitlines()
    assert lines[0].split()[:4] == ["documents", "side", "http", "ms"] and "server ms" in lines[0]
    assert lines[-2].split() == ["16", "stock", "250.0", "1000.0"]
    assert lines[-1].split() == "16 question:2 2.0 4.0 6.0 8.0 10.0 6 whole_graph, 1 eager: size".split()
