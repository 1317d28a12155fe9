# SPDX-License-Identifier: Apache-2.0
"""Copies of rows between buffers on the device and buffers in host memory, in either direction."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

# SGLang's kernel moves a row in words of this many bytes.
WORD = 8
# Warps of a block of that kernel. A warp has one row under way at a time, and fewer bytes under way than this do not keep PCIe busy: with
# rows of 256 bytes SGLang's two blocks reach 11 GB/s on an H200, with 2,048 bytes 37.
_WARPS, _UNDER_WAY = 32, 128 << 10
_MAX_BLOCKS = 16


def copy_rows(sources: Sequence[Tensor], targets: Sequence[Tensor], source_rows: Tensor, target_rows: Tensor) -> None:
    """Copy the same rows of some buffers, on the current stream.

    sources: one or two buffers of one shape, each [rows, ...], contiguous. Host memory must be pinned where the others are on a GPU.
    targets: as many, [other rows, ...] with rows of the same shape and dtype, changed in place.
    source_rows: int64 [n], on the GPU if one of the buffers is.
    target_rows: int64 [n], the same.
    """
    if not source_rows.is_cuda:
        for source, target in zip(sources, targets, strict=True):
            target.index_copy_(0, target_rows, source.index_select(0, source_rows))
        return
    # Only where there is a GPU can it be imported.
    from sgl_kernel import kvcacheio

    size = sources[0][0].nbytes
    blocks = blocks_for(size)
    if len(sources) == 2:
        (keys, values), (to_keys, to_values) = sources, targets
        kvcacheio.transfer_kv_per_layer(keys, to_keys, values, to_values, source_rows, target_rows, size, blocks)
    else:
        kvcacheio.transfer_kv_per_layer_mla(sources[0], targets[0], source_rows, target_rows, size, blocks)


def blocks_for(size: int) -> int:
    """Blocks of a copy, from two, which is SGLang's own number, to as many as slow those down that decode meanwhile.

    size: bytes of a row.
    """
    return min(_MAX_BLOCKS, max(2, -(-_UNDER_WAY // (_WARPS * size))))
