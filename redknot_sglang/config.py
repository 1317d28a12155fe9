# SPDX-License-Identifier: Apache-2.0
"""The configuration of a server: what its flags ask for, and what the check of its certificate found. Data only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ATTENTION_CHOICES = ("fa3", "flashinfer", "triton", "torch")
MODES = ("exact", "segmented")
LEADS = ("none", "lead")
DEFAULT_REPAIR = "blend:0.08"
DEFAULT_SEPARATOR = "<|redknot_segment|>"
UNCERTIFIED_FLAG = "--redknot-uncertified"
_UPDATED = (
    "the weights were updated while the server ran, and a certificate is about those that it started with: start a server "
    "with the new weights to have them checked"
)


@dataclass(frozen=True)
class Certification:
    """What a server knows of its certificate.

    digest: of the certificate that fits, or None. policies: those it passed, and those of `by_definition`. reason: why the
    rest is not certified. enforced: whether what is not certified is refused. by_definition: `exact` where that is what
    stock SGLang computes, whatever the weights are.
    """

    digest: str | None = None
    policies: tuple[str, ...] = ()
    reason: str | None = None
    enforced: bool = True
    by_definition: tuple[str, ...] = ()

    def after_update(self) -> Certification:
        """What is left of it once the weights are no longer those that the server started with."""
        return replace(self, digest=None, policies=self.by_definition, reason=_UPDATED)

    def covers(self, policy: str) -> bool:
        """Whether answers under `exact` or this repair policy are certified."""
        return policy in self.policies

    def report(self, policy: str) -> dict[str, Any]:
        """What an answer under `policy` says: whether it is certified, and by which certificate."""
        covered = self.covers(policy)
        return {"certified": covered, "certificate": self.digest if covered else None}

    def status(self, policy: str) -> dict[str, Any]:
        """JSON for status pages; `policy` is what requests get that do not say."""
        return {
            "certified": self.covers(policy),
            "digest": self.digest,
            "policies": list(self.policies),
            "uncertified_allowed": not self.enforced,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class RedKnotConfig:
    """The server's RedKnot settings; picklable, since it travels to the scheduler processes with the server arguments.

    head_map: path of the head map.
    context_length: tokens at which both pools run out together, or None for the model's context length.
    attention: attention path, or None for automatic selection.
    kv_budget: bytes for the KV of both classes on one rank, or None for SGLang's memory fraction.
    mode, repair: what requests get that do not say. segment_lead: "lead" computes segments after the prompt's lead.
    separator: text that separates lead, segments and tail in a prompt. segment_length: expected tokens of a segment, or
    None if few are expected; each segment keeps a tail of local slots. segment_tokens: tokens of distinct segments that
    the cache is to hold beside running requests, or None if unknown.
    certificate_key: public key that the certificate must be signed with. uncertified: whether what has no certificate is
    served. certification: what the check at start found.
    """

    head_map: Path
    context_length: int | None = None
    attention: str | None = None
    kv_budget: int | None = None
    mode: str = "exact"
    repair: str = DEFAULT_REPAIR
    segment_lead: str = "none"
    separator: str = DEFAULT_SEPARATOR
    segment_length: int | None = None
    segment_tokens: int | None = None
    certificate_key: Path | None = None
    uncertified: bool = False
    certification: Certification = Certification(enforced=False)

    @property
    def expects_segments(self) -> bool:
        """Whether the server was told that its requests have segments."""
        return self.mode == "segmented" or (self.segment_length or self.segment_tokens) is not None

    @property
    def policy(self) -> str:
        """What requests get that do not say, as certificates name it."""
        return self.certified_name(self.repair) if self.mode == "segmented" else self.mode

    def certified_name(self, repair: str) -> str:
        """A repair policy as certificates name it: with the lead policy, which changes the KV of segments, too."""
        return f"{repair}+lead" if self.segment_lead == "lead" else repair
