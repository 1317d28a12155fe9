# SPDX-License-Identifier: Apache-2.0
"""What a draft model's drafts need beside `speculative.py`, in plain torch, for machines without a CUDA driver.

A *draft* is a tree of D tokens as described there; a draft model makes it in steps, of which each has the `topk` likeliest tokens
behind each of the step before.
"""

from ctypes import memmove, string_at

import torch
from torch import Tensor

from .speculative import reconstruct_indices_from_tree_mask

# The form of masks that SGLang asks for on a CPU: D x D for each draft, without the text before it.
_DRAFT_ONLY = 1


def build_tree_kernel_efficient_cpu(
    parent_list: Tensor,
    selected_index: Tensor,
    verified_seq_len: Tensor,
    tree_mask: Tensor,
    positions: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    topk: int,
    depth: int,
    draft_token_num: int,
    tree_mask_mode: int,
) -> None:
    """The tree of each of B drafts, made of the candidates that were selected.

    parent_list: [B, candidates with children], of each of them the number that it has as a candidate; the first one is the root.
    selected_index: [B, D - 1], numbers of the candidates that are nodes 1 to D - 1; `topk` candidates in a row have the same parent.
    verified_seq_len: [B], tokens before each draft.
    depth: steps in which the drafts were made.
    Writes tree_mask, [B * D * D], whether the second node is the first one or above it; and positions, retrive_index,
    retrive_next_token and retrive_next_sibling, as `reconstruct_indices_from_tree_mask`.
    Raises ValueError for another form of masks.
    """
    if tree_mask_mode != _DRAFT_ONLY:
        raise ValueError(f"tree_mask_mode {tree_mask_mode} is for GPUs, on a CPU masks are of {_DRAFT_ONLY}")
    bs, size = len(verified_seq_len), draft_token_num
    mask = torch.zeros(bs, size, size, dtype=torch.bool)
    for request, (selected, parents) in enumerate(zip(selected_index.tolist(), parent_list.tolist(), strict=True)):
        mask[request, 0, 0] = True
        for node, candidate in enumerate(selected, start=1):
            group = candidate // topk
            parent = 1 + selected.index(parents[group]) if group else 0
            mask[request, node] = mask[request, parent]
            mask[request, node, node] = True
    tree_mask.copy_(mask.view(-1))
    links = positions, retrive_index, retrive_next_token, retrive_next_sibling
    reconstruct_indices_from_tree_mask(tree_mask, verified_seq_len, *links, bs, size)


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    seq_lens: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
    topk: int,
    speculative_num_steps: int,
) -> None:
    """Read the slots behind requests' texts, `topk * speculative_num_steps` of each, one request behind the other."""
    width = topk * speculative_num_steps
    places = seq_lens.long()[:, None] + torch.arange(width)
    out_cache_loc.copy_(req_to_token[req_pool_indices.long()[:, None], places].view(-1))


def fill_bonus_tokens_cpu(accept_tokens: Tensor, accept_lens: Tensor, bonus_tokens: Tensor, accept_stride: int) -> None:
    """Write each request's last accepted token. accept_tokens: [B * accept_stride]; accept_lens: [B], at least 1."""
    rows = torch.arange(len(accept_lens)) * accept_stride + accept_lens.long() - 1
    bonus_tokens.copy_(accept_tokens.view(-1)[rows])


def copy_all_layer_kv_cache_cpu(data_ptrs: Tensor, strides: Tensor, tgt_loc: Tensor, src_loc: Tensor) -> None:
    """Copy slots to other slots in several buffers at once, all of them read before one is written.

    data_ptrs: uint64 [buffers], addresses. strides: [buffers], bytes of a slot. tgt_loc, src_loc: [n], slots.
    """
    moves = list(zip(tgt_loc.tolist(), src_loc.tolist(), strict=True))
    for base, size in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        rows = [string_at(base + source * size, size) for _, source in moves]
        for (target, _), row in zip(moves, rows, strict=True):
            memmove(base + target * size, row, size)
