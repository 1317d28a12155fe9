# SPDX-License-Identifier: Apache-2.0
"""Servers that tests share: one start takes as long as dozens of requests."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

import requests

from tests.serving import harness
from tests.serving.conversations import check_no_leak
from tests.serving.harness import Server

# Each takes 2 to 3 GB, and every test worker has as many.
MOST = 3


class SharedServers:
    """Running servers by their flags, started when first asked for; use as a context, which ends them all.

    A test may use up to `most` at once: the one that was not asked for longest ends when another one has to start.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._running: dict[tuple[str, ...], tuple[Server, ExitStack]] = {}

    def __enter__(self) -> SharedServers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for args in list(self._running):
            self._end(args)

    def get(self, *args: str) -> Server:
        """The server with these flags (in this order), idle and with nothing in its cache.

        Raises AssertionError if it has ended since it was asked for last, or holds a slot that nothing needs; it is not
        given again then. Raises redknot_sglang.errors.ServerError if it does not start.
        """
        if args in self._running:
            self._running[args] = self._running.pop(args)
        else:
            while len(self._running) >= self._most:
                self._end(next(iter(self._running)))
            self._start(args)
        server = self._running[args][0]
        try:
            assert server.running.process.poll() is None, f"a shared server has ended; its log:\n{server.log_text()}"
            _empty(server, is_redknot="--redknot" in args)
        except BaseException:
            self._end(args)
            raise
        return server

    def _start(self, args: tuple[str, ...]) -> None:
        stack = ExitStack()
        self._running[args] = stack.enter_context(harness.launch(args)), stack

    def _end(self, args: tuple[str, ...]) -> None:
        self._running.pop(args)[1].close()


def _empty(server: Server, is_redknot: bool) -> None:
    if not is_redknot:
        server.flush()
        return
    requests.delete(server.url + "/redknot/segments", timeout=harness.REQUEST_TIMEOUT).raise_for_status()
    check_no_leak(server)
