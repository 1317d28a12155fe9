# SPDX-License-Identifier: Apache-2.0
"""The part of a map's provenance that is the same however it was made."""

from __future__ import annotations

from typing import Any

from redknot_sglang import __version__


def provenance(method: str, **details: Any) -> dict[str, Any]:
    """Provenance of a map made now by this release.

    No time and no path enter: making the same map twice gives the same file.
    """
    return {"method": method, "tool": f"redknot-sglang {__version__}", **details}
