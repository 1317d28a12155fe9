# SPDX-License-Identifier: Apache-2.0
"""Who wants to know what happens in the tree, which itself knows neither admission nor reports nor metrics."""

from __future__ import annotations

from typing import Any, Protocol


class Listener(Protocol):
    """Told by the tree, in the order in which listeners were added."""

    def request_ended(self, req: Any) -> None:
        """A request's KV has been handed to the tree and its own lock is gone: it finished, was aborted or retracted."""

    def slots_changed(self) -> None:
        """KV slots have changed hands between a request, the tree and the free ones."""
