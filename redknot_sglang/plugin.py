# SPDX-License-Identifier: Apache-2.0
"""The one door from SGLang: `register()` runs in every SGLang process before its arguments are parsed."""

from __future__ import annotations


def register() -> None:
    """Install the seams. Without `--redknot` every seam passes straight through to SGLang.

    Called by SGLang's plugin loader (the entry point in `pyproject.toml`); idempotent.
    """
    from redknot_sglang import cpu, hooks, seams

    # First, for hooks import what may import SGLang.
    cpu.install_kernel_stand_in()
    seams.install(hooks.all_seams())
