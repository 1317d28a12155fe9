# SPDX-License-Identifier: Apache-2.0
"""The demo: the same conversations on stock SGLang and on SGLang --redknot, with equal bytes for KV."""
