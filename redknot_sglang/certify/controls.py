# SPDX-License-Identifier: Apache-2.0
"""Controls: other ways to choose documents, to set beside what a policy that selects documents (`question:N`) chooses.

For a control the client chooses which documents it keeps, and sends the prompt without the others. The policy chooses
inside the server, which then computes just such a prompt in exact mode (`reuse/selection.py`). So where both keep the
same documents they make the same request, and what is compared is the choice alone.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from redknot_sglang.certify.questions import Question, contains_any
from redknot_sglang.errors import CliError, RedKnotError
from redknot_sglang.plan.options import MODE, REPAIR, SEGMENTS, make_plan
from redknot_sglang.plan.policies import parse_repair

NOTHING = "no-documents"
# How the flag may write it, too.
_SHORT = "none"


@dataclass(frozen=True)
class Control:
    """A way of choosing documents without the model.

    kind: a name of CHOICES, or NOTHING.
    documents: how many are kept; 0 for NOTHING.
    """

    kind: str
    documents: int

    @property
    def name(self) -> str:
        """As certificates write it, `bm25:2`."""
        return self.kind if self.kind == NOTHING else f"{self.kind}:{self.documents}"

    def kept(self, question: Question, seed: int) -> list[int]:
        """Numbers of the documents that stay, ascending; all of them where there are no more than that.

        question: with documents or without.
        seed: of random choices, which differ from question to question.
        """
        if self.kind == NOTHING or not question.documents:
            return []
        order = CHOICES[self.kind](question, random.Random(f"{seed} {question.ids}"))
        return sorted(order[: self.documents])

    def ask(self, question: Question, seed: int) -> Question:
        """The question as a prompt of exact mode: without the documents that do not stay. Parameters as in `kept`."""
        return without_others(question, self.kept(question, seed))


def parse_controls(text: str) -> list[Control]:
    """Controls of a list such as `bm25:2,random:2,no-documents`, each once. Raises CliError."""
    return list(dict.fromkeys(_parse(word.strip()) for word in text.split(",")))


def _parse(word: str) -> Control:
    if word in (NOTHING, _SHORT):
        return Control(NOTHING, 0)
    kind, _, number = word.partition(":")
    try:
        # As many as the policy that it is compared with may keep.
        policy = parse_repair(f"question:{number}")
    except RedKnotError:
        policy = None
    if kind not in CHOICES or policy is None:
        known = ", ".join(f"{kind}:N" for kind in CHOICES)
        raise CliError(
            f"--controls: {word!r} is none; use some of {known}, {NOTHING}, with N documents to keep, at least 1"
        )
    return Control(kind, policy.documents)


def without_others(question: Question, kept: Sequence[int]) -> Question:
    """A question whose prompt has no other documents than these, and no segments: what `question:N` leaves of it.

    question: the whole one.
    kept: numbers of documents.
    """
    ids = question.ids
    # The server's own arithmetic: no document has the prompt's last token, and those without tokens are none.
    plan = make_plan({MODE: "segmented", SEGMENTS: question.segments, REPAIR: "question:1"}, len(ids))
    if plan is not None:
        number = {start: number for number, start in enumerate(question.segments[::2])}
        left = [at for at, (start, _) in enumerate(plan.segments) if number[start] in kept]
        ids = tuple(ids[position] for position in plan.left(left, len(ids)).tolist())
    return replace(question, ids=ids, segments=(), documents=())


def by_words(question: Question, chance: random.Random) -> list[int]:
    """All documents, ordered by how well their words match the question's (BM25, stemmed as English), best first; equal
    ones in the prompt's order.

    question: with its documents, and the text that asks.
    chance: not used.
    Raises CliError if the library is not there.
    """
    try:
        # Where JAX is installed, the library makes JAX ready as it is imported, which takes three quarters of a GPU's memory from
        # the server that is to be asked. What is used of the library here does without.
        with _not_found("jax"):
            import bm25s
        from Stemmer import Stemmer
    except ImportError as error:
        raise CliError(
            f"--controls bm25 needs {error.name}: install what measuring needs, pip install 'redknot-sglang[measure]'"
        ) from None
    *documents, asks = bm25s.tokenize(
        [*question.documents, question.asks],
        stopwords="en",
        stemmer=Stemmer("english"),
        return_ids=False,
        show_progress=False,
    )
    scores = [0.0] * len(documents)
    # The library takes neither a corpus nor a question without words.
    if asks and any(documents):
        index = bm25s.BM25()
        index.index(documents, show_progress=False)
        scores = index.get_scores(asks).tolist()
    return sorted(range(len(documents)), key=lambda number: -scores[number])


@contextmanager
def _not_found(package: str) -> Iterator[None]:
    """A package that nobody has imported yet cannot be imported inside the context."""
    hidden = package not in sys.modules
    if hidden:
        # What Python's import takes for a module that is known not to be there.
        sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[package]


def by_chance(question: Question, chance: random.Random) -> list[int]:
    """All documents in random order.

    question: with its documents.
    chance: gives the order.
    """
    return chance.sample(range(len(question.documents)), len(question.documents))


def by_answer(question: Question, chance: random.Random) -> list[int]:
    """All documents, those first that contain a right answer (by the rule that completions are judged by); otherwise in
    the prompt's order.

    question: with its documents, and its answers, of which there may be none.
    chance: not used.
    """
    tells = [contains_any(question.answers, document) for document in question.documents]
    return sorted(range(len(tells)), key=lambda number: not tells[number])


CHOICES: dict[str, Callable[[Question, random.Random], list[int]]] = {
    "bm25": by_words,
    "random": by_chance,
    "oracle": by_answer,
}
