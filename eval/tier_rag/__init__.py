# SPDX-License-Identifier: Apache-2.0
"""Permuted documents that do not all fit on the device: what eval/bench_tier_rag.py is made of."""
