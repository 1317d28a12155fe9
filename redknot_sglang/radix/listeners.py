# SPDX-License-Identifier: Apache-2.0
"""The interfaces by which the tree tells others what happens in it.

The tree itself knows neither admission nor reports nor metrics. Whoever builds it hands it those that want to be told.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Protocol


class Listener(Protocol):
    """Told by the tree, in the order in which listeners were added."""

    def request_ended(self, req: Any) -> None:
        """A request's KV has been handed to the tree and its own lock is gone: it finished, was aborted or retracted."""

    def slots_changed(self) -> None:
        """KV slots have changed hands between a request, the tree and the free ones."""


class Move(Enum):
    """What has happened to KV in the tree."""

    BACKED_UP = "backed_up"  # copied to the host, and still on the device
    LOADED_BACK = "loaded_back"  # copied to the device, and still on the host
    DEMOTED = "demoted"  # freed on the device for want of room there; the host has it
    DROPPED = "dropped"  # freed on the device for want of room there, and nowhere else
    HOST_DROPPED = "host_dropped"  # freed on the host for want of room there
    COOLED = "cooled"  # freed on the device since its lifetime was over, before room was short; the host has it
    DELETED = "deleted"  # freed wherever it was since a client asked for it


class TierListener(Protocol):
    """Told by the tree where KV goes."""

    def kv_moved(self, move: Move, global_tokens: int, local_tokens: int) -> None:
        """So many tokens' KV of each head class was moved; copies may still be under way."""

    def loads_done(self, seconds: float) -> None:
        """Loads that were begun together are done, after this time."""
