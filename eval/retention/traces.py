# SPDX-License-Identifier: Apache-2.0
"""Traffic in the form of Mooncake's published traces, from a file or made up.

A line is a request: `timestamp` in milliseconds, `input_length` and `output_length` in tokens, and `hash_ids`, one number for
each block of 512 tokens of the input, the last of which may be shorter. Equal numbers mean the same block behind the same
blocks. Only the order of requests matters here.

A segmented request has one more field, `documents`: of each, the place of its first block in `hash_ids`, and numbers for its blocks as
they are by themselves, the same wherever it stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from eval.retention.maker import Maker, zipf
from eval.retention.segmented import SEGMENTED

BLOCK = 512  # tokens
_ANSWER = 128  # tokens; nothing here depends on it


@dataclass(frozen=True)
class Request:
    """A line of a trace."""

    timestamp: int
    input_length: int
    output_length: int
    hash_ids: list[int]
    documents: list[tuple[int, list[int]]] = field(default_factory=list)

    def blocks(self) -> list[tuple[int, int]]:
        """Name and tokens of each block."""
        return [(name, min(BLOCK, self.input_length - i * BLOCK)) for i, name in enumerate(self.hash_ids)]


def read(path: Path) -> list[Request]:
    """Requests of a file, without those that have no whole block.

    Raises ValueError for a line that is not a request.
    """
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            known = [row[name] for name in ("timestamp", "input_length", "output_length", "hash_ids")]
            documents = [(first, names) for first, names in row.get("documents", [])]
            request = Request(known[0], known[1], known[2], known[3], documents)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path.name}, line {number} is no request of a Mooncake trace: {error!r}") from error
        if any(first + len(names) > len(request.hash_ids) for first, names in request.documents):
            raise ValueError(f"{path.name}, line {number}: a document ends behind the last block")
        if request.hash_ids and not (len(request.hash_ids) - 1) * BLOCK < request.input_length:
            raise ValueError(
                f"{path.name}, line {number}: {request.input_length} tokens in {len(request.hash_ids)} blocks"
            )
        if request.hash_ids:
            found.append(request)
    return found


def write(path: Path, requests: list[Request]) -> None:
    """Write requests as a trace."""
    rows = [{name: value for name, value in asdict(request).items() if value != []} for request in requests]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _documents(seed: int, requests: int, exponent: float, shuffle: int = 0) -> Iterator[list[int]]:
    maker, weights = Maker(seed), zipf(2000, exponent)
    known = maker.documents(2000)
    for number in range(requests):
        if shuffle and number and number % shuffle == 0:
            maker.rng.shuffle(known)
        yield maker.rng.choices(known, cum_weights=weights)[0] + maker.new(1)


def documents(seed: int, requests: int) -> Iterator[list[int]]:
    """2,000 documents, popular as 1 / rank, each time with another question."""
    return _documents(seed, requests, 1.0)


def flat_documents(seed: int, requests: int) -> Iterator[list[int]]:
    """The same, popular as 1 / rank ** .8."""
    return _documents(seed, requests, 0.8)


def drifting(seed: int, requests: int) -> Iterator[list[int]]:
    """Flat documents; every 2,000 requests others are popular."""
    return _documents(seed, requests, 0.8, 2000)


def fast_drifting(seed: int, requests: int) -> Iterator[list[int]]:
    """Documents; every 500 requests others are popular."""
    return _documents(seed, requests, 1.0, 500)


def news(seed: int, requests: int) -> Iterator[list[int]]:
    """Documents; every 50 requests a new one is among the 20 most popular, and the others move down."""
    maker, weights = Maker(seed), zipf(2000, 1.0)
    known = maker.documents(2000)
    for number in range(requests):
        if number % 50 == 49:
            known.insert(maker.rng.randrange(20), maker.documents(1)[0])
            known.pop()
        yield maker.rng.choices(known, cum_weights=weights)[0] + maker.new(1)


def conversations(seed: int, requests: int) -> Iterator[list[int]]:
    """60 conversations at a time behind 3 system prompts; the later one spoke last, the likelier it goes on."""
    maker, open_at_once = Maker(seed), 60
    rng, systems, live = maker.rng, [maker.new(1) for _ in range(3)], list[list[int]]()
    for _ in range(requests):
        if len(live) < open_at_once or rng.random() < 0.25:
            path = rng.choice(systems) + maker.new(rng.choice((1, 2, 4, 12, 30)))
            if len(live) == open_at_once:
                live.pop(rng.randrange(open_at_once))
        else:
            back = int(rng.expovariate(4 / open_at_once))
            path = live.pop(max(0, len(live) - 1 - back)) + maker.new(rng.choice((1, 1, 2, 4)))
        live.append(path)
        yield path


def agents(seed: int, requests: int) -> Iterator[list[int]]:
    """20 agents at a time, each with one of 40 long prefixes, take up to 15 steps that append to their prompt."""
    maker, weights = Maker(seed), zipf(40, 0.8)
    rng, live = maker.rng, list[tuple[list[int], int]]()
    prefixes = [maker.new(rng.choice((4, 8, 16))) for _ in range(40)]
    for _ in range(requests):
        if len(live) < 20:
            live.append((rng.choices(prefixes, cum_weights=weights)[0] + maker.new(1), rng.randrange(1, 15)))
        path, left = live.pop(rng.randrange(len(live)))
        if left > 1:
            live.append((path + maker.new(rng.choice((1, 1, 2, 6))), left - 1))
        yield path


def scans(seed: int, requests: int) -> Iterator[list[int]]:
    """300 documents, and now and then 20 long prompts that come once."""
    maker, weights = Maker(seed), zipf(300, 0.9)
    known, made = maker.documents(300), 0
    while made < requests:
        if maker.rng.random() < 0.02:
            for _ in range(min(20, requests - made)):
                made += 1
                yield maker.new(16)
        else:
            made += 1
            yield maker.rng.choices(known, cum_weights=weights)[0] + maker.new(1)


PLAIN: dict[str, Callable[[int, int], Iterator[list[int]]]] = {
    "conversations": conversations,
    "documents": documents,
    "flat_documents": flat_documents,
    "drifting": drifting,
    "fast_drifting": fast_drifting,
    "news": news,
    "agents": agents,
    "scans": scans,
}


MADE = (*PLAIN, *SEGMENTED)


def make(kind: str, seed: int, requests: int) -> list[Request]:
    """A made-up trace.

    kind: a key of MADE.
    seed: of the random numbers.
    requests: how many.
    """
    if kind in SEGMENTED:
        made = SEGMENTED[kind](seed, requests)
    else:
        made = ((path, []) for path in PLAIN[kind](seed, requests))
    return [Request(100 * i, BLOCK * len(path), _ANSWER, path, documents) for i, (path, documents) in enumerate(made)]
