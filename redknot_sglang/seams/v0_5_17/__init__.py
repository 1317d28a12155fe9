# SPDX-License-Identifier: Apache-2.0
"""What we use of SGLang 0.5.17, where it lies, and what it takes."""
