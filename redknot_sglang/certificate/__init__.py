# SPDX-License-Identifier: Apache-2.0
"""The certificate: what was measured of a head map on a model, and the check of it when a server starts.

Nothing here imports SGLang or torch.
"""
