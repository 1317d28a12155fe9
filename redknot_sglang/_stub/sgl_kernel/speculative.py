# SPDX-License-Identifier: Apache-2.0
"""The kernels of speculative decoding in plain torch, for machines without a CUDA driver.

A *draft* is a tree of D tokens behind a request's text: node 0 is the last token of the text itself, and the parent of every
other node has a lower number. Slow, since they go through requests one by one; what they compute is what SGLang asks of its
own kernels of the same names.
"""

import torch
from torch import Tensor


def reconstruct_indices_from_tree_mask(
    tree_mask: Tensor,
    verified_seq_len: Tensor,
    positions: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    batch_size: int,
    draft_token_num: int,
) -> None:
    """Links and positions of drafts, of B requests with D nodes each.

    tree_mask: [B * D * D], whether the second node is the first one or above it.
    verified_seq_len: [B], tokens before each draft.
    Writes positions, [B * D]; retrive_index, [B, D], each node's row in the batch; retrive_next_token, [B, D], each node's first
    child or -1; retrive_next_sibling, [B, D], the next child of its parent or -1.
    """
    size = draft_token_num
    above = tree_mask.view(batch_size, size, size).bool() & torch.ones(size, size, dtype=torch.bool).tril(-1)
    depth = above.sum(-1)
    positions.copy_((verified_seq_len.view(-1, 1) + depth).view(-1))
    retrive_index.copy_(torch.arange(batch_size * size).view(batch_size, size))
    retrive_next_token.fill_(-1)
    retrive_next_sibling.fill_(-1)
    nodes = torch.arange(size)
    parents = torch.where(above, nodes, -1).amax(-1).tolist()
    for request, own in enumerate(parents):
        last_child: dict[int, int] = {}
        for node, parent in enumerate(own[1:], start=1):
            if parent in last_child:
                retrive_next_sibling[request, last_child[parent]] = node
            else:
                retrive_next_token[request, parent] = node
            last_child[parent] = node


def verify_tree_greedy_cpu(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    target_predict: Tensor,
) -> None:
    """Accept of each draft the path on which every token is the one that the model would have chosen.

    candidates: [B, D], the drafts' tokens. target_predict: [B, D], the model's choice behind each.
    retrive_index, retrive_next_token, retrive_next_sibling: as above.
    Writes predicts, [B * D], the model's choice behind each accepted node; accept_index, [B, longest path], rows of these nodes,
    which was filled with -1; and accept_token_num, [B], how many there are beside node 0.
    """
    rows, children, siblings, tokens, choices = (
        part.tolist() for part in (retrive_index, retrive_next_token, retrive_next_sibling, candidates, target_predict)
    )
    most = accept_index.shape[1] - 1
    for request in range(len(tokens)):
        node, accepted = 0, 0
        accept_index[request, 0] = rows[request][0]
        while True:
            choice = choices[request][node]
            predicts[rows[request][node]] = choice
            child = children[request][node]
            while child >= 0 and tokens[request][child] != choice:
                child = siblings[request][child]
            if child < 0 or accepted == most:
                break
            node, accepted = child, accepted + 1
            accept_index[request, accepted] = rows[request][node]
        accept_token_num[request] = accepted


def assign_req_to_token_pool_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
) -> None:
    """Write slots, which stand behind each other in `out_cache_loc`, to requests' positions from `start_offset` to `end_offset`.

    Raises RuntimeError if a request has no such positions.
    """
    at = 0
    for request, start, end in _spans(req_pool_indices, start_offset, end_offset):
        req_to_token[request, start:end] = out_cache_loc[at : at + end - start].to(req_to_token.dtype)
        at += end - start


def assign_extend_cache_locs_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
) -> None:
    """The other way: read the slots of these positions, one request behind the other."""
    at = 0
    for request, start, end in _spans(req_pool_indices, start_offset, end_offset):
        out_cache_loc[at : at + end - start] = req_to_token[request, start:end].to(out_cache_loc.dtype)
        at += end - start


def fill_accept_out_cache_loc_cpu(accept_index: Tensor, out_cache_loc: Tensor, accept_out_cache_loc: Tensor) -> None:
    """Write the slots of accepted rows, those with an index from 0, to the beginning of `accept_out_cache_loc`."""
    rows = accept_index.flatten()
    found = out_cache_loc[rows[rows >= 0].long()]
    accept_out_cache_loc[: len(found)] = found


def _spans(requests: Tensor, starts: Tensor, ends: Tensor) -> list[tuple[int, int, int]]:
    return list(zip(requests.tolist(), starts.tolist(), ends.tolist(), strict=True))
