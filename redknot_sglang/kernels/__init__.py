# SPDX-License-Identifier: Apache-2.0
"""Attention over the two head classes. Imports no SGLang; ``select.select_paths`` is the way in."""
