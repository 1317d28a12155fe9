# SPDX-License-Identifier: Apache-2.0
"""Servers shared by all serving tests: one start costs tens of seconds on two cores."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from redknot_sglang.cpu import has_cuda_driver, install_kernel_stand_in
from tests.serving import harness

# Tests of pools and tree import SGLang in this process; it looks at this variable when it is imported.
if install_kernel_stand_in():
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")

# How long an example takes depends on what else the cores do, and is not what a test is about.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# Files of serving tests by what they take. A file stays on one worker (--dist loadfile).
_LONG = (
    "test_segments.py",
    "test_sglang_kits.py",
    "test_windowed_map.py",
    "test_conversations.py",
    "test_capacity.py",
    "test_calibrate.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--full`: acceptance size (100 prompts, 200 conversations, the whole grid) instead of a sample; over an hour."""
    parser.addoption("--full", action="store_true", help="tests at acceptance size, not as a sample (over an hour)")


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether tests run at acceptance size."""
    return bool(request.config.getoption("--full"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip GPU tests without a GPU, leave out `full` ones unless asked for, and run the quick tests first."""
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
    if not has_cuda_driver():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    items.sort(key=lambda item: (item.get_closest_marker("serving") is not None, _place(item)))


def _place(item: pytest.Item) -> int:
    """Position of a test's file: those that take minutes come first, so that no worker is left with one at the end."""
    return _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG)


@pytest.fixture(scope="session")
def stock_server() -> Iterator[harness.Server]:
    """SGLang without --redknot on the embedded model. Flush its cache where a test counts hits."""
    with harness.launch() as server:
        yield server


@pytest.fixture(scope="session")
def redknot_server() -> Iterator[harness.Server]:
    """SGLang --redknot on the embedded model with its shipped head map."""
    args = ["--redknot", f"--redknot-head-map={harness.HEAD_MAP}", "--redknot-context-length=1024"]
    with harness.launch(args) as server:
        yield server


@pytest.fixture(scope="session")
def all_global_server() -> Iterator[harness.Server]:
    """SGLang --redknot on the embedded model with every head global: what stock SGLang computes."""
    with harness.launch(["--redknot", f"--redknot-head-map={harness.ALL_GLOBAL}"]) as server:
        yield server
