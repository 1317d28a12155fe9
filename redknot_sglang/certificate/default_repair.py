# SPDX-License-Identifier: Apache-2.0
"""Which repair policy a server uses for segmented requests that name none: one that was measured, or none at all.

No policy is right for every model. On the model that comes with this repository `blend:0.08` loses nothing; on
pretrained models that were measured it lost half of what documents give (docs/real-models.md). So the default is read
from the certificate.
"""

from __future__ import annotations

from pathlib import Path

from redknot_sglang.certificate.document import EXACT, certificate_path, read_certificate
from redknot_sglang.errors import CertificateError
from redknot_sglang.heads import HeadMap

# What maps with retrieval heads are made for.
BY_RETRIEVAL = "question:2"
_LEAD = "+lead"


def default_repair(head_map: HeadMap, path: Path, lead: bool) -> str | None:
    """The repair policy for requests that name none, or None if there is no reason for any.

    It is the first one that passed in the certificate beside the map, in the order of `redknot certify --repair`;
    without such a one it is `question:2` if the map has retrieval heads. Whether the certificate is about this model is
    checked later.

    head_map: the map.
    path: its file.
    lead: whether segments are computed behind the lead (the text before the first segment). Policies are certified for
        each case by itself.
    """
    try:
        verdicts = read_certificate(certificate_path(path)).verdicts
    except CertificateError:
        verdicts = {}
    passed = [name for name, ok in verdicts.items() if ok and name != EXACT and name.endswith(_LEAD) == lead]
    if passed:
        return passed[0].removesuffix(_LEAD)
    return BY_RETRIEVAL if head_map.retrieval else None
