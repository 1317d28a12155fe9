# SPDX-License-Identifier: Apache-2.0
"""The steps of eval/bench_gpu.py, its result file, its table and its chart."""
