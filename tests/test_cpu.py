# SPDX-License-Identifier: Apache-2.0
"""The stand-in for sgl_kernel: all can be imported, and kernels of speculative decoding can be called."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.cpu import STAND_IN


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": STAND_IN}, capture_output=True, text=True)


def test_everything_imports() -> None:
    done = run(
        "import sgl_kernel; from sgl_kernel.flash_attn import anything; from sgl_kernel import x; sgl_kernel.y.z"
    )
    assert done.returncode == 0, done.stderr


def test_calling_a_kernel_says_what_is_missing() -> None:
    done = run("import sgl_kernel; sgl_kernel.rmsnorm(1)")
    assert done.returncode != 0
    assert "sgl_kernel.rmsnorm needs a CUDA GPU" in done.stderr


SIZE = 5
# The parent of each node of a draft behind the first.
TREES = st.tuples(*(st.integers(0, node) for node in range(SIZE - 1)))


@cache
def kernels(name: str = "speculative") -> Any:
    """The stand-in's kernels of speculative decoding, also where the real ones can be imported."""
    package = sys.modules.setdefault("written_kernels", ModuleType("written_kernels"))
    package.__path__ = [str(Path(STAND_IN) / "sgl_kernel")]
    return import_module(f"written_kernels.{name}")


def test_kernels_of_speculative_decoding_are_there() -> None:
    done = run(
        "import sys, types; sys.modules['torch'] = types.SimpleNamespace(Tensor=None)\n"
        "from sgl_kernel import verify_tree_greedy_cpu as found\n"
        "from sgl_kernel.speculative import verify_tree_greedy_cpu as same\n"
        "assert found is same"
    )
    assert done.returncode == 0, done.stderr


@given(trees=st.lists(TREES, min_size=1, max_size=3), data=st.data())
def test_the_accepted_path_of_a_draft_is_the_one_that_the_model_goes(
    trees: list[tuple[int, ...]], data: st.DataObject
) -> None:
    requests, count = len(trees), len(trees) * SIZE
    mask = torch.zeros(requests, SIZE, SIZE, dtype=torch.bool)
    for own, parents in zip(mask, trees, strict=True):
        for node, parent in enumerate((0, *parents)):
            own[node] |= own[parent]
            own[node, node] = True
    lens = torch.tensor(data.draw(st.lists(st.integers(1, 50), min_size=requests, max_size=requests)))
    positions, rows, children, siblings = (
        torch.empty(shape, dtype=torch.int64) for shape in (count, *3 * ((requests, SIZE),))
    )
    kernels().reconstruct_indices_from_tree_mask(
        mask.view(-1), lens, positions, rows, children, siblings, requests, SIZE
    )
    assert rows.flatten().tolist() == list(range(count))
    few = st.lists(st.integers(0, 2), min_size=count, max_size=count)
    tokens, choices = (torch.tensor(data.draw(few)).view(requests, SIZE) for _ in range(2))
    predicts = torch.zeros(count, dtype=torch.int32)
    accepted = torch.full((requests, SIZE), -1, dtype=torch.int32)
    counts = torch.empty(requests, dtype=torch.int32)
    kernels().verify_tree_greedy_cpu(predicts, accepted, counts, tokens, rows, children, siblings, choices)
    for request, parents in enumerate(trees):
        path, depth = [0], [0]
        for parent in parents:
            depth.append(depth[parent] + 1)
        assert positions.view(requests, SIZE)[request].tolist() == [int(lens[request]) + each for each in depth]
        while True:
            below = [node for node, parent in enumerate(parents, start=1) if parent == path[-1]]
            fitting = [node for node in below if tokens[request, node] == choices[request, path[-1]]]
            if not fitting:
                break
            path.append(fitting[0])
        assert accepted[request].tolist() == [request * SIZE + node for node in path] + [-1] * (SIZE - len(path))
        assert counts[request] == len(path) - 1
        for node in path:
            assert predicts[request * SIZE + node] == choices[request, node]


def test_a_draft_models_candidates_become_a_tree() -> None:
    """Two steps of two candidates each: the root's are 0 and 1; those behind 1 are 4 and 5, of which 5 is left out."""
    make, count = kernels("drafting").build_tree_kernel_efficient_cpu, 4
    shapes = (count * count, count, (1, count), (1, count), (1, count))
    mask, positions, rows, children, siblings = (torch.zeros(shape, dtype=torch.int64) for shape in shapes)
    mask = mask.bool()
    parents, selected = torch.tensor([[-1, 0, 1]]), torch.tensor([[0, 1, 4]])
    make(parents, selected, torch.tensor([7]), mask, positions, rows, children, siblings, 2, 2, count, 1)
    assert mask.view(count, count).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    assert positions.tolist() == [7, 8, 8, 9]
    assert children.tolist() == [[1, -1, 3, -1]] and siblings.tolist() == [[-1, 2, -1, -1]]
    with pytest.raises(ValueError, match="tree_mask_mode 0 is for GPUs"):
        make(parents, selected, torch.tensor([7]), mask, positions, rows, children, siblings, 2, 2, count, 0)


def test_a_draft_models_candidates_become_chains() -> None:
    make, size, steps = kernels("drafting").build_tree_kernel_efficient_cpu, 4, 3
    parents, selected = torch.arange(-1, steps - 1).repeat(2, 1), torch.arange(steps).repeat(2, 1)
    shapes = (2 * size, (2, size), (2, size), (2, size))
    mask = torch.zeros(2 * size * size, dtype=torch.bool)
    positions, rows, children, siblings = (torch.zeros(shape, dtype=torch.int64) for shape in shapes)
    make(parents, selected, torch.tensor([3, 9]), mask, positions, rows, children, siblings, 1, steps, size, 1)
    assert torch.equal(mask.view(2, size, size), torch.ones(2, size, size).tril().bool())
    assert positions.tolist() == [3, 4, 5, 6, 9, 10, 11, 12]
    assert children.tolist() == 2 * [[1, 2, 3, -1]] and siblings.tolist() == 2 * [size * [-1]]


def test_slots_of_chains_and_last_tokens() -> None:
    table, found = torch.arange(24).view(3, 8), torch.zeros(4, dtype=torch.int64)
    kernels("drafting").assign_draft_cache_locs_contiguous_cpu(
        torch.tensor([2, 0]), table, torch.tensor([1, 5]), found, 8, 1, 2
    )
    assert found.tolist() == [17, 18, 5, 6]
    last = torch.zeros(2, dtype=torch.int32)
    kernels("drafting").fill_bonus_tokens_cpu(torch.arange(6), torch.tensor([1, 3]), last, 3)
    assert last.tolist() == [0, 5]


def test_slots_are_copied_in_all_buffers_at_once() -> None:
    buffers = [torch.arange(12.0).view(6, 2), torch.arange(6, dtype=torch.int16).view(6, 1)]
    addresses = torch.tensor([buffer.data_ptr() for buffer in buffers], dtype=torch.uint64)
    sizes = torch.tensor([buffer[0].nbytes for buffer in buffers])
    expected = [buffer[[0, 2, 1, 3, 3, 5]] for buffer in buffers]
    kernels("drafting").copy_all_layer_kv_cache_cpu(addresses, sizes, torch.tensor([1, 2, 4]), torch.tensor([2, 1, 3]))
    assert all(map(torch.equal, buffers, expected))


def test_slots_are_written_and_read_by_position() -> None:
    requests, table = torch.tensor([2, 0]), torch.zeros((3, 8), dtype=torch.int32)
    starts, ends = torch.tensor([1, 4]), torch.tensor([4, 6])
    slots = torch.tensor([5, 6, 7, 8, 9])
    kernels().assign_req_to_token_pool_cpu(requests, table, starts, ends, slots, 8)
    assert table.tolist() == [[0, 0, 0, 0, 8, 9, 0, 0], [0] * 8, [0, 5, 6, 7, 0, 0, 0, 0]]
    found = torch.zeros(6, dtype=torch.int64)
    kernels().assign_extend_cache_locs_cpu(requests, table, starts, ends, found, 8)
    assert found.tolist() == [5, 6, 7, 8, 9, 0]
    kept = torch.zeros(4, dtype=torch.int64)
    kernels().fill_accept_out_cache_loc_cpu(torch.tensor([[0, 1, -1], [3, -1, -1]]), slots, kept)
    assert kept.tolist() == [5, 6, 8, 0]
    # Positions behind the end of a row are no other request's.
    with pytest.raises(RuntimeError):
        kernels().assign_req_to_token_pool_cpu(requests, table, starts + 4, ends + 4, slots, 8)
