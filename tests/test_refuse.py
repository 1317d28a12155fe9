# SPDX-License-Identifier: Apache-2.0
"""A refusal in a scheduler process ends all that wait for it."""

from __future__ import annotations

import multiprocessing
import signal
import time

import pytest

from redknot_sglang.errors import RedKnotError
from redknot_sglang.refuse import REFUSED, has_refused, one_line

SPAWN = multiprocessing.get_context("spawn")


def _scheduler(data_parallel: bool) -> None:
    with one_line(data_parallel):
        raise RedKnotError("too large; lower it")


def _controller(ranks: int) -> None:
    """As SGLang's: it never looks whether the schedulers live."""
    for process in [SPAWN.Process(target=_scheduler, args=(True,)) for _ in range(ranks)]:
        process.start()
    time.sleep(600)


def test_a_scheduler_says_why_and_ends(capfd: pytest.CaptureFixture[str]) -> None:
    process = SPAWN.Process(target=_scheduler, args=(False,))
    process.start()
    process.join(60)
    assert process.exitcode == REFUSED and has_refused(process.exitcode)
    assert capfd.readouterr().err.splitlines() == ["redknot: error: too large; lower it"]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_data_parallel_controller_does_not_wait_for_ever(ranks: int, capfd: pytest.CaptureFixture[str]) -> None:
    process = SPAWN.Process(target=_controller, args=(ranks,))
    process.start()
    process.join(120)
    try:
        assert process.exitcode is not None, "it still waits"
    finally:
        process.kill()
    assert has_refused(process.exitcode)
    # Those that come later find their parent gone and must not end whoever is their parent then.
    time.sleep(1)
    said = capfd.readouterr().err.splitlines()
    assert said and all(line == "redknot: error: too large; lower it" for line in said)


def test_other_ends_are_no_refusals() -> None:
    assert not any(has_refused(code) for code in (None, 0, 1, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGQUIT))
    with one_line(True):
        pass
    with pytest.raises(ZeroDivisionError), one_line(False):
        raise ZeroDivisionError
