# SPDX-License-Identifier: Apache-2.0
"""All errors that this package raises for its users: one base, and a class for each kind of thing that went wrong.

A message says what is wrong, where, and what to do. It is one line, unless it ends with lines of a server's log.
"""

from __future__ import annotations


class RedKnotError(ValueError):
    """A request or a configuration that cannot be served; the base of all other errors."""


class HeadMapError(RedKnotError):
    """Something about a head map is wrong."""


class CertificateError(RedKnotError):
    """Something is wrong with a certificate, or keeps one from being made."""


class ProfileError(RedKnotError):
    """A model, data or options that cannot be profiled."""


class DataError(RedKnotError):
    """A file of prompts cannot be used; the message names the line."""


class ReportError(RedKnotError):
    """A report cannot be made."""


class CliError(RedKnotError):
    """A command, or a measurement that it makes, cannot go on."""


class StartError(RedKnotError):
    """A server would not start; the message is the one that it would give."""


class RotaryError(RedKnotError):
    """The model's keys cannot be relocated; the message is a clause that says why."""


class ServerError(RedKnotError, RuntimeError):
    """A server ended, or did not answer in time; the message ends with its last log lines."""


class SeamError(RedKnotError, RuntimeError):
    """A seam did not take hold, or SGLang is not a version that the seams were written for; the message names it."""
