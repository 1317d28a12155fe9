# SPDX-License-Identifier: Apache-2.0
"""Starts the two servers of a certification and asks them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from typing import Any

from redknot_sglang.certificate.document import EXACT
from redknot_sglang.certify.cost import Cost
from redknot_sglang.certify.questions import Question
from redknot_sglang.config import MODES
from redknot_sglang.errors import CliError, ServerError
from redknot_sglang.measure.launch import CPU_ENVIRONMENT, CPU_FLAGS, Server, launch
from redknot_sglang.plan.options import MODE, REPAIR, SEGMENTS

# Seconds to wait for one answer.
TIMEOUT = 900


@dataclass(frozen=True)
class Reply:
    """An answer by greedy decoding.

    text: the text.
    tokens: its token ids.
    logprobs: log-probabilities of the tokens in nats; empty if they were not asked for.
    cost: what was computed for it; None of a server without RedKnot.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    cost: Cost | None = None


@dataclass(frozen=True)
class Sides:
    """The flags of both servers.

    model: the model's folder.
    head_map: file of the map to certify.
    device: `cpu` or `cuda`.
    lead: one of LEADS.
    room: tokens of KV on a CPU, where SGLang would else take most of the machine's memory.
    segment_length: mean tokens of a segment, or None if no prompt has segments.
    repair: the repair policy that the pools are sized for, or None if none is measured.
    extra: the user's flags of both servers; `--redknot*` flags among them go to the server with RedKnot only.
    stock_extra: the user's flags of stock SGLang alone.
    """

    model: Path
    head_map: Path
    device: str
    lead: str
    room: int
    segment_length: int | None
    repair: str | None
    extra: Sequence[str]
    stock_extra: Sequence[str]

    def stock(self) -> list[str]:
        """Flags of stock SGLang. Its own come last, since SGLang takes the last one of a flag that is given twice."""
        shared = [flag for flag in _split(self.extra) if not flag[0].startswith("--redknot")]
        return [*self._common(), *chain(*shared, *_split(self.stock_extra))]

    def redknot(self) -> list[str]:
        """Flags of the server with the map to certify. It serves both modes; each request chooses one."""
        own = ["--redknot", f"--redknot-head-map={self.head_map}", "--redknot-uncertified"]
        if self.segment_length is not None:
            own += [f"--redknot-segment-length={self.segment_length}", f"--redknot-segment-lead={self.lead}"]
        if self.repair is not None:
            own.append(f"--redknot-repair={self.repair}")
        return [*self._common(), *own, *chain(*_split(self.extra))]

    def _common(self) -> list[str]:
        cpu = [*CPU_FLAGS, f"--max-total-tokens={self.room}"] if self.device == "cpu" else []
        return [f"--model-path={self.model}", "--random-seed=1", *cpu]


def _split(words: Sequence[str]) -> Iterator[list[str]]:
    """Words of a command line by flag: a list of the flag and its values, or one word `--flag=value` if it has one value."""
    flags: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not flags:
            flags.append([word])
        else:
            flags[-1].append(word)
    for flag in flags:
        yield ["=".join(flag)] if len(flag) == 2 and "=" not in flag[0] else flag


@contextmanager
def served(args: Sequence[str], device: str, log: Path) -> Iterator[Server]:
    """A server that runs inside the context.

    args: its flags.
    device: `cpu` or `cuda`.
    log: file for its output.
    Raises CliError with the last lines of the log if it does not start.
    """
    environment = CPU_ENVIRONMENT if device == "cpu" else {}
    try:
        with launch(args, log, env=environment) as server:
            yield server
    except ServerError as error:
        raise CliError(str(error)) from error


def server_info(url: str) -> dict[str, Any]:
    """The answer of a server's `/server_info`. Raises CliError if there is none."""
    return _call(url + "/server_info", None)


def flush(url: str) -> None:
    """Empty a server's prefix cache, so that what a prompt costs does not depend on what was asked before. Raises CliError."""
    _call(f"{url}/flush_cache?timeout={TIMEOUT}", {}, is_text=True)


def ask_all(
    url: str,
    questions: Iterable[Question],
    policy: str | None,
    most: int,
    at_once: int,
    on_reply: Callable[[Question, Reply], object],
) -> None:
    """Ask a server all questions, with greedy decoding.

    url: of the server.
    questions: what to ask.
    policy: `exact`, a repair policy, or None for a server without RedKnot.
    most: tokens of an answer at most.
    at_once: requests in flight.
    on_reply: called with each reply as it comes.
    Raises CliError if a question gets no answer; replies to those in flight are still given to `on_reply`.
    """
    with ThreadPoolExecutor(at_once) as pool:
        waiting = {pool.submit(_ask, url, question, policy, most): question for question in questions}
        try:
            for future in as_completed(list(waiting)):
                on_reply(waiting.pop(future), future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            # What was in flight has been answered meanwhile.
            for future, question in waiting.items():
                if not future.cancelled() and future.exception() is None:
                    on_reply(question, future.result())
            raise


def _ask(url: str, question: Question, policy: str | None, most: int) -> Reply:
    sampling = {"temperature": 0, "max_new_tokens": most, "custom_params": _params(question, policy)}
    # Where the right answer is not known, answers are compared token by token, with their log-probabilities.
    body = {"input_ids": question.ids, "sampling_params": sampling, "return_logprob": question.score is None}
    answer = _call(url + "/generate", body)
    chosen = answer["meta_info"].get("output_token_logprobs") or ()
    report = answer["meta_info"].get("redknot")
    cost = None if report is None else Cost.of(report)
    return Reply(answer["text"], tuple(answer["output_ids"]), tuple(entry[0] for entry in chosen), cost)


def _params(question: Question, policy: str | None) -> dict[str, Any] | None:
    if policy is None:
        return None
    exact, segmented = MODES
    if policy == EXACT or not question.segments:
        return {MODE: exact}
    return {MODE: segmented, SEGMENTS: question.segments, REPAIR: policy}


def _call(url: str, body: Mapping[str, Any] | None, is_text: bool = False) -> dict[str, Any]:
    """The JSON of an answer, {} of one that is text. body: of a POST, or None for a GET."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return {} if is_text else dict(json.load(answer))
    except urllib.error.HTTPError as error:
        text = " ".join(error.read().decode(errors="replace").split())[:500]
        raise CliError(f"the server refused a request ({error.code}): {text}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise CliError(f"the server did not answer: {error}; --logs DIR keeps its log") from error
