# SPDX-License-Identifier: Apache-2.0
"""`redknot inspect` against a server of canned answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from redknot_sglang.cli.main import main
from tests.report.made_cache import make_cache
from tests.versions import needs_host_tier

pytestmark = needs_host_tier


class Canned(BaseHTTPRequestHandler):
    """Answers with the server's `answer`, a status and JSON, whoever has its `key`."""

    server: Any

    def do_GET(self) -> None:
        """Called for each request."""
        status, body = self.server.answer
        if self.server.key is not None and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            status, body = 401, {}
        self.send_response(status if self.path == "/redknot/inspect.json" else 500)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *args: Any) -> None:
        """Nothing is logged."""


@pytest.fixture
def server() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Canned) as canned:
        canned.answer, canned.key = (200, make_cache()), None  # type: ignore[attr-defined]
        canned.url = f"http://127.0.0.1:{canned.server_port}"  # type: ignore[attr-defined]
        threading.Thread(target=canned.serve_forever, daemon=True).start()
        yield canned
        canned.shutdown()


def test_it_says_what_is_cached_and_what_goes_next(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", server.url + "/v1"]) == 0
    said = capsys.readouterr().out
    for words in (
        "75%",
        "global heads, on the host",
        "document, all local KV, tokens 0 to 60",
        "60 cold, 60 stored; ",
        "ACME",
    ):
        assert (words in said) == (words != "ACME"), words
    assert "next to go, local heads on the device" in said and "number 1 to go, on the host" in said
    server.answer = 200, make_cache(texts=True, ranks=2)
    assert main(["inspect", server.url]) == 0
    said = capsys.readouterr().out
    assert (
        "tenant <ACME & Sons>" in said
        and "begins with '<b>tokens [0, 1, 2]</b>'" in said
        and "data-parallel rank 1" in said
    )
    server.answer = 200, make_cache(off=True)
    assert main(["inspect", server.url]) == 0
    assert "the prefix cache is off" in capsys.readouterr().out


def test_json_is_the_server_s(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server.key = "secret"
    assert main(["inspect", server.url, "--json", "--api-key", "secret"]) == 0
    assert json.loads(capsys.readouterr().out) == server.answer[1]


def test_what_is_wrong_is_said_in_one_line(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server.key = "secret"
    assert main(["inspect", server.url]) == 2
    assert "wants its admin key" in capsys.readouterr().err
    server.key, server.answer = None, (404, {})
    assert main(["inspect", server.url]) == 2
    assert "has no /redknot/inspect" in capsys.readouterr().err
    assert main(["inspect", "http://127.0.0.1:1"]) == 2
    assert "no server answers" in capsys.readouterr().err
