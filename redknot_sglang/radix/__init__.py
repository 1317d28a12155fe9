# SPDX-License-Identifier: Apache-2.0
"""The radix tree with head classes: global slots for all tokens, local slots for sinks and window tails.

Vocabulary: a *tail* is the run of live local slots that ends at a node boundary; a prefix can be reused up to a
boundary that has one, because local heads of the next row look back one window and at the sinks, nowhere else.
"""
