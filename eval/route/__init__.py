# SPDX-License-Identifier: Apache-2.0
"""Routers of many servers on made-up traffic, without servers."""
