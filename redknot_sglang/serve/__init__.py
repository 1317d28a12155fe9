# SPDX-License-Identifier: Apache-2.0
"""The HTTP side of a server: checks of requests, routes under `/redknot`, status and metrics."""
