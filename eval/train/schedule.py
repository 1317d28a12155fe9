# SPDX-License-Identifier: Apache-2.0
"""What is trained when: lengths, isolation, copying, supervision and learning rate over a run's progress."""

from __future__ import annotations

from dataclasses import dataclass

from eval.train.data import Mix


@dataclass(frozen=True)
class Schedule:
    """A run, by progress from 0 to 1.

    phases: (end of the phase, its mix).
    supervised: progress up to which the auxiliary loss has its full weight, and at which it is gone.
    decay_from: progress at which the learning rate starts to fall linearly to zero.
    """

    phases: tuple[tuple[float, Mix], ...]
    supervised: tuple[float, float]
    decay_from: float

    def mix(self, progress: float) -> Mix:
        """Mix of the phase that `progress` lies in."""
        return next((mix for end, mix in self.phases if progress < end), self.phases[-1][1])

    def supervision(self, progress: float) -> float:
        """Share of the auxiliary loss's full weight."""
        full, gone = self.supervised
        return min(1.0, max(0.0, (gone - progress) / (gone - full)))

    def rate(self, progress: float, step: int, warm_up: int = 100) -> float:
        """Share of the full learning rate."""
        decay = (1 - progress) / (1 - self.decay_from)
        return min(1.0, (step + 1) / warm_up) * max(0.01, min(1.0, decay))


SCHEDULES = {
    # From nothing to 4K tokens.
    "start": Schedule(
        phases=(
            (0.10, Mix(((256, 1.0),), isolated=0.0, copied=0.3)),
            (0.30, Mix(((256, 0.2), (512, 0.8)), isolated=0.3, copied=0.2)),
            (0.50, Mix(((512, 0.5), (1024, 0.5)), isolated=0.4, copied=0.1)),
            (0.75, Mix(((512, 0.2), (1024, 0.4), (2048, 0.4)), isolated=0.35, copied=0.05)),
            (1.00, Mix(((1024, 0.3), (2048, 0.4), (4096, 0.3)), isolated=0.35, copied=0.03)),
        ),
        supervised=(0.45, 0.6),
        decay_from=0.5,
    ),
    # From a checkpoint of `start` to 8K tokens.
    "lengthen": Schedule(
        phases=(
            (0.30, Mix(((512, 0.2), (1024, 0.4), (2048, 0.4)), isolated=0.35, copied=0.05)),
            (0.70, Mix(((1024, 0.2), (2048, 0.4), (4096, 0.4)), isolated=0.35, copied=0.03)),
            (1.00, Mix(((1024, 0.1), (2048, 0.3), (4096, 0.45), (8192, 0.15)), isolated=0.35, copied=0.02)),
        ),
        supervised=(0.1, 0.3),
        decay_from=0.3,
    ),
    # Small enough for a CPU: shows in minutes whether a change still trains.
    "toy": Schedule(
        phases=((0.5, Mix(((256, 1.0),), isolated=0.0, copied=0.3)), (1.0, Mix(((256, 1.0),), 0.35, 0.1))),
        supervised=(0.6, 0.75),
        decay_from=0.5,
    ),
}
