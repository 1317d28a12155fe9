# SPDX-License-Identifier: Apache-2.0
"""`redknot report`: profile, head map and certificate as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from redknot_sglang.certificate.document import certificate_path
from redknot_sglang.report import write_report


def add_parser(subparsers: Any) -> None:
    """Register `report` on what `ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "report",
        help="profile, head map and certificate as one HTML page",
        description="Writes one page without scripts or external files. Files that lie beside the head map under their usual "
        "names (map.profile.json, map.certificate.json) are found by themselves.",
    )
    parser.add_argument("--head-map", type=Path, metavar="F", help="head map")
    parser.add_argument("--profile", type=Path, metavar="F", help="what `redknot profile` measured")
    parser.add_argument("--certificate", type=Path, metavar="F", help="what `redknot certify` wrote")
    parser.add_argument("--out", type=Path, metavar="F", required=True, help="the page to write")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write the page. Raises ReportError if a file cannot be read or written."""
    profile, certificate = args.profile, args.certificate
    if args.head_map is not None:
        profile = profile or _existing(args.head_map.with_name(args.head_map.stem + ".profile.json"))
        certificate = certificate or _existing(certificate_path(args.head_map))
    write_report(args.out, profile=profile, head_map=args.head_map, certificate=certificate)
    print(f"written: {args.out}")
    return 0


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
