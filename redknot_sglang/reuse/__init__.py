# SPDX-License-Identifier: Apache-2.0
"""Carrying out the plans of segmented requests: segments in the tree, facts about the model, probes, relocation, admission."""
