# SPDX-License-Identifier: Apache-2.0
"""The only function that SGLang calls by itself: `register()`, in every process, before arguments are parsed."""

from __future__ import annotations


def register() -> None:
    """Install the seams, our hooks on functions of SGLang. Without `--redknot` each of them only calls what it hooks.

    Called by SGLang's plugin loader (its entry point group for plugins). May be called more than once; imports neither
    torch nor CUDA code by itself.
    """
    from redknot_sglang import cpu, hooks, seams

    # First, for hooks import what may import SGLang.
    cpu.install_kernel_stand_in()
    seams.install(hooks.all_seams())
    hooks.fill()
