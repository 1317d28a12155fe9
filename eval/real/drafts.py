# SPDX-License-Identifier: Apache-2.0
"""Decoding with drafts from n-grams on pretrained weights, one request at a time, with and without, stock SGLang and SGLang --redknot.

    python -m eval.real.drafts out/real/qwen2.5-coder-1.5b --head-map map.json --json out/drafts.json

A prompt is the first tokens of a source file, the answer how the model goes on. Each prompt is asked several times: SGLang's corpus of n-grams is
made of answers, so from the second time on the answer repeats what was answered before, and drafts are right; the first time they are
guesses. Measured is the time of a step, which is that of the whole answer less that of its first token, both with the prompt in the
cache. With drafts on, a step answers several tokens: the time is of a token. All servers start together; those that are not measured are stopped.

Greedy answers are the same with and without drafts, but for ties: a draft's rows and a decode step's row are not computed by the same kernel,
and round differently. How many answers are equal is counted, and where one is not, by how much the server without drafts preferred its
token to the next best one there (`margin`, a difference of log-probabilities).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import requests

from eval.gpu.ask import TIMEOUT, NotMeasured
from eval.provenance import origin
from eval.servers import REDKNOT, STOCK, alone, flush, start
from redknot_sglang.certify.questions import load_tokenizer
from redknot_sglang.errors import CliError, ServerError
from redknot_sglang.measure.launch import CPU_ENVIRONMENT, CPU_FLAGS, Server
from redknot_sglang.measure.table import format_table

ROOT = Path(__file__).resolve().parents[2]
DRAFTS = (
    "--speculative-algorithm=NGRAM",
    "--speculative-ngram-max-bfs-breadth=1",
    "--speculative-num-draft-tokens=8",
)
WITH = "+drafts"


@dataclass(frozen=True)
class Answer:
    """Tokens of a greedy answer, seconds until its end, tokens a step, and of each token the margin to the next best one, if asked for."""

    tokens: list[int]
    seconds: float
    per_step: float
    margins: list[float]


def ask(url: str, prompt: Sequence[int], count: int, margins: bool = False) -> Answer:
    """Exactly `count` tokens behind the prompt. Raises requests.HTTPError, NotMeasured if the answer is shorter."""
    body: dict[str, Any] = {
        "input_ids": list(prompt),
        "sampling_params": {"temperature": 0, "max_new_tokens": count, "ignore_eos": True},
    }
    if margins:
        body |= {"return_logprob": True, "top_logprobs_num": 2}
    begin = time.perf_counter()
    reply = requests.post(url + "/generate", json=body, timeout=TIMEOUT)
    seconds = time.perf_counter() - begin
    reply.raise_for_status()
    found = reply.json()
    meta, tokens = found["meta_info"], found["output_ids"]
    if len(tokens) != count:
        raise NotMeasured(f"an answer has {len(tokens)} tokens, not {count}")
    best = [[entry[0] for entry in top] for top in meta.get("output_top_logprobs", [])] if margins else []
    return Answer(
        tokens, seconds, float(meta.get("spec_accept_length", 1.0)), [first - second for first, second in best]
    )


def prompts(tokenizer: Any, files: Sequence[Path], length: int, count: int) -> list[list[int]]:
    """The first `length` tokens of each file that has as many, of `count` files at most. Raises CliError if none has."""
    # No token is longer than a few characters, and a beginning is read sooner than a file.
    texts = (path.read_text()[: 12 * length] for path in files)
    found = (tokenizer.encode(text, add_special_tokens=False) for text in texts if len(text) > length)
    taken = list(islice((list(ids[:length]) for ids in found if len(ids) >= length), count))
    if not taken:
        raise CliError(f"--text: no file has {length} tokens; name longer ones or lower --prompt-tokens")
    return taken


def measure(url: str, asked: Sequence[Sequence[int]], args: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """Of each prompt and time that it was asked: tokens, seconds of a token behind the first, tokens a step.

    Raises requests.HTTPError, NotMeasured.
    """
    # Whatever is compiled or captured when it first comes.
    ask(url, asked[0][::-1], args.new_tokens)
    flush(url)
    rows: list[list[dict[str, Any]]] = []
    for prompt in asked:
        ask(url, prompt, 1)
        rows.append([])
        for _ in range(args.times):
            first = ask(url, prompt, 1).seconds
            answer = ask(url, prompt, args.new_tokens)
            rows[-1].append(
                {
                    "tokens": answer.tokens,
                    "token_s": (answer.seconds - first) / (args.new_tokens - 1),
                    "per_step": answer.per_step,
                }
            )
    return rows


def differences(plain: Sequence[Answer], rows: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Where answers leave those of the same server without drafts: prompt, place, and the margin there."""
    found = []
    for number, (wanted, times) in enumerate(zip(plain, rows, strict=True)):
        for row in times:
            places = [place for place, (a, b) in enumerate(zip(wanted.tokens, row["tokens"], strict=True)) if a != b]
            if places:
                found.append({"prompt": number, "place": places[0], "margin": wanted.margins[places[0]]})
    return found


def flags(args: argparse.Namespace) -> dict[str, list[str]]:
    """Flags of each server by name."""
    on_cpu = args.device == "cpu"
    longest = args.prompt_tokens + args.new_tokens + 64
    common = [
        f"--model-path={args.model}",
        *(CPU_FLAGS if on_cpu else ()),
        "--random-seed=1",
        f"--context-length={longest}",
        # What bounds the memory of servers that share a GPU.
        f"--max-total-tokens={4 * longest}",
        "--max-running-requests=2",
        *([] if on_cpu else ["--mem-fraction-static=0.8", "--cuda-graph-max-bs-decode=2"]),
        "--cuda-graph-backend-prefill=disabled",
        *args.flag,
    ]
    ours = ["--redknot", f"--redknot-head-map={args.head_map}", "--redknot-uncertified"]
    own = {STOCK: args.stock_flags.split(), REDKNOT: ours}
    sides = {f"{side}{more}": [*own[side], *(DRAFTS if more else ())] for side in own for more in ("", WITH)}
    # SGLang's kernels of speculation are of GPUs; --redknot brings some for a CPU.
    return {name: [*common, *words] for name, words in sides.items() if not (on_cpu and name == STOCK + WITH)}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All servers, one after the other, written as they come. Raises CliError, ServerError, NotMeasured, requests.HTTPError."""
    asked = prompts(load_tokenizer(args.model), args.text, args.prompt_tokens, args.prompts)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {**origin(args), "prompts": len(asked), "sides": {}}
    environment = CPU_ENVIRONMENT if args.device == "cpu" else {}
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for name, started in start(stack, flags(args), environment, args.json.parent / "drafts").items():
            if isinstance(started, ServerError):
                raise started
            servers[name] = started
        plain: list[Answer] = []
        for name in servers:
            with alone(servers, name) as server:
                rows = measure(server.url, asked, args)
                told: dict[str, Any] = {"rows": rows}
                if name.endswith(WITH):
                    told["differences"] = differences(plain, rows)
                else:
                    plain = [ask(server.url, prompt, args.new_tokens, margins=True) for prompt in asked]
            result["sides"][name] = told
            args.json.write_text(json.dumps(result))
    return result


def table(sides: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each server; ratios are of the time without drafts."""
    lines = []
    for name, told in sides.items():
        cells = []
        for part in (slice(0, 1), slice(1, None)):
            taken = {
                side: statistics.median(row["token_s"] for times in found["rows"] for row in times[part])
                for side, found in sides.items()
            }
            without = taken.get(name.removesuffix(WITH))
            ratio = f" ({without / taken[name]:.2f}x)" if name.endswith(WITH) and without else ""
            steps = statistics.mean(row["per_step"] for times in told["rows"] for row in times[part])
            cells += [f"{1000 * taken[name]:.2f}{ratio}", f"{steps:.2f}"]
        answers = sum(map(len, told["rows"]))
        found = told.get("differences")
        equal = "" if found is None else f"{answers - len(found)} of {answers}"
        largest = f"{max(one['margin'] for one in found):.3f}" if found else ""
        lines.append([name, *cells, equal, largest])
    head = ["server", "first time, ms a token", "tokens a step", "again, ms a token", "tokens a step"]
    return format_table([*head, "answers equal", "largest margin"], lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a model, as `make real` writes it")
    parser.add_argument("--head-map", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="+", help="files whose beginnings are prompts (this project's)")
    parser.add_argument("--prompt-tokens", type=int, default=1000, help="of each prompt (%(default)s)")
    parser.add_argument("--prompts", type=int, default=10, help="at most (%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=256, help="of each answer (%(default)s)")
    parser.add_argument("--times", type=int, default=3, help="that each prompt is asked (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--stock-flags", default="", help="of stock alone, such as its best attention backend")
    parser.add_argument("--flag", action="append", default=[], help="one more flag of all, as --x=y; repeatable")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    args.text = args.text or sorted((ROOT / "redknot_sglang").rglob("*.py"))
    print(table(run(args)["sides"]))


if __name__ == "__main__":
    main()
