# SPDX-License-Identifier: Apache-2.0
"""Task families with known answers for the embedded model; needs numpy only. See `examples.py`."""

from .conversation import Conversation, Turn, make_conversation
from .examples import TASKS, Example, Task, make_example, messages, render, score

__all__ = [
    "TASKS",
    "Conversation",
    "Example",
    "Task",
    "Turn",
    "make_conversation",
    "make_example",
    "messages",
    "render",
    "score",
]
