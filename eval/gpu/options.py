# SPDX-License-Identifier: Apache-2.0
"""Options of eval/bench_gpu.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval import servers
from eval.gpu.load import Plan
from eval.gpu.maps import find_map, heads, with_retrieval
from redknot_sglang.errors import CliError

STEPS = ("kernels", "cold", "prefix", "decode", "segments", "serving", "load", "concurrency")
# Steps that servers of `fleet.latency_servers` answer.
SERVED_STEPS = ("cold", "prefix", "decode", "segments", "serving")
# What maps behind the first one are measured in at most.
FURTHER_STEPS = ("cold", "prefix", "decode")


def tokens(text: str) -> int:
    """'8K' and '8192' alike. Raises ValueError."""
    return int(text[:-1]) * 1024 if text[-1:] in "kK" else int(text)


def _token_list(text: str) -> list[int]:
    return [tokens(part) for part in text.split(",")]


def _rates(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _batches(text: str) -> list[tuple[int, int]]:
    """'8K:1,8K:64' as (tokens, batch) pairs."""
    pairs = [part.split(":") for part in text.split(",")]
    return [(tokens(length), int(batch)) for length, batch in pairs]


def make_parser(description: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what is measured")
    what.add_argument("--steps", default="cold,prefix,decode,segments", help=f"of {','.join(STEPS)} (%(default)s)")
    what.add_argument("--lengths", type=_token_list, default="8K,32K,64K,128K", help="in this order (%(default)s)")
    what.add_argument(
        "--maps", help="head maps: files beside the shape, or rho.25-w1024 and the like (one_of_eight; CPU: head_map)"
    )
    what.add_argument(
        "--retrieval",
        type=heads,
        default=(),
        metavar="LAYER.HEAD,...",
        help="retrieval heads of every map, for the policy `question`; which ones matters to its time by the deepest layer only",
    )
    what.add_argument(
        "--further-steps",
        default=",".join(FURTHER_STEPS),
        help="that maps behind the first one take part in (%(default)s)",
    )
    what.add_argument("--requests", type=int, default=5, help="samples of each cell (%(default)s)")
    what.add_argument("--new", type=_token_list, help="new tokens of `prefix` (the tail, and the rows of boundary:16)")
    what.add_argument("--decode", type=_batches, default="8K:1,32K:1,128K:1,32K:8,128K:8,8K:64", help="(%(default)s)")
    what.add_argument("--decode-steps", type=int, default=64, help="that are timed (%(default)s)")
    for step in ("cold", "prefix"):
        what.add_argument(f"--{step}-lengths", type=_token_list, help=f"of --lengths, for `{step}` (all)")
    what.add_argument("--segment-lengths", type=_token_list, default="32K,128K", help="of `segments` (%(default)s)")
    what.add_argument("--segments", type=int, default=16, help="documents of a segmented prompt (%(default)s)")
    what.add_argument("--tail", type=int, default=128, help="tokens behind them (%(default)s)")
    what.add_argument("--policies", default="boundary:16,none", help="repair policies (%(default)s)")
    what.add_argument("--serving-prompts", type=int, default=64, help="of `serving`, all at once (%(default)s)")
    what.add_argument("--serving-answer", type=int, default=256, help="tokens of their answers (%(default)s)")
    what.add_argument("--kv-gib", type=float, help="KV of each side in `concurrency` (24 up to 32K tokens, else 60)")
    what.add_argument("--kernels", default="attention,scattered,relocation", help="benchmarks (%(default)s)")
    _add_load(parser.add_argument_group("load, the step"))
    running = parser.add_argument_group("servers")
    servers.add_arguments(running, threads=1, head_map=False)
    running.add_argument("--together", type=int, help="servers started at a time (as many as the GPU holds)")
    running.add_argument("--kv-tokens", type=int, help="KV of stock and the first map, in tokens of stock")
    running.add_argument("--mem-fraction", type=float, default=0.95, help="--mem-fraction-static (%(default)s)")
    running.add_argument("--chunk", type=int, default=8192, help="tokens of a prefill chunk (%(default)s)")
    for side in (servers.STOCK, servers.REDKNOT):
        running.add_argument(
            f"--{side}-prefill-graphs",
            metavar="N,N",
            help="prefill CUDA graphs (breakable) of these sizes; default: none",
        )
        running.add_argument(f"--{side}-flag", action="append", default=[], help="one more flag, as --x=y; repeatable")
    running.add_argument("--seconds", type=float, help="no cell begins later than this after the start")
    parser.add_argument("--json", type=Path, default=Path("out/gpu/gpu.json"), help="logs beside it (%(default)s)")
    parser.add_argument("--append", action="store_true", help="keep the cells that the file has")
    parser.add_argument("--chart", type=Path, help="picture, .webp or .png (beside the JSON)")
    return parser


def _add_load(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--load-documents", type=int, default=32, help="in the corpus (%(default)s)")
    group.add_argument("--load-document-tokens", type=int, default=2048, help="(%(default)s)")
    group.add_argument("--load-per-request", type=int, default=16, help="documents of a prompt (%(default)s)")
    group.add_argument("--load-policy", default="boundary:16", help="repair policies (%(default)s)")
    group.add_argument("--load-limit", type=float, default=5.0, help="seconds that p99 must keep (%(default)s)")
    group.add_argument("--load-start", type=_rates, help="first rates, STOCK,POLICY,... (from closed-loop throughput)")
    group.add_argument("--load-seconds", type=float, default=60.0, help="of arrivals in a probe (%(default)s)")
    group.add_argument("--load-refine", type=int, default=1, help="probes between the bracketing rates (%(default)s)")
    group.add_argument("--load-box", type=float, default=300.0, help="seconds of a side (%(default)s)")


def load_plan(args: argparse.Namespace) -> Plan:
    """What `load` asks."""
    return Plan(
        documents=args.load_documents,
        tokens=args.load_document_tokens,
        per_request=args.load_per_request,
        limit=args.load_limit,
        seconds=args.load_seconds,
        refine=args.load_refine,
        box=args.load_box,
    )


def steps_of(args: argparse.Namespace) -> list[str]:
    """Steps that were asked for."""
    return list(args.steps.split(","))


def maps_of(args: argparse.Namespace, model: Path, folder: Path) -> dict[str, Path]:
    """Head maps by name, in order; those that are made or get retrieval heads lie in `folder`. Raises CliError."""
    names = (args.maps or ("one_of_eight" if args.shape else "head_map")).split(",")
    if servers.STOCK in names or len(set(names)) < len(names):
        raise CliError(f"--maps {','.join(names)}: each name once, and none is {servers.STOCK!r}")
    return {name: with_retrieval(find_map(name, model, folder), args.retrieval, folder) for name in names}


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be meant. Raises CliError."""
    unknown = [step for step in steps_of(args) if step not in STEPS]
    if unknown:
        raise CliError(f"--steps {unknown[0]!r} is not known; there are {', '.join(STEPS)}")
    unfit = [step for step in args.further_steps.split(",") if step not in FURTHER_STEPS]
    if unfit:
        raise CliError(
            f"--further-steps {unfit[0]!r}: maps behind the first one take part in {', '.join(FURTHER_STEPS)}"
        )
    if not args.shape and "kernels" in steps_of(args):
        raise CliError("--steps kernels needs a GPU; give --shape, or leave the step out")
    if args.shape and not (servers.ROOT / "shapes" / args.shape / "config.json").is_file():
        raise CliError(f"--shape {args.shape}: there is no such folder in eval/shapes")
    if not args.shape and (args.stock_prefill_graphs or args.redknot_prefill_graphs):
        raise CliError("--stock-prefill-graphs and --redknot-prefill-graphs are of a GPU; give --shape")
    named = [*args.policies.split(","), *args.load_policy.split(",")]
    if args.shape and not args.checkpoint and any(policy.startswith("blend") for policy in named):
        raise CliError("under dummy weights context changes no row and blend repairs none; give --checkpoint")
    counts = [args.requests, args.decode_steps, args.segments, args.tail, args.chunk, *args.lengths]
    if min(counts) < 1 or (args.together is not None and args.together < 1):
        raise CliError("counts and lengths must be at least 1")
    if "segments" in steps_of(args) and min(args.segment_lengths) < 2 * (args.segments + args.tail):
        raise CliError(
            "--segment-lengths: a prompt has no room for so many segments and the tail; use fewer --segments"
        )
