# SPDX-License-Identifier: Apache-2.0
"""How much memory a server would take, from its flags and the files of its model, without starting it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redknot_sglang.errors import StartError

if TYPE_CHECKING:
    from redknot_sglang.pool.sizing import PoolSlots
    from redknot_sglang.seams.start_sizes import StartSizes


def estimate(model: str, flags: Sequence[str]) -> Iterator[str]:
    """Lines of the report, for rank 0: weights, KV of both head classes, and what stock SGLang would hold in it.

    model: directory of the checkpoint. flags: of the server, as behind `launch_server`; `--redknot` is added. What kernels and
    CUDA graphs need besides, a few hundred MB on a GPU, is not in it. Raises StartError.
    """
    from redknot_sglang import active, plugin
    from redknot_sglang.errors import RedKnotError
    from redknot_sglang.seams.start_sizes import StartSizes

    plugin.register()
    server_args = _server_args(["--model-path", model, *flags, *([] if "--redknot" in flags else ["--redknot"])])
    config = active.config_of(server_args)
    assert config is not None, "--redknot is among the flags"
    model_config = server_args.get_model_config()
    sizes = StartSizes(server_args, model_config, config)
    weights = _checkpoint_bytes(Path(model), model_config.dtype.itemsize) // server_args.tp_size
    yield f"memory of a server of {model}, each of {server_args.tp_size} rank(s), {model_config.dtype}:"
    yield f"  weights {_size(weights)}"
    try:
        slots, why = _slots(sizes, server_args, config.kv_budget, weights)
    except RedKnotError as error:
        raise StartError(str(error)) from None
    kv = sizes.bytes_of(slots)
    yield f"  KV {_size(kv)} ({why})"
    yield f"    {slots.global_slots} global slots of {sizes.cost.global_slot} bytes"
    if not sizes.head_map.all_global:
        yield f"    {slots.local_slots} local slots of {sizes.cost.local} bytes"
    yield f"    stock SGLang would hold {kv // sizes.cost.stock} tokens in it"
    yield f"  together {_size(weights + kv)}"


def _slots(sizes: StartSizes, server_args: Any, budget: int | None, weights: int) -> tuple[PoolSlots, str]:
    """Slots of both classes and what decides them. Raises RedKnotError."""
    if server_args.max_total_tokens is not None:
        return sizes.of_tokens(server_args.max_total_tokens), "--max-total-tokens"
    if budget is not None:
        return sizes.of_bytes(budget), "--redknot-kv-budget"
    fraction = server_args.mem_fraction_static
    share = int(_free_bytes(server_args.device) * fraction) - weights
    why = f"SGLang's share of what is free now, --mem-fraction-static {fraction:g}; --max-total-tokens or --redknot-kv-budget makes it less"
    return sizes.of_bytes(max(0, share)), why


def _server_args(words: list[str]) -> Any:
    from sglang.srt.server_args import prepare_server_args

    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return prepare_server_args(words)
    except SystemExit as error:
        # SGLang's parser prints what is wrong, our own refusals are the exit's message.
        lines = [line for line in said.getvalue().splitlines() if "error:" in line]
        message = error.code if isinstance(error.code, str) else (lines or ["its flags cannot be read"])[-1]
    except (ValueError, AssertionError, OSError) as error:
        message = str(error).splitlines()[0]
    raise StartError(message.partition("error: ")[2] or message)


def _checkpoint_bytes(folder: Path, itemsize: int) -> int:
    """Bytes of all tensors once loaded, of `itemsize` bytes an element."""
    from safetensors import safe_open

    elements = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                count = 1
                for length in tensors.get_slice(name).get_shape():
                    count *= length
                elements += count
    return elements * itemsize


def _free_bytes(device: str) -> int:
    from sglang.srt.utils import get_available_gpu_memory

    return int(get_available_gpu_memory(device, 0, empty_cache=False) * 2**30)


def _size(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
