# SPDX-License-Identifier: Apache-2.0
"""What the two kinds of client bring back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redknot_sglang.measure.client import Answer


@dataclass(frozen=True)
class TurnResult:
    """One answered turn."""

    task: str
    right: bool
    answer: Answer


@dataclass(frozen=True)
class FrontendResult:
    """One conversation: right answers, turns, and the meta_info of the last answer."""

    right: int
    turns: int
    meta_info: dict[str, Any]
