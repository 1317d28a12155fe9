# SPDX-License-Identifier: Apache-2.0
"""What we use of SGLang 0.5.23, as far as it differs from 0.5.18, and its classes in the shape that all other rooms know."""
