# SPDX-License-Identifier: Apache-2.0
"""Training of the embedded model. Needs torch; nothing in `redknot_sglang` or `eval.tasks` imports it."""
