# SPDX-License-Identifier: Apache-2.0
"""The `redknot` command: a module for each subcommand, which parses its options and prints what a library returns."""
