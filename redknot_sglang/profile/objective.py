# SPDX-License-Identifier: Apache-2.0
"""What a head map is judged by: the loss on given answers, or how far the map leads the model away from its own
behaviour.

Both are numbers of nats per token, and both should be least with all heads global. The second one is: the model's
distance from its own dense behaviour is 0 then. The first one need not be: on pretrained models the loss on somebody
else's answers may *fall* when heads turn local. A map would then be chosen for fitting the answers of a data set, not
for changing the model little.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from redknot_sglang.errors import ProfileError
from redknot_sglang.profile.data import Example
from redknot_sglang.profile.model import LOGIT_ROWS, ProfiledModel, dense

OWN, ANSWERS = "own", "answers"
TARGETS = (OWN, ANSWERS)


class Objective(ABC):
    """A way to score what a model does with an example under a map. name: one of TARGETS."""

    name: str

    def loss(self, model: ProfiledModel, x: Tensor, example: Example) -> tuple[float, bool]:
        """Mean over the example's rows, in nats, and whether each of them has the most likely token that it should
        have.

        x: [T, d], hidden states after the last layer under the map.
        Raises ProfileError if the loss is infinite or no number.
        """
        rows = predicting(x, example)
        total = torch.zeros((), dtype=torch.float64, device=model.device)
        right = torch.ones((), dtype=torch.bool, device=model.device)
        for begin in range(0, len(rows), LOGIT_ROWS):
            some = slice(begin, begin + LOGIT_ROWS)
            nats, same = self._score(model, model.logits(rows[some]), example, some)
            total += nats.sum(dtype=torch.float64)
            right &= same.all()
        mean = float(total) / len(rows)
        if not math.isfinite(mean):
            raise ProfileError(
                f"the loss of a prompt of {len(example.ids)} tokens is {mean}: try --dtype bfloat16 or float32"
            )
        return mean, bool(right)

    def counts(self, example: Example) -> bool:
        """Whether the example has something that may come out right or wrong."""
        return example.has_answer

    @abstractmethod
    def _score(self, model: ProfiledModel, logits: Tensor, example: Example, some: slice) -> tuple[Tensor, Tensor]:
        """Nats [R] and whether the most likely token is the wanted one, bool [R], of the rows `some` of the example.

        logits: float32 [R, vocabulary].
        """


class GivenAnswers(Objective):
    """Cross entropy of the tokens from `first` on: the given answer, or all tokens of an example that has none."""

    name = ANSWERS

    def _score(self, model: ProfiledModel, logits: Tensor, example: Example, some: slice) -> tuple[Tensor, Tensor]:
        wanted = torch.tensor(example.ids[example.first :][some], device=model.device)
        return cross_entropy(logits, wanted, reduction="none"), logits.argmax(-1) == wanted


class OwnBehaviour(Objective):
    """KL(dense || map) over the whole vocabulary, in float32, at the rows that predict the tokens from `first` on.

    The data say which tokens these are (`own.py`). Of dense attention the hidden states are kept and not the
    distributions, which would take far more memory: they are computed anew, by one product with the output layer.
    """

    name = OWN

    def __init__(self) -> None:
        self._known: dict[tuple[int, tuple[int, ...], int], Tensor] = {}

    def wanted(self, model: ProfiledModel, example: Example) -> Tensor:
        """Hidden states [R, d] of dense attention at the example's rows. Only the first call for an example runs the
        model.
        """
        key = (id(model), example.ids, example.first)
        if key not in self._known:
            x, tables = model.embed(example.ids)
            self._known[key] = predicting(model.run(x, tables, dense), example).clone()
        return self._known[key]

    def counts(self, example: Example) -> bool:
        return True

    def _score(self, model: ProfiledModel, logits: Tensor, example: Example, some: slice) -> tuple[Tensor, Tensor]:
        wanted = model.logits(self.wanted(model, example)[some])
        return divergence(wanted, logits), logits.argmax(-1) == wanted.argmax(-1)


def divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """KL(wanted || found) in nats, [R], of logits [R, vocabulary] in float32. Can be differentiated in `found`."""
    p, q = wanted.log_softmax(-1), found.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def predicting(x: Tensor, example: Example) -> Tensor:
    """Of rows [T, ..] of an example those that predict its tokens from `first` on."""
    return x[example.first - 1 : len(example.ids) - 1]


def make_objective(name: str) -> Objective:
    """The objective of that name, one of TARGETS."""
    return OwnBehaviour() if name == OWN else GivenAnswers()
