# SPDX-License-Identifier: Apache-2.0
"""One certification from its options to the certificate beside the map."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redknot_sglang.certificate.document import EXACT, certificate_path, seal, write_certificate
from redknot_sglang.certificate.fingerprint import model_folder
from redknot_sglang.certify.answers import Answers
from redknot_sglang.certify.options import Options
from redknot_sglang.certify.plan import Plan, make_plan
from redknot_sglang.certify.questions import Question
from redknot_sglang.certify.record import describe_model, describe_run
from redknot_sglang.certify.servers import Reply, Sides, ask_all, served, server_info
from redknot_sglang.certify.verdict import FAIL, PASS, judge
from redknot_sglang.heads import load_head_map


def certify(options: Options) -> tuple[Path, dict[str, Any]]:
    """Ask stock SGLang and the server with RedKnot, judge the answers, and write the certificate beside the map.

    options: of the command. Progress goes to stderr.
    Returns the certificate's path and its document; a policy that loses too much is a verdict in it and no error. Raises
    RedKnotError for what cannot be measured or written.
    """
    key = None
    if options.key is not None:
        from redknot_sglang.certificate.signature import read_private_key

        key = read_private_key(options.key)
    head_map = load_head_map(options.head_map)
    folder = model_folder(options.model)
    plan = make_plan(options, folder)
    sides = Sides(
        model=folder,
        head_map=options.head_map,
        device=options.device,
        lead=options.lead,
        room=plan.room,
        segment_length=plan.segment_length,
        extra=options.flags,
        stock_extra=options.stock_flags,
    )
    path = certificate_path(options.head_map)
    work = path.with_name(path.name + ".work")
    if options.fresh:
        work.unlink(missing_ok=True)
    known = Answers(work, plan, sides, head_map)
    with TemporaryDirectory(prefix="redknot-certify-") as temporary:
        answers, info = _measure(plan, sides, known, options.logs or Path(temporary))
    dense = answers[None]
    policies = {
        plan.certified_name(policy): judge(plan.questions, dense, replies, plan.thresholds)
        for policy, replies in answers.items()
        if policy is not None
    }
    document = {
        **describe_run(plan, head_map, info, options),
        "model": describe_model(options.model, folder, info),
        "policies": policies,
        "verdict": PASS if all(entry["verdict"] == PASS for entry in policies.values()) else FAIL,
    }
    sealed = seal(document, key)
    write_certificate(path, sealed)
    known.remove()
    return path, sealed


def _measure(
    plan: Plan, sides: Sides, known: Answers, logs: Path
) -> tuple[dict[str | None, list[Reply]], dict[str, Any]]:
    """Ask what is not known yet. Returns the replies by policy, None for dense attention, and `/server_info` of the server
    with RedKnot.
    """
    from tqdm import tqdm

    info: dict[str, Any] = {}
    policies: tuple[str | None, ...] = (None, EXACT, *plan.repairs)
    missing = {policy: [q for q in plan.questions if known.get(policy, q) is None] for policy in policies}
    total = len(plan.questions) * len(policies)
    done = total - sum(map(len, missing.values()))
    if done:
        print(f"{done} of {total} answers are known from an interrupted run; --fresh asks all again", file=sys.stderr)
    with tqdm(total=total, initial=done, unit="prompt", desc="certify", leave=False, disable=None) as bar:

        def note(policy: str | None, question: Question, reply: Reply) -> None:
            known.keep(policy, question, reply)
            bar.update()

        for name, flags, asked in (("stock", sides.stock(), policies[:1]), ("redknot", sides.redknot(), policies[1:])):
            if name == "stock" and not missing[None]:
                continue
            bar.set_postfix(server=name)
            with served(flags, sides.device, logs / f"{name}.log") as server:
                # The server with RedKnot starts even if all its answers are known: the certificate says how it served.
                info = server_info(server.url)
                for policy in asked:
                    took = partial(note, policy)
                    ask_all(server.url, missing[policy], policy, plan.max_tokens, plan.concurrency, took)
    found = {policy: [known.get(policy, question) for question in plan.questions] for policy in policies}
    return {policy: [reply for reply in replies if reply is not None] for policy, replies in found.items()}, info
