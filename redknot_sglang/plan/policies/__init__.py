# SPDX-License-Identifier: Apache-2.0
"""The repair policies, found by name. Each file of this folder holds one, or a few that belong together.

A repair policy says which rows of a reused segment are computed again in their new context. A new one is a subclass of
`Policy` in a file here, and a row in tests/plan/test_policies.py. Nothing else names policies: help texts and error
messages list those that are found here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from pkgutil import iter_modules

from redknot_sglang.errors import RedKnotError
from redknot_sglang.plan.policies.base import Policy

__all__ = ["POLICIES", "KEEPING_WHOLE", "WITHOUT_PROBES", "WITH_WINDOWS", "Policy", "listed", "parse_repair"]


def _found() -> tuple[type[Policy], ...]:
    """All policies: those of rows known by position first, then those that probe, then those that select."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    policies = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Policy) and value.__module__ == module.__name__
    ]
    return tuple(
        sorted(
            (policy for policy in policies if policy is not Policy), key=lambda policy: (policy.selects, policy.probes)
        )
    )


def _either(policies: Iterable[type[Policy]]) -> str:
    """Patterns of policies to choose from, the one with the most to repair first: "boundary:K or none"."""
    return " or ".join(policy.pattern for policy in reversed(list(policies)))


POLICIES = _found()
_BY_KIND = {policy.kind: policy for policy in POLICIES}
# What a message recommends where there are no probes, and where there is no room for whole segments.
WITHOUT_PROBES = _either(policy for policy in POLICIES if not policy.probes and not policy.selects)
WITH_WINDOWS = _either(policy for policy in POLICIES if not policy.keeps_whole and not policy.selects)
KEEPING_WHOLE = _either(policy for policy in POLICIES if policy.keeps_whole)
# Of a policy that selects, on servers where prefill and decode are apart.
WHY_NOT_APART = "leaves documents out of the prompt on the prefill server, and the decode server would not know which"


def largest(names: Sequence[str]) -> str:
    """Which of some policies the KV pools should be sized for: the one that needs most room for cached segments.

    That is the first under which local heads keep all rows of a segment. If there is none, all need the same, and it is
    the first.
    names: names of repair policies, at least one. Raises RedKnotError for a name that is none.
    """
    return next((name for name in names if parse_repair(name).keeps_whole), names[0])


def listed() -> str:
    """One text that lists all policies, each with its meaning, for help texts and messages."""
    return ", ".join(
        f"{policy.pattern} ({policy.meaning})" if policy.meaning else policy.pattern for policy in POLICIES
    )


def parse_repair(text: str) -> Policy:
    """The policy that a text such as "boundary:16" names. Raises RedKnotError, with a list of those that exist, if
    there is none.
    """
    kind, colon, argument = text.partition(":")
    policy = _BY_KIND.get(kind)
    found = policy.parse(argument if colon else None) if policy is not None else None
    if found is None:
        raise RedKnotError(f"repair policy {text!r} is not known; use one of {listed()}")
    return found
