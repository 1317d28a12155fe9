# SPDX-License-Identifier: Apache-2.0
"""What we use of SGLang 0.5.18, as far as it differs from 0.5.17."""
