# SPDX-License-Identifier: Apache-2.0
"""A store that fails rests, longer each time, and an outage is said once."""

from __future__ import annotations

import logging

import pytest

from redknot_sglang.store.rest import LONGEST, Rest


def test_it_rests_longer_each_time_and_not_after_something_worked(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    rest = Rest("nothing is read", lambda: now)
    assert rest.is_over and not rest.is_failing
    with caplog.at_level(logging.WARNING):
        for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
            rest.failed("it is gone")
            now += seconds - 0.1
            assert not rest.is_over
            now += 0.1
            assert rest.is_over and rest.is_failing
        rest.worked()
        rest.worked()
    assert rest.failures == 8 and LONGEST == 60 and not rest.is_failing
    rest.failed("again")
    now += 1
    assert rest.is_over
    said = [record.message for record in caplog.records]
    assert ["since it is gone" in said[0], "works again" in said[1], "since again" in said[2]] == [True] * 3
    assert len(said) == 3
