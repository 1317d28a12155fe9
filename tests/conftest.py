# SPDX-License-Identifier: Apache-2.0
"""Servers shared by all serving tests: one start costs tens of seconds on two cores."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler.loadfile import LoadFileScheduling

from redknot_sglang.cpu import has_cuda_driver, install_kernel_stand_in
from tests.serving import harness
from tests.serving.harness import Server
from tests.serving.shared import SharedServers

# Tests of pools and tree import SGLang in this process; it looks at this variable when it is imported.
if install_kernel_stand_in():
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")

# How long an example takes depends on what else the cores do, and is not what a test is about.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("full", settings.get_profile("suite"), max_examples=500)
settings.load_profile("suite")

# Files that take half a minute or more, the longest first.
_LONG = (
    "tests/serving/test_sglang_kits.py",
    "tests/serving/test_host_tier.py",
    "tests/serving/test_speculation.py",
    "tests/serving/test_eagle.py",
    "tests/serving/test_prefill_decode_ends.py",
    "tests/serving/test_question.py",
    "tests/serving/test_segments.py",
    "tests/serving/test_tensor_parallel.py",
    "tests/kernels/test_triton_interpreted.py",
    "tests/serving/test_fp8.py",
    "tests/serving/test_conversations.py",
    "tests/serving/test_stress.py",
    "tests/serving/test_examples.py",
    "tests/serving/test_input_logprobs.py",
    "tests/serving/test_bad_input.py",
    "tests/serving/test_host_tier_ranks.py",
    "tests/serving/test_storage.py",
    "tests/serving/test_retention.py",
    "tests/serving/test_capacity.py",
    "tests/serving/test_mooncake.py",
    "tests/serving/test_fp8_elsewhere.py",
    "tests/serving/test_calibrate.py",
    "tests/serving/test_prefill_decode.py",
    "tests/radix/test_host_property.py",
    "tests/serving/test_prefill_decode_ranks.py",
    "tests/serving/test_segment_pressure.py",
    "tests/kernels/test_extend_torch.py",
    "tests/serving/test_updates.py",
    "tests/test_start_memory.py",
    "tests/serving/test_tokenizer_workers.py",
    "tests/hooks/test_workers.py",
    "tests/serving/test_windowed_map.py",
    "tests/serving/test_experts.py",
    "tests/serving/test_segments_api.py",
    "tests/serving/test_demo_command.py",
    "tests/serving/test_compose.py",
    "tests/certificate/test_start.py",
)
# Files whose tests ask the same shared servers run on one worker: by the name of one of them.
_TOGETHER = {
    "tests/serving/test_release.py": "tests/serving/test_sglang_kits.py",
    "tests/serving/test_sessions.py": "tests/serving/test_sglang_kits.py",
    "tests/serving/test_status.py": "tests/serving/test_sglang_kits.py",
    "tests/serving/test_stock_parity.py": "tests/serving/test_sglang_kits.py",
    "tests/serving/test_eval_command.py": "tests/serving/test_sglang_kits.py",
    "tests/eval/gpu/test_bench_gpu.py": "tests/serving/test_sglang_kits.py",
    "tests/serving/test_segment_requests.py": "tests/serving/test_segments_api.py",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--full`: the size of `make test-nightly` (100 prompts, 200 conversations, whole grids); over an hour."""
    parser.addoption("--full", action="store_true", help="all cases at full size, not a daily sample (over an hour)")


def pytest_configure(config: pytest.Config) -> None:
    """More examples of properties at full size, where a test does not say how many."""
    settings.load_profile("full" if config.getoption("--full") else "suite")


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether tests run at full size, as in `make test-nightly`."""
    return bool(request.config.getoption("--full"))


class Files(LoadFileScheduling):
    """A file stays on one worker, and so do files that are listed together."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return _TOGETHER.get(file, file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Files | None:
    """Which worker runs what: `--dist loadfile` with the files of `_TOGETHER` as one."""
    return Files(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip GPU tests without a GPU, leave out `full` ones unless asked for, and put the files in order."""
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
    if not has_cuda_driver():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    items.sort(key=lambda item: _place(item.path.relative_to(config.rootpath).as_posix()))


def _place(file: str) -> tuple[int, str]:
    """Position of a test file: those that take minutes come first, so that no worker is left with one at the end."""
    file = _TOGETHER.get(file, file)
    return _LONG.index(file) if file in _LONG else len(_LONG), file


@pytest.fixture(autouse=True)
def no_log_is_left() -> Iterator[None]:
    """What a test calls may set up logging, SGLang's reading of flags too. Such a log goes to the test's captured output,
    which is closed at its end: whatever logs in a later test would print a traceback.
    """
    level = logging.root.level
    _close_logs()
    yield
    _close_logs()
    logging.root.setLevel(level)


def _close_logs() -> None:
    """Remove handlers made by `logging.basicConfig`; pytest's own are of other classes."""
    for handler in [found for found in logging.root.handlers if type(found) is logging.StreamHandler]:
        logging.root.removeHandler(handler)


@pytest.fixture(scope="session")
def servers() -> Iterator[SharedServers]:
    """Servers that tests share, by their flags."""
    with SharedServers() as running:
        yield running


@pytest.fixture
def stock_server(servers: SharedServers) -> Server:
    """SGLang without --redknot on the embedded model, its cache empty."""
    return servers.get()


@pytest.fixture
def redknot_server(servers: SharedServers) -> Server:
    """SGLang --redknot on the embedded model with its shipped head map, its cache empty."""
    return servers.get("--redknot", f"--redknot-head-map={harness.HEAD_MAP}", "--redknot-context-length=1024")


@pytest.fixture
def all_global_server(servers: SharedServers) -> Server:
    """SGLang --redknot on the embedded model with every head global (what stock computes), its cache empty."""
    return servers.get("--redknot", f"--redknot-head-map={harness.ALL_GLOBAL}")
