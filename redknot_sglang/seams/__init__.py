# SPDX-License-Identifier: Apache-2.0
"""The border to SGLang: the only room that knows where something lies in `sglang.srt`.

- `sglang.py`: SGLang's classes and functions, for all rooms that need one;
- `Seam`: a hook on one SGLang function. What the hooks do is in `hooks/`, for they call rooms on all floors;
- a folder for each version of SGLang that we know, which says where what we use lies and what it takes. The oldest one's
  holds all of that, every other one's what is different from the version before.

A seam looks for the RedKnot configuration on the server arguments and, if there is none, does nothing. SGLang only logs
a hook that failed to apply, so `verify()` checks them all, and everything else that we use, and stops the server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from redknot_sglang.errors import SeamError
from redknot_sglang.seams.surface import differences, fields, missing_fields, surface
from redknot_sglang.versions import check_version, sglang_version

# The entry point group that SGLang's plugin loader looks into.
PLUGINS = "sglang.srt.plugins"


@dataclass(frozen=True)
class Seam:
    """One hook: dotted path of the function below `sglang.srt`, the hook, how it is applied, and why it is needed."""

    target: str
    hook: Callable[..., Any]
    kind: Literal["before", "after", "around"]
    why: str

    @property
    def path(self) -> str:
        """The function's whole path, by which SGLang's hook registry knows it."""
        return f"sglang.srt.{self.target}"


def changed_seams(before: Sequence[Seam], seams: Sequence[Seam], gone: Sequence[str] = ()) -> tuple[Seam, ...]:
    """The seams of a version of SGLang, by what is different from those of the version before.

    before: those seams. seams: new ones, and others for functions that one of `before` hooks, whose place they take.
    gone: targets of seams that are no longer there.
    Raises ValueError if `before` has no seam for one of them.
    """
    unknown = set(gone) - {seam.target for seam in before}
    if unknown:
        raise ValueError(f"there is no seam for {', '.join(sorted(unknown))} to leave out")
    new = {seam.target: seam for seam in seams}
    kept = [new.pop(seam.target, seam) for seam in before if seam.target not in gone]
    return (*kept, *new.values())


_installed: tuple[Seam, ...] = ()


def install(seams: Sequence[Seam]) -> None:
    """Register all seams with SGLang's hook registry; idempotent."""
    global _installed
    if _installed:
        return
    _installed = tuple(seams)
    from redknot_sglang.seams.sglang import HookRegistry, HookType

    for seam in _installed:
        HookRegistry.register(seam.path, seam.hook, HookType(seam.kind))


def installed() -> tuple[Seam, ...]:
    """The seams of `install`."""
    return _installed


def apply() -> None:
    """Have the seams take hold now, where no server of SGLang's does it."""
    from redknot_sglang.seams.sglang import HookRegistry

    HookRegistry.apply_hooks()


def missing() -> list[Seam]:
    """Installed seams that SGLang's hook registry did not apply in this process."""
    from redknot_sglang.seams.sglang import HookRegistry

    return [seam for seam in _installed if seam.path not in HookRegistry._patched]


def differing() -> list[str]:
    """What the installed SGLang does not have as we know it, in words; imports the modules of SGLang's that we use."""
    return [*differences(surface()), *missing_fields(fields())]


def verify() -> None:
    """Raises SeamError, in one line, for an unsupported SGLang, for all that it does not have as we know it, or for a seam.

    The last is one that did not take hold.
    """
    check_version()
    differs = differing()
    if differs:
        raise SeamError(
            f"SGLang {sglang_version()} is not as redknot-sglang knows it: {'; '.join(differs)}. Something else has changed "
            "it: install it anew, or leave out the plugin or patch that did"
        )
    for seam in missing():
        raise SeamError(
            f"seam {seam.path} did not take hold in SGLang {sglang_version()} ({seam.why}); "
            "see `redknot doctor` and the log above for the hook's own error"
        )
