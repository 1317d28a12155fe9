# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a certificate, or keeps one from being made."""

from __future__ import annotations


class CertificateError(ValueError):
    """The message is one line: what, where, what to do."""
