# SPDX-License-Identifier: Apache-2.0
"""All errors that this package raises for its users: one base, and a class for each kind of thing that went wrong.

A message says what is wrong, where, and what to do. It is one line, unless it ends with lines of a server's log.
"""

from __future__ import annotations


class RedKnotError(ValueError):
    """The base of all errors below; raised itself for a request or a configuration that cannot be served."""


class HeadMapError(RedKnotError):
    """A head map, or a file that should be one, cannot be read, written or used with this model."""


class CertificateError(RedKnotError):
    """A certificate cannot be read, does not fit what is served, or cannot be made."""


class ProfileError(RedKnotError):
    """`redknot profile` cannot work with this model, these prompts or these options."""


class DataError(RedKnotError):
    """A file of prompts cannot be used; the message names the file and the line."""


class ReportError(RedKnotError):
    """`redknot report` cannot make a page of these files."""


class CliError(RedKnotError):
    """A command of `redknot` or `eval`, or a measurement that it makes, cannot go on."""


class StartError(RedKnotError):
    """A server with these flags would not start; the message is the one that the server would print."""


class RotaryError(RedKnotError):
    """Keys of this model cannot be moved to another position, which segmented mode needs.

    The message says why, as the end of a sentence that the caller begins.
    """


class ServerError(RedKnotError, RuntimeError):
    """A server ended, or did not answer in time; the message ends with its last log lines."""


class SeamError(RedKnotError, RuntimeError):
    """A seam, our hook on a function of SGLang, did not take hold, or SGLang is a version without seams of ours.

    The message names the seam or the version.
    """


class StoreError(RedKnotError):
    """A store behind the host tier did not do what it was asked; the message says what it answered."""


class WithdrawnError(RedKnotError):
    """The scheduler has taken back the host slots of a job of the storage tier; nothing of it may be read or written any more."""
