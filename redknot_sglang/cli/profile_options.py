# SPDX-License-Identifier: Apache-2.0
"""The options of `redknot profile` and the names that they accept. Imports no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

METHODS = ("mass", "distortion", "gates", "ablation", "greedy")
REUSE = ("none", "output", "loss")
TARGETS = ("own", "answers")
CURVE = "64,128,256,512,1024,2048,4096,8192"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options but model, data and output to the parser."""
    target = parser.add_argument_group("target; one of --target-kv and --max-loss")
    target.add_argument("--target-kv", type=float, metavar="R", help="at most this share of stock's KV bytes, as 0.25")
    target.add_argument(
        "--max-loss", type=float, metavar="X", help="at most X nats per token more loss than stock, as 0.01"
    )
    target.add_argument(
        "--target",
        choices=TARGETS,
        default="own",
        help="what a loss is: divergence from dense attention over what it says itself, or the loss on the answers in the "
        "data (%(default)s)",
    )
    target.add_argument(
        "--own-tokens",
        type=int,
        default=32,
        metavar="N",
        help="tokens that dense attention says to a prompt at most, under --target own (%(default)s)",
    )
    target.add_argument(
        "--at", type=int, metavar="N", help="tokens of the prefix whose bytes count (default: the longest example's)"
    )

    data = parser.add_argument_group("generated data and text")
    data.add_argument("--tasks", metavar="NAME,...", help="tasks (default: all)")
    data.add_argument("--lengths", default="1024", metavar="N,...", help="tokens of a prompt or piece (%(default)s)")
    data.add_argument(
        "--n",
        type=int,
        default=4,
        metavar="N",
        help="examples of each task and length, or pieces of each length (%(default)s)",
    )
    data.add_argument("--seed", type=int, default=1000, help="seed of the first example (%(default)s)")
    data.add_argument("--task-dir", type=Path, metavar="DIR", help="task package; default: the checkout's eval/tasks")

    how = parser.add_argument_group("method")
    how.add_argument(
        "--methods", default="mass,distortion,ablation", metavar="M,...", help=f"of {', '.join(METHODS)} (%(default)s)"
    )
    how.add_argument("--windows", default="128,256", metavar="W,...", help="windows the map may have (%(default)s)")
    how.add_argument("--sink", type=int, default=4, metavar="S", help="first tokens a local head sees (%(default)s)")
    how.add_argument("--curve", default=CURVE, metavar="W,...", help="windows of the mass curves (%(default)s)")
    how.add_argument(
        "--rows",
        type=int,
        default=1024,
        metavar="N",
        help="rows of an example that mass and distortion look at, evenly spaced (%(default)s)",
    )
    how.add_argument(
        "--reuse",
        choices=REUSE,
        default="output",
        help="what to measure of heads that read documents computed alone: nothing, change of output, or of loss, too "
        "(%(default)s)",
    )
    how.add_argument(
        "--retrieval",
        type=int,
        default=4,
        metavar="N",
        help="retrieval heads that the map gets, which the repair policy `question` asks; found on prompts that have documents "
        "with and without the answer; 0: none (%(default)s)",
    )
    how.add_argument(
        "--points", type=int, default=6, metavar="N", help="map sizes measured per method and window (%(default)s)"
    )
    how.add_argument("--gate-steps", type=int, default=300, metavar="N", help="steps of the gates (%(default)s)")
    how.add_argument("--gate-l1", type=float, default=0.05, metavar="X", help="weight of the mean gate (%(default)s)")
    how.add_argument(
        "--gate-rate", type=float, default=0.02, metavar="X", help="learning rate of the gates (%(default)s)"
    )
    how.add_argument(
        "--gate-tokens", type=int, default=16384, metavar="N", help="longest example for gates (%(default)s)"
    )

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one")
    machine.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="default: the model's"
    )
    machine.add_argument(
        "--load-format", default="auto", choices=("auto", "dummy"), help="dummy: random weights, no files needed"
    )
    machine.add_argument(
        "--chunk", type=int, metavar="N", help="rows that pass a layer at a time (4096 on a GPU, 512 on a CPU)"
    )
    machine.add_argument("--fresh", action="store_true", help="forget what an earlier run for the same --out measured")
