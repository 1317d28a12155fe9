# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode on servers of their own: what of a prompt's KV travels, where it is read and where it is put.

A *prefill server* computes prompts, a *decode server* computes answers (SGLang's `--disaggregation-mode`). Between them goes
the KV of each head class that the answer needs, and nothing else.
"""
