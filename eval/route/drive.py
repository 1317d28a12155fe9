# SPDX-License-Identifier: Apache-2.0
"""The same traffic through routers in front of real servers, which count themselves what they compute.

python -m eval.route.drive --servers URL,URL,... --router NAME=URL [--router NAME=URL ...] --tokenizer M [--rate R] [--json F]

All routers are in front of the same servers, which were started with --enable-metrics and which nobody else asks. They are taken
one after the other; before each, the servers' caches are emptied. A request has 16 documents of a corpus of 256 as text, under the policy `none`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from eval.provenance import origin
from eval.route.traffic import Arrival, Traffic, arrivals
from redknot_sglang.config import DEFAULT_SEPARATOR
from redknot_sglang.errors import CliError

POLICY = "none"
ROWS = re.compile(r'^redknot:segment_rows_total\{[^}]*kind="(\w+)"[^}]*\} ([0-9.e+]+)', re.MULTILINE)
# Rows that a server computed, documents alone or in their context.
COMPUTED = ("computed", "isolated")


@dataclass(frozen=True)
class Texts:
    """Documents, and a question for each request, as text.

    documents: all of the corpus. words: what questions are made of.
    """

    documents: Sequence[str]
    words: Sequence[str]

    def prompt(self, traffic: Traffic, arrival: Arrival, number: int) -> str:
        """A prompt with separators. number: of the request, which makes its question its own."""
        rng = random.Random(f"question {number}")
        question = " ".join(rng.choice(self.words) for _ in range(traffic.text_tokens))
        return DEFAULT_SEPARATOR.join(["", *(self.documents[one] for one in arrival.documents), question])


def make_texts(tokenizer: Any, traffic: Traffic) -> Texts:
    """Documents of random words, each of which is one token of the tokenizer behind a space."""
    rng = random.Random("corpus")
    decoded = (tokenizer.decode([token]) for token in sorted(tokenizer.get_vocab().values()))
    words = [text.strip() for text in decoded if re.fullmatch(" [a-z]+", text)]
    documents = [" ".join(rng.choices(words, k=traffic.document_tokens)) for _ in range(traffic.corpus)]
    return Texts(documents, words)


@dataclass(frozen=True)
class Sent:
    """A request and what became of it.

    at: when it was sent, in seconds of `time.monotonic()`. seconds: until its answer had ended.
    status: of HTTP; 0 if the connection broke.
    """

    at: float
    seconds: float
    status: int

    @property
    def failed(self) -> bool:
        """Whether it was not answered."""
        return self.status != 200


async def send(
    session: aiohttp.ClientSession,
    router: str,
    traffic: Traffic,
    texts: Texts,
    requests: Sequence[Arrival],
    first: int = 0,
) -> list[Sent]:
    """Send requests at their times, the first one now, and wait for all answers; what became of each, in their order.

    router: address of a router. first: number of the first request, by which questions differ.
    """
    begin = time.monotonic() - requests[0].at if requests else 0.0

    async def one(arrival: Arrival, number: int) -> Sent:
        await asyncio.sleep(max(0.0, begin + arrival.at - time.monotonic()))
        params = {"redknot_mode": "segmented", "redknot_repair": POLICY}
        sampling = {
            "temperature": 0,
            "max_new_tokens": traffic.answer_tokens,
            "ignore_eos": True,
            "custom_params": params,
        }
        at = time.monotonic()
        body = {"text": texts.prompt(traffic, arrival, number), "sampling_params": sampling}
        try:
            async with session.post(router + "/generate", json=body) as answer:
                await answer.read()
                status = answer.status
        except aiohttp.ClientError:
            status = 0
        return Sent(at, time.monotonic() - at, status)

    return list(await asyncio.gather(*(one(request, first + n) for n, request in enumerate(requests))))


async def drive(
    router: str,
    servers: Sequence[str],
    traffic: Traffic,
    texts: Texts,
    requests: Sequence[Arrival],
    warm: int,
    store: Path | None = None,
) -> dict[str, Any]:
    """Empty the servers, send the requests at their times, and read what the servers computed for them, as JSON.

    router: address of a router. servers: addresses of the servers behind it, which nobody else may ask.
    warm: requests at the beginning that are not counted; the others begin when these are answered.
    store: folder of the files that the servers share, which is emptied, too; then `store` says what came from there and how lookups
        ended. None if they share nothing.
    Raises CliError if a server does not count what it computes.
    """
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
        await _empty(session, servers, store)
        await send(session, router, traffic, texts, requests[:warm])
        before = [await _rows(session, server) for server in servers]
        had = await _store(session, servers) if store else Counter[str]()
        sent = await send(session, router, traffic, texts, requests[warm:], warm)
        after = [await _rows(session, server) for server in servers]
        has = await _store(session, servers) if store else had
    gained = [{kind: b.get(kind, 0) - a.get(kind, 0) for kind in b} for a, b in zip(before, after, strict=True)]
    work = [sum(rows.get(kind, 0) for kind in COMPUTED) for rows in gained]
    documents = sum(rows.get("relocated", 0) for rows in gained)
    if not documents:
        raise CliError("the servers counted no documents: start them with --enable-metrics")
    seconds = sorted(one.seconds for one in sent)
    used = {"store": {key: has[key] - had[key] for key in has if key != "pending"}} if store else {}
    return {
        "requests": len(sent),
        "failed": sum(one.failed for one in sent),
        "share_anew": round(sum(rows.get("isolated", 0) for rows in gained) / documents, 4),
        "max_over_mean": round(max(work) * len(work) / sum(work), 3),
        "work": work,
        "seconds_median": round(median(seconds), 3),
        "seconds_p99": round(seconds[int(0.99 * len(seconds))], 3),
        **used,
    }


async def _empty(session: aiohttp.ClientSession, servers: Sequence[str], store: Path | None) -> None:
    """Empty the servers' caches, and the folder that they share if there is one."""
    for server in servers:
        async with session.post(server + "/flush_cache", params={"timeout": 30}) as answer:
            answer.raise_for_status()
    if store:
        # What still waits to be written would come behind the end of the others. A server's own command to empty the store ends some time
        # after its answer, and fails on files that another server removes.
        while (await _store(session, servers))["pending"]:
            await asyncio.sleep(0.5)
        for file in store.iterdir():
            file.unlink()


async def _store(session: aiohttp.ClientSession, servers: Sequence[str]) -> Counter[str]:
    """What the servers together say of their store: paths that wait, objects and tokens that came, and lookups by how they ended.

    Raises CliError if one has no store, or no longer uses it.
    """
    found = Counter[str]()
    for server in servers:
        async with session.get(server + "/redknot/status") as answer:
            tiers = (await answer.json())["tiers"]
        store = tiers and tiers["store"]
        if not store or store["state"] != "working":
            raise CliError(f"{server} has no store that works: {store and store['state']}; see its log")
        found.update(
            pending=sum(store["pending"].values()), tokens=store["tokens"], objects_read=store["objects"]["read"]
        )
        found.update({f"lookups_{name}": count for name, count in store["lookups"].items()})
    return found


async def _rows(session: aiohttp.ClientSession, server: str) -> dict[str, float]:
    """Rows of segmented requests so far, by kind. Finished requests are counted a moment later, so this waits for a standstill."""
    last: dict[str, float] | None = None
    while True:
        async with session.get(server + "/metrics") as answer:
            found: dict[str, float] = {}
            for kind, value in ROWS.findall(await answer.text()):
                found[kind] = found.get(kind, 0) + float(value)
        if found == last:
            return found
        last = found
        await asyncio.sleep(1)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", required=True, help="addresses of the servers, with commas between")
    parser.add_argument("--router", action="append", required=True, metavar="NAME=URL", help="a router; once for each")
    parser.add_argument("--tokenizer", required=True, help="folder of the model")
    parser.add_argument("--topics", default="1,8", help="numbers of topics; 1: documents are independent (%(default)s)")
    parser.add_argument("--document-tokens", type=int, default=64, help="length of a document (%(default)s)")
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second (%(default)s)")
    parser.add_argument(
        "--requests", type=int, default=400, help="the first quarter of them is not counted (%(default)s)"
    )
    parser.add_argument("--json", type=Path, help="file for the result")
    args = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer, servers, found = AutoTokenizer.from_pretrained(args.tokenizer), args.servers.split(","), []
    for topics in map(int, args.topics.split(",")):
        traffic = Traffic(document_tokens=args.document_tokens, text_tokens=12, answer_tokens=4, topics=topics)
        requests, texts = list(arrivals(traffic, args.rate, args.requests, 0)), make_texts(tokenizer, traffic)
        for name, url in (router.split("=", 1) for router in args.router):
            outcome = asyncio.run(drive(url, servers, traffic, texts, requests, args.requests // 4))
            found.append({"router": name, "traffic": asdict(traffic), **outcome})
            print(json.dumps(found[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"origin": origin(args), "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
