# SPDX-License-Identifier: Apache-2.0
"""Questions from public text as a file of prompts for `redknot profile` and `redknot certify`.

    python -m eval.real.questions nq.jsonl.gz --model out/real/smollm2-135m --length 2048 --n 300 --out nq_2k.jsonl

docs/real-models.md says where the sources are to be had. Files of different splits share no question and no page, whatever their
lengths and seeds.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.real.prompts import Line, PromptMaker
from eval.real.sources import Question, read_source
from eval.real.splits import HELD_OUT, SPLITS, Part, split
from redknot_sglang.certify.questions import load_tokenizer
from redknot_sglang.errors import CliError, RedKnotError


def make_lines(part: Part, maker: PromptMaker, count: int, turns: int, hops: int, seed: int) -> list[list[Line]]:
    """`count` conversations of `turns` questions each, every question asked once; those that do not fit are passed over.

    hops: passages that a question needs at least. Deterministic. Raises CliError if the split has not got so many.
    """
    made: list[list[Line]] = []
    for asked in _conversations(part, turns, hops, random.Random(seed)):
        if len(made) == count:
            break
        # Of its own, so that a conversation does not depend on how much those before it drew.
        lines = maker.make(asked, random.Random(f"{seed} {asked[0].text}"))
        if lines is not None:
            made.append(lines)
    if len(made) < count:
        raise CliError(
            f"the split has {len(part.questions)} questions, which make {len(made)} conversations of this kind and length, "
            f"{count} are wanted: lower --n, give another --length, or a larger source"
        )
    return made


def _conversations(part: Part, turns: int, hops: int, rng: random.Random) -> Iterator[list[Question]]:
    """Questions in random order, as many at a time as there are turns; no answer of one is told by what another needs."""
    left = [question for question in part.questions if len(question.needed) >= hops]
    rng.shuffle(left)
    while len(left) >= turns:
        asked = [left.pop()]
        for other in reversed(left):
            if len(asked) == turns:
                break
            if not any(_tell(one, other) or _tell(other, one) for one in asked):
                asked.append(other)
        if len(asked) < turns:
            continue
        left = [question for question in left if question not in asked]
        yield asked


def _tell(one: Question, other: Question) -> bool:
    """Whether a passage that `one` needs tells an answer of `other`."""
    return any(passage.tells(other.answers) for passage in one.needed)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 with the file written, 2 if it cannot be made."""
    parser = argparse.ArgumentParser(
        prog="eval.real.questions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="FILE", help="public questions with their passages")
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="whose tokenizer and chat template to use"
    )
    parser.add_argument("--length", type=int, required=True, metavar="N", help="tokens of a prompt at most")
    parser.add_argument("--n", type=int, default=300, metavar="N", help="conversations (%(default)s)")
    parser.add_argument("--turns", type=int, default=1, metavar="N", help="questions of a conversation (%(default)s)")
    parser.add_argument(
        "--hops", type=int, default=1, metavar="N", help="passages a question needs at least (%(default)s)"
    )
    parser.add_argument("--split", choices=SPLITS, default=HELD_OUT, help="which questions (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which of them, and among which passages (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="F.jsonl", help="file to write")
    args = parser.parse_args(argv)
    try:
        print(_write(args))
    except RedKnotError as error:
        print(f"eval.real.questions: error: {error}", file=sys.stderr)
        return 2
    return 0


def _write(args: argparse.Namespace) -> str:
    for option in ("length", "n", "turns", "hops"):
        if getattr(args, option) < 1:
            raise CliError(f"--{option} must be at least 1, got {getattr(args, option)}")
    part = split(read_source(args.source), args.split)
    maker = PromptMaker(load_tokenizer(args.model), part, args.length)
    lines = [line for made in make_lines(part, maker, args.n, args.turns, args.hops, args.seed) for line in made]
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("".join(json.dumps(line.as_json(), ensure_ascii=False) + "\n" for line in lines))
    except OSError as error:
        raise CliError(f"{args.out} cannot be written: {error.strerror}") from error
    sizes = [line.tokens for line in lines]
    documents = sum(len(line.documents) for line in lines) / len(lines)
    return (
        f"wrote {args.out}: {len(lines)} prompts of the {args.split} split, {min(sizes)} to {max(sizes)} tokens, "
        f"{documents:.1f} documents each"
    )


if __name__ == "__main__":
    sys.exit(main())
