# SPDX-License-Identifier: Apache-2.0
"""The record of how a head map was made, which every map carries."""

from __future__ import annotations

from typing import Any

from redknot_sglang import __version__


def provenance(method: str, **details: Any) -> dict[str, Any]:
    """Provenance of a map that is made by this release. It has no time and no path: making a map twice gives one file.

    method: how the map was made, e.g. `import` or `manual`.
    details: what else is to be recorded, JSON types.
    """
    return {"method": method, "tool": f"redknot-sglang {__version__}", **details}
