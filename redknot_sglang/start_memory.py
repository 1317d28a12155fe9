# SPDX-License-Identifier: Apache-2.0
"""How much memory a server would take, from its flags and the files of its model, without starting it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redknot_sglang.errors import StartError

if TYPE_CHECKING:
    from redknot_sglang.pool.sizing import PoolSlots
    from redknot_sglang.pool.start_sizes import StartSizes


_FLOATS = ("F16", "BF16", "F32", "F64")


def estimate(model: str, flags: Sequence[str]) -> Iterator[str]:
    """Lines of a report: weights and KV of both head classes on the rank that takes most, and how many tokens stock SGLang
    would hold in as many bytes. What kernels and CUDA graphs take besides, a few hundred MB on a GPU, is not in it.

    model: directory of the checkpoint.
    flags: the server's flags, as they stand behind `launch_server`; `--redknot` is added if it is missing.
    Raises StartError if a server with these flags would not start.
    """
    from redknot_sglang import active, plugin
    from redknot_sglang.errors import RedKnotError
    from redknot_sglang.pool.start_sizes import StartSizes

    plugin.register()
    server_args = _server_args(["--model-path", model, *flags, *([] if "--redknot" in flags else ["--redknot"])])
    config = active.config_of(server_args)
    assert config is not None, "--redknot is among the flags"
    model_config = server_args.get_model_config()
    sizes = StartSizes(server_args, model_config, config)
    ranks = server_args.tp_size * server_args.dp_size
    draft = server_args.speculative_draft_model_path if server_args.speculative_algorithm is not None else None
    folders = [Path(folder) for folder in (model, draft) if folder is not None]
    weights = sum(checkpoint_bytes(folder, model_config.dtype.itemsize) for folder in folders) // server_args.tp_size
    share = int(_free_bytes(server_args.device) * server_args.mem_fraction_static) - weights
    yield f"memory of a server of {model}, each of {ranks} rank(s), {model_config.dtype}:"
    yield f"  weights {_size(weights)}"
    try:
        slots, why = _slots(sizes, server_args, config.kv_budget, share)
        host = sizes.of_host(server_args, slots) if server_args.enable_hierarchical_cache else None
    except RedKnotError as error:
        raise StartError(str(error)) from None
    kv = sizes.bytes_of(slots)
    yield f"  KV {_size(kv)} ({why})"
    yield f"    {slots.global_slots} global slots of {sizes.cost.whole_global} bytes{_of_draft(sizes.cost.draft)}"
    if not sizes.head_map.all_global:
        yield f"    {slots.local_slots} local slots of {sizes.cost.local} bytes"
    yield f"    stock SGLang would hold {kv // (sizes.cost.stock + sizes.cost.draft)} tokens in it"
    yield f"  together {_size(weights + kv)}"
    if host is not None:
        flag = "--hicache-size" if server_args.hicache_size > 0 else "--hicache-ratio"
        yield f"  in host memory {_size(sizes.bytes_of(host))} more ({flag})"
        yield f"    {host.global_slots} global and {host.local_slots} local slots"
    if config.kv_budget is not None and config.kv_budget > share:
        raise StartError(
            f"--redknot-kv-budget asks for {_size(config.kv_budget)}, only {_size(max(0, share))} are free for KV here; "
            "lower it or raise --mem-fraction-static"
        )


def _of_draft(size: int) -> str:
    return f", {size} of them the draft model's" if size else ""


def _slots(sizes: StartSizes, server_args: Any, budget: int | None, share: int) -> tuple[PoolSlots, str]:
    """Slots of both classes, and the flag that decides them. As in SGLang, --max-total-tokens is a limit on what bytes give.

    budget: bytes of --redknot-kv-budget, or None.
    share: bytes that SGLang finds for KV, negative if the weights alone are too many.
    Raises RedKnotError if the slots hold no request.
    """
    fraction = f"SGLang's share of what is free now, --mem-fraction-static {server_args.mem_fraction_static:g}"
    if budget is not None:
        slots, why = sizes.of_budget(budget), "--redknot-kv-budget"
    else:
        slots, why = sizes.of_share(share), f"{fraction}; --max-total-tokens or --redknot-kv-budget makes it less"
    tokens = server_args.max_total_tokens
    if tokens is None:
        return slots, why
    if tokens < slots.global_slots:
        return sizes.of_tokens(tokens), "--max-total-tokens"
    limit = "--redknot-kv-budget" if budget is not None else fraction
    return slots, f"{limit}; --max-total-tokens {tokens} is not less"


def _server_args(words: list[str]) -> Any:
    from redknot_sglang.seams.sglang import prepare_server_args

    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return prepare_server_args(words)
    except SystemExit as error:
        # SGLang's parser prints what is wrong, our own refusals are the exit's message.
        lines = [line for line in said.getvalue().splitlines() if "error:" in line]
        message = error.code if isinstance(error.code, str) else (lines or ["SGLang cannot read its flags"])[-1]
    except (ValueError, AssertionError, OSError) as error:
        message = str(error).splitlines()[0]
    raise StartError(message.partition("error: ")[2] or message)


def checkpoint_bytes(folder: Path, itemsize: int) -> int:
    """Bytes that all tensors of a checkpoint take once they are loaded.

    folder: directory of the checkpoint.
    itemsize: bytes of an element of the dtype that the model is served in. All floats of 16 bits and more are converted to
        it; quantised tensors stay as they are.
    Raises StartError if the directory has no *.safetensors.
    """
    from safetensors import safe_open

    total, files = 0, _checkpoint_files(folder)
    if not files:
        raise StartError(
            f"there are no *.safetensors in {folder}, from which the size of the weights is read; name the directory that "
            "has them"
        )
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                tensor = tensors.get_slice(name)
                kind = tensor.get_dtype()
                bits = 8 * itemsize if kind in _FLOATS else int((re.search(r"\d+", kind) or ["8"])[0])
                total += prod(tensor.get_shape()) * bits
    return total // 8


def _checkpoint_files(folder: Path) -> list[Path]:
    """Those that the index names, where there is one: some checkpoints come with a second copy in one file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return sorted(folder.glob("*.safetensors"))


def _free_bytes(device: str) -> int:
    from redknot_sglang.seams.sglang import get_available_gpu_memory

    return int(get_available_gpu_memory(device, 0, empty_cache=False) * 2**30)


def _size(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
