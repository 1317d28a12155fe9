# SPDX-License-Identifier: Apache-2.0
"""`redknot certify`: measure a head map and repair policies through the server, and write the certificate beside the map."""

from __future__ import annotations

import argparse
import signal
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redknot_sglang.certificate.document import EXACT, certificate_path, seal, write_certificate
from redknot_sglang.certificate.fingerprint import model_folder
from redknot_sglang.cli.certify_answers import Answers
from redknot_sglang.cli.certify_plan import Plan, make_plan
from redknot_sglang.cli.certify_questions import Question
from redknot_sglang.cli.certify_record import describe_model, describe_run, print_tables
from redknot_sglang.cli.certify_servers import Reply, Sides, ask_all, served, server_info
from redknot_sglang.cli.certify_verdict import BY, FAIL, PASS, judge
from redknot_sglang.config import LEADS
from redknot_sglang.cpu import has_cuda_driver
from redknot_sglang.heads import load_head_map

DEVICES = ("auto", "cpu", "cuda")
# Far from where calibration starts by default.
FIRST_SEED = 1_000_000


def add_parser(subparsers: Any) -> None:
    """Register `certify` on what `ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "certify",
        help="measure a head map through the server and write its certificate",
        description="Starts stock SGLang and SGLang --redknot one after the other, asks both the same held-out prompts, and "
        "writes losses, intervals and a verdict to MAP.certificate.json, which a server checks at start. Flags for both "
        "servers go behind `--`. Exit code 1 if the verdict is no.",
        usage="redknot certify MODEL --head-map F [options] [-- SERVER FLAGS]",
    )
    parser.add_argument("model", metavar="MODEL", help="the model's folder")
    parser.add_argument("--head-map", type=Path, metavar="F", required=True, help="head map to certify")
    parser.add_argument(
        "--repair",
        metavar="P,...",
        help="repair policies of segmented mode to certify, beside exact mode, e.g. blend:0.08",
    )
    parser.add_argument("--lead", choices=LEADS, default=LEADS[0], help="lead policy of segmented mode (%(default)s)")
    parser.add_argument("--tasks", metavar="NAME,...", help="generated tasks, or `none`; default: all there are")
    parser.add_argument("--task-dir", type=Path, metavar="DIR", help="task package; default: the checkout's eval/tasks")
    parser.add_argument("--lengths", default="1024,2048,4096", metavar="N,...", help="tokens of prompts (%(default)s)")
    parser.add_argument("-n", type=int, default=400, metavar="N", help="prompts of each task and length (%(default)s)")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, metavar="S", help="the first prompt's (%(default)s)")
    parser.add_argument("--data", type=Path, metavar="F.jsonl", help="prompts of your own, with answers or without")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="limit of an answer (%(default)s)")
    _add_thresholds(parser)
    parser.add_argument("--key", type=Path, metavar="PEM", help="sign the certificate with this Ed25519 private key")
    parser.add_argument("--device", choices=DEVICES, default=DEVICES[0], help="where to serve (GPU if there is one)")
    parser.add_argument("--concurrency", type=int, default=8, metavar="C", help="requests in flight (%(default)s)")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the servers' logs there")
    parser.add_argument("--fresh", action="store_true", help="do not go on with the answers of a run that was cut")
    parser.set_defaults(func=run, takes_server_flags=True)


def _add_thresholds(parser: argparse.ArgumentParser) -> None:
    limit = parser.add_argument_group("thresholds of the verdict")
    limit.add_argument(
        "--max-loss", type=float, default=1.0, metavar="P", help="points lost on average, at any length (%(default)s)"
    )
    limit.add_argument(
        "--max-task-loss", type=float, default=2.0, metavar="P", help="points lost on any task and length (%(default)s)"
    )
    limit.add_argument(
        "--min-agreement",
        type=float,
        default=90.0,
        metavar="%",
        help="of data without answers: tokens that agree with the dense answer before the first difference (%(default)s)",
    )
    limit.add_argument(
        "--min-dense", type=float, default=50.0, metavar="%", help="what dense attention must get right (%(default)s)"
    )
    limit.add_argument(
        "--by", choices=BY, default=BY[0], help="judge estimates, or upper ends of 95 %% intervals (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print, write the certificate; 1 if a policy failed. Raises RedKnotError."""
    # Servers are ended on the way out, which an unhandled SIGTERM would skip.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    key = None
    if args.key is not None:
        from redknot_sglang.certificate.signature import read_private_key

        key = read_private_key(args.key)
    head_map = load_head_map(args.head_map)
    folder = model_folder(args.model)
    plan = make_plan(args, folder)
    device = args.device
    if device == "auto":
        device = "cuda" if has_cuda_driver() else "cpu"
    sides = Sides(folder, args.head_map, device, args.lead, plan.room, plan.segment_length, args.server_flags)
    path = certificate_path(args.head_map)
    work = path.with_name(path.name + ".work")
    if args.fresh:
        work.unlink(missing_ok=True)
    known = Answers(work, plan, sides, head_map)
    with TemporaryDirectory(prefix="redknot-certify-") as temporary:
        answers, info = _measure(plan, sides, known, args.logs or Path(temporary))
    dense = answers[None]
    policies = {
        plan.certified_name(policy): judge(plan.questions, dense, replies, plan.thresholds)
        for policy, replies in answers.items()
        if policy is not None
    }
    verdict = PASS if all(entry["verdict"] == PASS for entry in policies.values()) else FAIL
    document = {
        **describe_run(plan, head_map, info, args.server_flags),
        "model": describe_model(args.model, folder, info),
        "policies": policies,
        "verdict": verdict,
    }
    sealed = seal(document, key)
    write_certificate(path, sealed)
    known.remove()
    print_tables(policies)
    print(f"\nverdict: {verdict}; written: {path}, digest {sealed['digest'][:12]}")
    return 0 if verdict == PASS else 1


def _measure(
    plan: Plan, sides: Sides, known: Answers, logs: Path
) -> tuple[dict[str | None, list[Reply]], dict[str, Any]]:
    """Replies by policy, None for dense attention, and the `/server_info` of the server with RedKnot."""
    from tqdm import tqdm

    info: dict[str, Any] = {}
    policies: tuple[str | None, ...] = (None, EXACT, *plan.repairs)
    missing = {policy: [q for q in plan.questions if known.get(policy, q) is None] for policy in policies}
    total = len(plan.questions) * len(policies)
    done = total - sum(map(len, missing.values()))
    if done:
        print(f"{done} of {total} answers are known from a run that was cut; --fresh asks all again", file=sys.stderr)
    with tqdm(total=total, initial=done, unit="prompt", desc="certify", leave=False, disable=None) as bar:

        def note(policy: str | None, question: Question, reply: Reply) -> None:
            known.keep(policy, question, reply)
            bar.update()

        for name, flags, asked in (("stock", sides.stock(), policies[:1]), ("redknot", sides.redknot(), policies[1:])):
            if name == "stock" and not missing[None]:
                continue
            bar.set_postfix(server=name)
            with served(flags, sides.device, logs / f"{name}.log") as server:
                # Of the server with RedKnot even if all its answers are known: the certificate says how it served.
                info = server_info(server.url)
                for policy in asked:
                    took = partial(note, policy)
                    ask_all(server.url, missing[policy], policy, plan.max_tokens, plan.concurrency, took)
    found = {policy: [known.get(policy, question) for question in plan.questions] for policy in policies}
    return {policy: [reply for reply in replies if reply is not None] for policy, replies in found.items()}, info
