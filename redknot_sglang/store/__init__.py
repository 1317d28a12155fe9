# SPDX-License-Identifier: Apache-2.0
"""The storage tier: KV that outlives the process, as objects in a store that servers may share."""
