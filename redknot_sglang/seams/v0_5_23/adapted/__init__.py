# SPDX-License-Identifier: Apache-2.0
"""SGLang 0.5.23's classes in the shape of 0.5.17's, which is the one that all other rooms are written for.

`seams/sglang.py` gives these in the place of SGLang's own.
"""

from __future__ import annotations

# By name: the module of this folder that has it.
NAMES = {
    "FullComponent": "components",
    "HybridCacheController": "host_tier",
    "SWAChunkCache": "tree",
    "SWAComponent": "components",
    "StackBuildResult": "host_tier",
    "UnifiedRadixCache": "tree",
    "build_pool_entry": "host_tier",
    "next_component_uuid": "components",
    "prepare_server_args": "arguments",
}
