# SPDX-License-Identifier: Apache-2.0
"""Head maps: which KV heads need the whole context (global) and which only sink + window (local).

Nothing here imports SGLang, torch or transformers, so a head map can be made, read and drawn on any machine.
"""

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads.head_map import HeadClass, HeadMap, ModelInfo, load_head_map

__all__ = ["HeadClass", "HeadMap", "HeadMapError", "ModelInfo", "load_head_map"]
