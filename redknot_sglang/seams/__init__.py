# SPDX-License-Identifier: Apache-2.0
"""Seams: every place where RedKnot touches a private part of SGLang, one file per SGLang area.

A seam is a hook on one SGLang function. It looks for the RedKnot configuration on the server arguments and, if there
is none, does nothing. SGLang only logs a hook that failed to apply, so `verify()` checks them all and stops the server.
Nothing outside this package imports SGLang's private names in order to change them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from redknot_sglang.errors import SeamError
from redknot_sglang.versions import check_version, sglang_version


@dataclass(frozen=True)
class Seam:
    """One hook: dotted path of the SGLang function, the hook, how it is applied, and why it is needed."""

    target: str
    hook: Callable[..., Any]
    kind: Literal["before", "after", "around"]
    why: str


def all_seams() -> tuple[Seam, ...]:
    """Every seam, in the order in which a start-up reaches them."""
    from redknot_sglang.seams import (
        arguments,
        http,
        kv_cache,
        model_config,
        prefill_graphs,
        preload,
        scheduler,
        segments,
        tokenizer,
        updates,
    )

    modules = (
        arguments,
        model_config,
        kv_cache,
        prefill_graphs,
        scheduler,
        segments,
        preload,
        updates,
        tokenizer,
        http,
    )
    return tuple(seam for module in modules for seam in module.SEAMS)


_installed = False


def install() -> None:
    """Register all seams with SGLang's hook registry; idempotent."""
    global _installed
    if _installed:
        return
    _installed = True
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for seam in all_seams():
        HookRegistry.register(seam.target, seam.hook, HookType(seam.kind))


def missing() -> list[Seam]:
    """Seams that SGLang's hook registry did not apply in this process."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    return [seam for seam in all_seams() if seam.target not in HookRegistry._patched]


def verify() -> None:
    """Raises SeamError naming the first seam that did not take hold, or an unsupported SGLang version."""
    check_version()
    for seam in missing():
        raise SeamError(
            f"seam {seam.target} did not take hold in SGLang {sglang_version()} ({seam.why}); "
            "see `redknot doctor` and the log above for the hook's own error"
        )
