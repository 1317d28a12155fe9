# SPDX-License-Identifier: Apache-2.0
"""The prefix cache: SGLang's radix tree, whose nodes have global slots for all tokens and local slots for some.

A path from the root spells a prompt; where a node ends is a *boundary*. A node is *live* if its tokens have local slots,
and a *tombstone* if not. A *tail* is the run of live tokens that ends at a boundary. A prefix can be reused up to a
boundary that has a tail of one window, because local heads of the next row see that window and the *sink* (the first
tokens of the prompt), nothing else.
"""
