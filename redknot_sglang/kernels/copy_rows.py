# SPDX-License-Identifier: Apache-2.0
"""Copies of rows between buffers on the device and buffers in host memory, in either direction."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .stored import movable

# SGLang's kernel moves a row in words of this many bytes.
WORD = 8
# Warps of a block of that kernel. A warp has one row under way at a time, and fewer bytes under way than this do not keep PCIe busy on the way
# to the device: with rows of 256 bytes SGLang's two blocks reach 11 GB/s on an H200, 16 blocks 50. A decode step takes 36 % longer beside
# those and 9 % beside two, for a time that is 4.5 times as long, so loads that end sooner cost it no more. On the way to the host two blocks
# reach 28 GB/s, and beside 16 a step takes 4.6 times as long (`python -m eval.bench_copy`, `eval/results/copy.json`).
_WARPS, _UNDER_WAY = 32, 128 << 10
_SGLANGS, _MAX_BLOCKS = 2, 16


def copy_rows(sources: Sequence[Tensor], targets: Sequence[Tensor], source_rows: Tensor, target_rows: Tensor) -> None:
    """Copy the same rows of some buffers, on the current stream.

    sources: one or two buffers of one shape, each [rows, ...], contiguous. Host memory must be pinned where the others are on a GPU.
    targets: as many, [other rows, ...] with rows of the same shape and dtype, changed in place.
    source_rows: int64 [n], on the GPU if one of the buffers is.
    target_rows: int64 [n], the same.
    """
    if not source_rows.is_cuda:
        for source, target in zip(sources, targets, strict=True):
            movable(target).index_copy_(0, target_rows, movable(source).index_select(0, source_rows))
        return
    # Only where there is a GPU can it be imported.
    from sgl_kernel import kvcacheio

    size = sources[0][0].nbytes
    blocks = blocks_for(size, to_device=targets[0].is_cuda)
    if len(sources) == 2:
        (keys, values), (to_keys, to_values) = sources, targets
        kvcacheio.transfer_kv_per_layer(keys, to_keys, values, to_values, source_rows, target_rows, size, blocks)
    else:
        kvcacheio.transfer_kv_per_layer_mla(sources[0], targets[0], source_rows, target_rows, size, blocks)


def blocks_for(size: int, to_device: bool) -> int:
    """Blocks of a copy.

    size: bytes of a row.
    to_device: from host memory; otherwise to it, which takes as many as SGLang's own copies.
    """
    return min(_MAX_BLOCKS, max(_SGLANGS, -(-_UNDER_WAY // (_WARPS * size)))) if to_device else _SGLANGS
