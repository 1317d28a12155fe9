# SPDX-License-Identifier: Apache-2.0
"""A plugin for stock SGLang that keeps the KV cache per class of attention heads. README.md says what for."""

__version__ = "0.1.0"
