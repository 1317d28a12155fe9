# SPDX-License-Identifier: Apache-2.0
"""Retrieval traffic over shared documents against running servers: the parts of eval/bench_rag.py."""
