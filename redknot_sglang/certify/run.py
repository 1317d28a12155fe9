# SPDX-License-Identifier: Apache-2.0
"""One certification from its options to the certificate beside the map."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
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
from redknot_sglang.certify.servers import Reply, Sides, ask_all, flush, served, server_info
from redknot_sglang.certify.verdict import FAIL, PASS, compare, judge
from redknot_sglang.heads import load_head_map

# A policy, and the questions that are asked under it one after the other, with an empty cache at first.
Round = tuple[str | None, Sequence[Question]]


def certify(options: Options) -> tuple[Path, dict[str, Any]]:
    """Ask stock SGLang and the server with RedKnot, judge the answers, and write the certificate beside the map.

    options: those of the command.
    Progress goes to stderr. Returns the certificate's path and its document. A policy that loses too much gets that
    verdict in it, and is no error. Raises RedKnotError for what cannot be measured or written.
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
        repair=plan.largest_repair,
        extra=options.flags,
        stock_extra=options.stock_flags,
    )
    path = certificate_path(options.head_map)
    work = path.with_name(path.name + ".work")
    if options.fresh:
        work.unlink(missing_ok=True)
    known = Answers(work, plan, sides, head_map)
    with TemporaryDirectory(prefix="redknot-certify-") as temporary:
        answers, chosen, info = _measure(plan, sides, known, options.logs or Path(temporary))
    dense, exact = answers[None], answers[EXACT]
    policies = {
        plan.certified_name(policy): judge(plan.questions, dense, answers[policy], plan.thresholds)
        for policy in (EXACT, *plan.repairs)
    }
    controls = {
        name: compare(plan.questions, dense, [_of_whole(one, whole) for one, whole in zip(found, exact, strict=True)])
        for name, found in chosen.items()
    }
    document = {
        **describe_run(plan, head_map, info, options),
        "model": describe_model(options.model, folder, info),
        "policies": policies,
        "controls": {name: found.as_json() for name, found in controls.items()},
        "verdict": PASS if all(entry["verdict"] == PASS for entry in policies.values()) else FAIL,
    }
    sealed = seal(document, key)
    write_certificate(path, sealed)
    known.remove()
    return path, sealed


def _of_whole(reply: Reply, whole: Reply) -> Reply:
    """A control's reply, its cost beside dense prefill of the whole prompt, to which exact mode replied `whole`."""
    if reply.cost is None or whole.cost is None:
        return reply
    return replace(reply, cost=replace(reply.cost, dense_flops=whole.cost.dense_flops))


def _measure(
    plan: Plan, sides: Sides, known: Answers, logs: Path
) -> tuple[dict[str | None, list[Reply]], dict[str, list[Reply]], dict[str, Any]]:
    """Ask what is not known yet. Returns the replies by policy, None for dense attention; those by control; and
    `/server_info` of the server with RedKnot.
    """
    from tqdm import tqdm

    info: dict[str, Any] = {}
    stock: list[Round] = [(None, plan.questions)]
    redknot: list[Round] = [(policy, plan.questions) for policy in (EXACT, *plan.repairs)]
    redknot += [(EXACT, questions) for questions in plan.controls.values()]
    total = len(plan.questions) * (len(stock) + len(redknot))
    done = total - sum(len(_missing(known, *one)) for one in stock + redknot)
    if done:
        print(f"{done} of {total} answers are known from an interrupted run; --fresh asks all again", file=sys.stderr)
    with tqdm(total=total, unit="prompt", desc="certify", leave=False, disable=None) as bar:

        def note(policy: str | None, question: Question, reply: Reply) -> None:
            known.keep(policy, question, reply)
            bar.update()

        for name, flags, rounds in (("stock", sides.stock(), stock), ("redknot", sides.redknot(), redknot)):
            if name == "stock" and not _missing(known, *stock[0]):
                bar.update(len(plan.questions))
                continue
            bar.set_postfix(server=name)
            with served(flags, sides.device, logs / f"{name}.log") as server:
                # The server with RedKnot starts even if all its answers are known: the certificate says how it served.
                info = server_info(server.url)
                for policy, questions in rounds:
                    # Controls that keep the same documents are one request, asked once.
                    missing = _missing(known, policy, questions)
                    bar.update(len(questions) - len(missing))
                    if missing:
                        flush(server.url)
                    took = partial(note, policy)
                    ask_all(server.url, missing, policy, plan.max_tokens, plan.concurrency, took)
    answers = {policy: _replies(known, policy, plan.questions) for policy in (None, EXACT, *plan.repairs)}
    chosen = {name: _replies(known, EXACT, questions) for name, questions in plan.controls.items()}
    return answers, chosen, info


def _missing(known: Answers, policy: str | None, questions: Sequence[Question]) -> list[Question]:
    return [question for question in questions if known.get(policy, question) is None]


def _replies(known: Answers, policy: str | None, questions: Sequence[Question]) -> list[Reply]:
    """The replies to questions that have all been asked."""
    found = (known.get(policy, question) for question in questions)
    return [reply for reply in found if reply is not None]
