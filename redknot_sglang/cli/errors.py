# SPDX-License-Identifier: Apache-2.0
"""What a command cannot do for its user."""


class CliError(Exception):
    """A command cannot go on; the message says why and what to do. `redknot` prints it and exits with 2."""
