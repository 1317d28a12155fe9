# SPDX-License-Identifier: Apache-2.0
"""The name under which an answer's `meta_info` carries RedKnot's report; apart, so that reading it imports no torch."""

KEY = "redknot"
