# SPDX-License-Identifier: Apache-2.0
"""A scheduler builds no tree over an SGLang that is not as we know it."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import pytest

from redknot_sglang import seams
from redknot_sglang.errors import RedKnotError, SeamError
from redknot_sglang.hooks.v0_5_17 import arguments, registries
from redknot_sglang.refuse import has_refused


def test_a_scheduler_says_in_one_line_what_is_different(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verify() -> None:
        raise SeamError("SGLang has no wheels")

    monkeypatch.setattr(seams, "verify", verify)
    with pytest.raises(SystemExit) as ended:
        registries._build_tree(SimpleNamespace(server_args=SimpleNamespace(dp_size=1)))
    assert isinstance(ended.value.code, int) and has_refused(ended.value.code)
    assert capsys.readouterr().err == "redknot: error: SGLang has no wheels\n"


def test_the_eviction_policy_is_offered_once_and_built_by_sglang() -> None:
    from sglang.srt.mem_cache.utils import get_eviction_strategy
    from sglang.srt.server_args import RADIX_EVICTION_POLICY_CHOICES, ServerArgs

    from redknot_sglang.radix.keeper import POLICY, EvictionStrategy

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    for _ in range(2):
        registries.register()
        registries.offer_eviction_policy(parser)
    assert RADIX_EVICTION_POLICY_CHOICES.count(POLICY) == 1 and POLICY == registries.EVICTION_POLICY
    assert isinstance(get_eviction_strategy(POLICY), EvictionStrategy)
    assert parser.parse_args(["--model-path=m", f"--radix-eviction-policy={POLICY}"]).radix_eviction_policy == POLICY


def test_the_eviction_policy_needs_redknot() -> None:
    with pytest.raises(RedKnotError, match="--radix-eviction-policy redknot needs --redknot"):
        arguments.construction(()).hook(object, object(), model_path="m", radix_eviction_policy="redknot")


def test_the_eviction_policy_is_ours_unless_another_was_given() -> None:
    """SGLang's default has the same value as a flag that somebody gave."""
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    registries.offer_eviction_policy(parser)
    made: list[dict[str, Any]] = []
    construct = arguments.construction(()).hook
    for flags in ([], ["--radix-eviction-policy=lru"], ["--radix-eviction-policy", "slru"]):
        given = parser.parse_args(["--model-path=m", *flags]).radix_eviction_policy
        # What a server without RedKnot gets is SGLang's own, whether or not it was said.
        construct(lambda self, **kwargs: made.append(kwargs), object(), model_path="m", radix_eviction_policy=given)
        made.append(arguments._with_forced(made[-1]))
    policies = [kwargs.get("radix_eviction_policy") for kwargs in made]
    assert policies == [None, "redknot", "lru", "lru", "slru", "slru"]
    assert not any(isinstance(policy, registries.Unsaid) for policy in policies)
