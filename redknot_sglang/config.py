# SPDX-License-Identifier: Apache-2.0
"""The configuration of a server: what its flags ask for, and what the check of its certificate found. Data only.

Words used below. A *head map* says which attention heads are local, which means that they see the first and the last
tokens only. A request is answered in *exact* mode, which is ordinary attention under that map, or in *segmented* mode, which
reuses documents (*segments*) at any position and is approximate. The *repair policy* says which rows of a reused segment
are computed again. A *certificate* is a file with what a map and a policy were measured to lose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ATTENTION_CHOICES = ("fa3", "flashinfer", "triton", "torch")
MODES = ("exact", "segmented")
LEADS = ("none", "lead")
DEFAULT_SEPARATOR = "<|redknot_segment|>"
UNCERTIFIED_FLAG = "--redknot-uncertified"
WHY_NO_REPAIR = (
    "this server has no repair policy of its own: none passed in a certificate beside the head map, and the map names no retrieval "
    "heads (`redknot profile --retrieval` finds them)"
)
# Which weights a server computes with: those that it started with, others that came whole, or nobody knows.
STARTED, UPDATED, UNKNOWN = "started", "updated", "unknown"
_UPDATED = (
    "the weights were updated while the server ran, and a certificate is about those that it started with: start a server "
    "with the new weights to have them checked"
)
_UNKNOWN = (
    "an update of the weights ended halfway, or they were released without a copy, so these are no model's: load a whole checkpoint "
    "with /update_weights_from_disk, or start the server again"
)


@dataclass(frozen=True)
class Certification:
    """What the check at start found about the certificate beside the head map.

    digest: SHA-256 of the certificate that fits this server, 64 hex digits, or None if none does.
    policies: names that are certified: `exact` and repair policies, the latter with `+lead` where segments are computed
        after the prompt's lead.
    reason: one sentence that says why other policies are not certified, or None.
    enforced: whether the server refuses what is not certified; false under `--redknot-uncertified`.
    by_definition: the part of `policies` that needs no measurement: `exact` if the map has no local head, because that is
        what stock SGLang computes, whatever the weights are.
    weights: STARTED, UPDATED or UNKNOWN.
    """

    digest: str | None = None
    policies: tuple[str, ...] = ()
    reason: str | None = None
    enforced: bool = True
    by_definition: tuple[str, ...] = ()
    weights: str = STARTED

    def with_weights(self, weights: str) -> Certification:
        """The same for a running server whose weights are others now.

        weights: UPDATED, and only `by_definition` is still certified, or UNKNOWN, and nothing is; STARTED changes nothing, for nobody
            can say that those are back.
        """
        if weights in (STARTED, self.weights):
            return self
        policies, reason = (self.by_definition, _UPDATED) if weights == UPDATED else ((), _UNKNOWN)
        return replace(self, digest=None, policies=policies, reason=reason, weights=weights)

    def covers(self, policy: str) -> bool:
        """Whether answers under `policy` are certified.

        policy: `exact`, or a repair policy as `RedKnotConfig.certified_name` writes it.
        """
        return policy in self.policies

    def report(self, policy: str) -> dict[str, Any]:
        """Keys for `meta_info.redknot` of an answer: `certified` (bool) and `certificate`, a digest or None.

        policy: the policy that the answer was computed under, as in `covers`.
        """
        covered = self.covers(policy)
        return {"certified": covered, "certificate": self.digest if covered else None}

    def status(self, policy: str) -> dict[str, Any]:
        """The certificate's part of `GET /redknot/status`, as JSON types.

        policy: the policy under which requests are answered that choose none; `certified` is about this one.
        """
        return {
            "certified": self.covers(policy),
            "digest": self.digest,
            "policies": list(self.policies),
            "uncertified_allowed": not self.enforced,
            "weights": self.weights,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class RedKnotConfig:
    """The settings that the `--redknot*` flags make. Picklable: it travels to the scheduler processes with the arguments.

    head_map: path of the head map's file.
    context_length: prompt and answer of a usual request, in tokens: memory is split between the head classes so that the
        pools of both run out together when requests of this length fill them. None: the model's context length.
    attention: one of ATTENTION_CHOICES, or None for the fastest that this device and model can use.
    kv_budget: bytes for the KV of both head classes on one rank, or None for what SGLang's memory fraction leaves.
    mode: one of MODES, for requests that choose none.
    repair: the repair policy of segmented requests that choose none, e.g. `question:2`, `blend:0.08`, `boundary:16`. None: there
        is none, and such requests are refused. Before the start it is what the flag says, then also the default
        (`certificate/default_repair.py`).
    segment_lead: one of LEADS. `none` computes each segment by itself; `lead` computes it behind the text that stands
        before the prompt's first segment, so that only requests with the same such text share it.
    separator: text between the lead, the segments and the rest of a prompt; it is removed before the prompt is computed.
    segment_length: usual length of a segment in tokens, or None if few segments are expected. Each cached segment takes
        local slots for sink and window, and more of them fit if the pool is sized for it.
    segment_tokens: tokens of all distinct segments that the cache is to hold beside running requests, or None.
    certificate_key: file of the Ed25519 public key that the certificate must be signed with, or None for no signature.
    uncertified: whether maps and policies without a certificate are served.
    inspect_texts: whether `/redknot/inspect` names tenants and shows texts.
    certification: what the check at start found; until then nothing is certified and nothing enforced.
    """

    head_map: Path
    context_length: int | None = None
    attention: str | None = None
    kv_budget: int | None = None
    mode: str = "exact"
    repair: str | None = None
    segment_lead: str = "none"
    separator: str = DEFAULT_SEPARATOR
    segment_length: int | None = None
    segment_tokens: int | None = None
    certificate_key: Path | None = None
    uncertified: bool = False
    inspect_texts: bool = False
    certification: Certification = Certification(enforced=False)

    @property
    def expects_segments(self) -> bool:
        """Whether the flags say that most requests will have segments, so that pools are sized for them."""
        return self.mode == "segmented" or (self.segment_length or self.segment_tokens) is not None

    @property
    def policy(self) -> str:
        """Under what requests are answered that choose nothing: `exact`, or the repair policy's `certified_name`.

        A server does not start in segmented mode without a repair policy.
        """
        return self.mode if self.mode == "exact" or self.repair is None else self.certified_name(self.repair)

    def certified_name(self, repair: str) -> str:
        """The name under which certificates list a repair policy on this server.

        repair: a repair policy, e.g. `blend:0.08`. It gets `+lead` where segments are computed behind the lead, because
        that changes the segments' KV and so has to be measured by itself.
        """
        return f"{repair}+lead" if self.segment_lead == "lead" else repair
