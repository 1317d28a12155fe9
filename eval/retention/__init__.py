# SPDX-License-Identifier: Apache-2.0
"""Parts of eval/bench_retention.py: traffic, and caches that only count."""
