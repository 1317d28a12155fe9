# SPDX-License-Identifier: Apache-2.0
"""The key of RedKnot's report in an answer's `meta_info`. In a file of its own, so that clients need not import torch."""

KEY = "redknot"
