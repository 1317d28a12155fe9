# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests: made for the embedded model without asking a server."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from redknot_sglang import __version__
from redknot_sglang.certificate.document import FORMAT, VERSION, certificate_path, seal, write_certificate
from redknot_sglang.certificate.fingerprint import fingerprint_model
from redknot_sglang.heads import load_head_map
from tests.serving.harness import HEAD_MAP, MODEL

SGLANG = "0.5.17"


def make_document(
    head_map: Path, model: Path = MODEL, policies: Mapping[str, str] | None = None, **changes: Any
) -> dict[str, Any]:
    """A certificate's document, not sealed. policies: verdicts by name; changes: of its top level."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "versions": {"sglang": SGLANG, "redknot": __version__},
        "head_map": {"fingerprint": load_head_map(head_map).fingerprint},
        "model": asdict(fingerprint_model(model)),
        "policies": {name: {"verdict": verdict} for name, verdict in (policies or {"exact": "pass"}).items()},
    }
    return {**document, **changes}


def certified_map(folder: Path, key: Any = None, **options: Any) -> Path:
    """A copy of the embedded model's map in `folder`, with a certificate of `make_document(**options)` beside it."""
    head_map = folder / "map.json"
    shutil.copy(HEAD_MAP, head_map)
    write_certificate(certificate_path(head_map), seal(make_document(head_map, **options), key))
    return head_map
