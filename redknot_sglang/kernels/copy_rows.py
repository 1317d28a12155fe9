# SPDX-License-Identifier: Apache-2.0
"""Copies of rows between buffers on the device and buffers in host memory, in either direction."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

# SGLang's kernel moves a row in words of this many bytes.
WORD = 8


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
    if len(sources) == 2:
        (keys, values), (to_keys, to_values) = sources, targets
        kvcacheio.transfer_kv_per_layer(keys, to_keys, values, to_values, source_rows, target_rows, size)
    else:
        kvcacheio.transfer_kv_per_layer_mla(sources[0], targets[0], source_rows, target_rows, size)
