# SPDX-License-Identifier: Apache-2.0
"""SGLang's own extension points that RedKnot fills: the radix cache backend, the eviction policies and the attention backends."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from redknot_sglang import active
from redknot_sglang.refuse import one_line

RADIX_BACKEND = EVICTION_POLICY = "redknot"
# Names under which our backend is built when RedKnot is on. SGLang keys CUDA-graph gates, page sizes and its use of
# Triton helpers on the name, so a name of our own would be treated as an unknown quantity.
_HOST_NAMES = ("torch_native", "flashinfer")


class Unsaid(str):
    """The value that a flag of SGLang's has by default, so that it can be told from the same value that somebody gave.

    It stays what it is where argparse makes text of defaults.
    """

    def __str__(self) -> str:
        return self


def register(build: Callable[[Any], Any] | None = None) -> None:
    """Fill the registries in this process; idempotent. build: makes the prefix cache, in another way than here."""
    from redknot_sglang.seams.sglang import (  # type: ignore[attr-defined]  # `import *` leaves private names out
        _EVICTION_POLICY_FACTORIES,
        get_radix_cache_factory,
        register_radix_cache_backend,
    )

    if get_radix_cache_factory(RADIX_BACKEND) is None:
        register_radix_cache_backend(RADIX_BACKEND, build or _build_tree)
    _EVICTION_POLICY_FACTORIES[EVICTION_POLICY] = _eviction_strategy


def offer_eviction_policy(parser: argparse.ArgumentParser) -> None:
    """Let `--radix-eviction-policy` take our name, and tell whether it was given; idempotent. parser: SGLang's, with its flags."""
    from redknot_sglang.seams.sglang import RADIX_EVICTION_POLICY_CHOICES, add_radix_eviction_policy_choices

    if EVICTION_POLICY not in RADIX_EVICTION_POLICY_CHOICES:
        add_radix_eviction_policy_choices([EVICTION_POLICY])
    parser.set_defaults(radix_eviction_policy=Unsaid(parser.get_default("radix_eviction_policy")))


def register_attention() -> None:
    """Let the host names build our backend for runners with RedKnot on; all other runners get SGLang's."""
    from redknot_sglang.seams.sglang import ATTENTION_BACKENDS, register_attention_backend

    for name in _HOST_NAMES:
        original = ATTENTION_BACKENDS[name]
        if not getattr(original, "redknot", False):
            register_attention_backend(name)(_dispatching(original))


def _dispatching(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def build(runner: Any) -> Any:
        # A draft model has no classes of heads.
        if active.config_of(runner.server_args) is None or runner.is_draft_worker:
            return original(runner)
        from redknot_sglang.attention import RedKnotAttention

        return RedKnotAttention(runner)

    build.redknot = True  # type: ignore[attr-defined]
    return build


def _eviction_strategy() -> Any:
    from redknot_sglang.radix.keeper import EvictionStrategy

    return EvictionStrategy()


def _build_tree(context: Any) -> Any:
    from redknot_sglang import seams
    from redknot_sglang.hooks.v0_5_17.tree import build_tree

    # A scheduler has more of SGLang in it than the process that read the arguments.
    with one_line(context.server_args.dp_size > 1):
        seams.verify()
    return build_tree(context)
