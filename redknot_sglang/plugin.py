# SPDX-License-Identifier: Apache-2.0
"""The only function that SGLang calls by itself: `register()`, in every process, before arguments are parsed."""

from __future__ import annotations


def register() -> None:
    """Install the seams, our hooks on functions of SGLang. Without `--redknot` each of them only calls what it hooks.

    Called by SGLang's plugin loader (entry point group `sglang.srt.plugins`). May be called more than once; imports neither
    torch nor CUDA code by itself.
    """
    from redknot_sglang import cpu, seams

    cpu.install_kernel_stand_in()
    seams.install()
