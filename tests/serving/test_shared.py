# SPDX-License-Identifier: Apache-2.0
"""Which servers are kept for the next test, and that none is given with something in its cache; no server is started."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from tests.serving import shared
from tests.serving.shared import SharedServers


class Fake:
    """Stands for a server: its flags, and what was done with it."""

    def __init__(self, args: Sequence[str]) -> None:
        self.args, self.emptied, self.ended, self.leaks = args, 0, False, False
        self.code: int | None = None
        self.running = SimpleNamespace(process=SimpleNamespace(poll=lambda: self.code))

    def log_text(self) -> str:
        return "killed"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """All servers that were started, in order."""
    found: list[Fake] = []

    def empty(server: Fake, is_redknot: bool) -> None:
        assert not server.leaks, "a slot is held"
        assert is_redknot == ("--redknot" in server.args)
        server.emptied += 1

    @contextmanager
    def launch(args: Sequence[str]) -> Iterator[Fake]:
        server = Fake(args)
        found.append(server)
        try:
            yield server
        finally:
            server.ended = True

    monkeypatch.setattr(shared.harness, "launch", launch)
    monkeypatch.setattr(shared, "_empty", empty)
    return found


def test_the_same_flags_are_one_server_emptied_each_time(started: list[Fake]) -> None:
    with SharedServers() as servers:
        assert servers.get("--redknot") is servers.get("--redknot")
        assert servers.get() is not servers.get("--redknot")
    assert [(server.emptied, server.ended) for server in started] == [(3, True), (1, True)]


def test_the_one_not_asked_for_longest_ends(started: list[Fake]) -> None:
    with SharedServers(most=2) as servers:
        for flag in ("--a", "--b", "--a", "--c"):
            servers.get(flag)
        assert [(server.args, server.ended) for server in started] == [
            (("--a",), False),
            (("--b",), True),
            (("--c",), False),
        ]


@pytest.mark.parametrize("what", ["dead", "leaking"])
def test_a_broken_server_is_told_once_and_not_given_again(started: list[Fake], what: str) -> None:
    with SharedServers() as servers:
        servers.get("--a")
        started[0].code, started[0].leaks = (-9, False) if what == "dead" else (None, True)
        with pytest.raises(AssertionError, match="killed" if what == "dead" else "a slot is held"):
            servers.get("--a")
        assert started[0].ended
        servers.get("--a")
    assert len(started) == 2
