# SPDX-License-Identifier: Apache-2.0
"""The one door from SGLang: `register()` runs in every SGLang process before its arguments are parsed."""

from __future__ import annotations


def register() -> None:
    """Install the seams. Without `--redknot` every seam passes straight through to SGLang.

    Called by SGLang's plugin loader (entry point group `sglang.srt.plugins`); idempotent, imports neither torch nor
    CUDA code by itself.
    """
    from redknot_sglang import cpu, seams

    cpu.install_kernel_stand_in()
    seams.install()
