# SPDX-License-Identifier: Apache-2.0
"""The certificate: a file with what a head map and repair policies were measured to lose on a model, and its check.

A server checks it when it starts; `certify/` makes it. docs/certify.md describes both.

Nothing here imports SGLang or torch.
"""
