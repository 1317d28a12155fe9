# SPDX-License-Identifier: Apache-2.0
"""One HTML page of what is known about a head map: classes, evidence, Pareto curve, certificate.

The page needs no network and no script. Nothing here imports SGLang or torch.
"""

from redknot_sglang.errors import ReportError
from redknot_sglang.report.page import write_report

__all__ = ["ReportError", "write_report"]
