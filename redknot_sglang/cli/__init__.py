# SPDX-License-Identifier: Apache-2.0
"""The `redknot` command; one module per subcommand."""
