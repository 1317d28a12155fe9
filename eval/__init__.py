# SPDX-License-Identifier: Apache-2.0
"""Evaluation of redknot-sglang: the embedded model, its tasks, and how it was trained."""
