# SPDX-License-Identifier: Apache-2.0
"""A test that sets up logging, as SGLang's servers do, does not change what later tests print."""

from __future__ import annotations

import logging

import pytest


@pytest.mark.parametrize("time", ["first", "second"])
def test_logging_of_an_earlier_test_is_gone(time: str, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("redknot_sglang.tests")
    logger.warning("before %s", time)
    assert "before" not in capsys.readouterr().err
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    logger.warning(time)
    assert capsys.readouterr().err.splitlines() == [time]
