# SPDX-License-Identifier: Apache-2.0
"""A head-aware KV cache for stock SGLang, installed as a plugin."""

__version__ = "0.1.0"
