# SPDX-License-Identifier: Apache-2.0
"""The answers that `redknot certify` has received so far, on disk, so that an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, astuple
from itertools import chain
from pathlib import Path
from typing import Any

from redknot_sglang import __version__
from redknot_sglang.certificate.fingerprint import fingerprint_model
from redknot_sglang.certify.cost import Cost
from redknot_sglang.certify.plan import Plan
from redknot_sglang.certify.questions import Question
from redknot_sglang.certify.servers import Reply, Sides
from redknot_sglang.errors import CertificateError
from redknot_sglang.heads import HeadMap
from redknot_sglang.versions import sglang_version
from redknot_sglang.work_file import WorkFile

# What is kept of a reply; work files of other releases are not taken.
_KEPT = ("text", "tokens", "logprobs", "cost")


class Answers:
    """The servers' replies by policy and question; the policy None is dense attention, which stock SGLang computes.

    Replies of another model, map, version or flag in the same file are not found.
    """

    def __init__(self, path: Path, plan: Plan, sides: Sides, head_map: HeadMap) -> None:
        """Read what an earlier run left.

        path: the work file, which is made with the first reply.
        plan: the questions.
        sides: flags of both servers.
        head_map: the map to certify.
        Raises CertificateError for a model without weights, and for a file that cannot be read.
        """
        self._path = path
        model = {} if _is_dummy(sides) else asdict(fingerprint_model(sides.model))
        base = [
            *(sglang_version(), __version__, model, head_map.fingerprint),
            *(sides.device, sides.lead, list(sides.extra), plan.max_tokens),
            *_KEPT,
        ]
        # Dummy weights have no fingerprint that would tell one folder's from another's, so nothing is kept of them.
        try:
            self._work = WorkFile(None if _is_dummy(sides) else path, base)
        except OSError as error:
            raise CertificateError(f"{path} cannot be read: {error.strerror}; --fresh starts without it") from None
        everything = chain(plan.questions, *plan.controls.values())
        self._names = {id(question): _name(question) for question in everything}
        # Only dense answers depend on these.
        self._stock = [list(sides.stock_extra)] if sides.stock_extra else []

    def get(self, policy: str | None, question: Question) -> Reply | None:
        """The reply to a question of the plan, or of a control of it, under a policy; None if there is none yet."""
        what = self._what(policy, question)
        if not self._work.knows(what):
            return None
        text, tokens, logprobs, cost = self._work.known(what)
        return Reply(text, tuple(tokens), tuple(logprobs), None if cost is None else Cost(*cost))

    def keep(self, policy: str | None, question: Question, reply: Reply) -> None:
        """Keep a reply, in memory and on disk. Raises CertificateError if it cannot be written."""
        try:
            cost = None if reply.cost is None else astuple(reply.cost)
            self._work.keep(self._what(policy, question), [reply.text, reply.tokens, reply.logprobs, cost])
        except OSError as error:
            raise CertificateError(
                f"{self._path} cannot be written: {error.strerror}; answers and certificate are kept beside the head map, so "
                "copy it to a folder that you may write"
            ) from None

    def _what(self, policy: str | None, question: Question) -> list[Any]:
        return [policy, self._names[id(question)], *(self._stock if policy is None else [])]

    def remove(self) -> None:
        """Remove the work file, once the certificate is written."""
        self._path.unlink(missing_ok=True)


def _is_dummy(sides: Sides) -> bool:
    return any("load-format" in flag and "dummy" in flag for flag in sides.stock())


def _name(question: Question) -> str:
    told = json.dumps([question.ids, question.segments, question.score is None])
    return hashlib.sha256(told.encode()).hexdigest()
