# SPDX-License-Identifier: Apache-2.0
"""A Mooncake master of a test's own. Where Mooncake cannot be loaded the test fails, and says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval import mooncake
from redknot_sglang.errors import CliError

environment = mooncake.environment


def program() -> Path:
    """The master's program."""
    try:
        return mooncake.program()
    except CliError as error:
        pytest.fail(str(error))


class Master(mooncake.Master):
    """A master; see `eval/mooncake.py`."""

    def __init__(self, folder: Path) -> None:
        program()
        super().__init__(folder)
