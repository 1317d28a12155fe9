# SPDX-License-Identifier: Apache-2.0
"""Measuring servers: starting them, asking them, tasks to ask, statistics and tables of what they answered.

Commands and benchmarks use it as a library. Nothing here imports SGLang or torch.
"""
