# SPDX-License-Identifier: Apache-2.0
"""SGLang's classes, functions and values under their own names: `from redknot_sglang.seams.sglang import RadixKey`.

The names are those of the folder for the installed version (`names.py`), and where they lie is said in its `surface.py`. A
module of SGLang's is imported when a name of it is asked for: some take long, and a plugin comes before most of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redknot_sglang.seams.v0_5_17.names import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        from redknot_sglang.seams.surface import find

        return find(name)
