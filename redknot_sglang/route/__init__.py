# SPDX-License-Identifier: Apache-2.0
"""The router: one address for many servers, which sends each request where its documents are.

A *document* is a segment as in docs/serving.md. Nothing here imports SGLang or torch: the router is a process of its own.
"""
