# SPDX-License-Identifier: Apache-2.0
"""KV memory per head class: buffers, and how a byte budget is split between the classes."""
