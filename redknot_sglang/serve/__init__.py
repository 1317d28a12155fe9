# SPDX-License-Identifier: Apache-2.0
"""What the server shows of RedKnot: HTTP routes, status and metrics."""
