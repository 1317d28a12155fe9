# SPDX-License-Identifier: Apache-2.0
"""Makes the report: reads the files, puts the sections together, writes the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from redknot_sglang import __version__
from redknot_sglang.certificate.document import read_certificate
from redknot_sglang.errors import CertificateError, HeadMapError, ReportError
from redknot_sglang.heads import HeadMap, load_head_map
from redknot_sglang.heads.summary import model_title
from redknot_sglang.report import sections
from redknot_sglang.report.html import section, text
from redknot_sglang.report.style import STYLE

PROFILE_FORMAT, PROFILE_VERSION = "redknot-profile", 1


def write_report(
    out: Path, *, profile: Path | None = None, head_map: Path | None = None, certificate: Path | None = None
) -> None:
    """Write one HTML page about a head map.

    out: the file to write.
    profile: what `redknot profile` measured, or None.
    head_map: the map, or None.
    certificate: what `redknot certify` measured, or None. Where a file is None, its section says that it is missing.
    Raises ReportError if all are None, or one cannot be read.
    """
    if profile is None and head_map is None and certificate is None:
        raise ReportError("there is nothing to report: give --head-map, --profile or --certificate")
    page = render(
        None if profile is None else _read_profile(profile),
        None if head_map is None else _read(load_head_map, head_map),
        None if certificate is None else dict(_read(read_certificate, certificate).document),
    )
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{out} cannot be written: {error.strerror}") from None


def render(profile: Mapping[str, Any] | None, head_map: HeadMap | None, certificate: Mapping[str, Any] | None) -> str:
    """The page as HTML, from the contents of the three files. Raises ReportError if one of them is not complete."""
    try:
        body = [
            section("Classes and windows", sections.classes(head_map)),
            section("Evidence for each head", sections.evidence(profile, head_map)),
            section("What maps lose, and what they save", sections.pareto(profile)),
            section("Accuracy through the server", sections.accuracy(certificate, head_map)),
            section("Where this comes from", sections.origin(profile, head_map, certificate)),
        ]
        title = _title(profile, head_map, certificate)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ReportError(f"the profile or the certificate is not complete ({error!r}); make it again") from error
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>RedKnot: {title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{title}</h1>\n{_verdicts(certificate)}</header>\n"
        + "\n".join(body)
        + f'\n<p class="soft">Made by redknot-sglang {escape(__version__)}.</p>\n</body>\n</html>\n'
    )


def _read_profile(path: Path) -> dict[str, Any]:
    try:
        profile = json.loads(path.read_bytes())
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ReportError(f"{path} is not JSON; make the profile again") from None
    found = (profile.get("format"), profile.get("version")) if isinstance(profile, dict) else None
    if found != (PROFILE_FORMAT, PROFILE_VERSION):
        raise ReportError(
            f"{path} is not a {PROFILE_FORMAT} of version {PROFILE_VERSION}; make it with `redknot profile`"
        )
    return dict(profile)


def _read(reader: Any, path: Path) -> Any:
    try:
        return reader(path)
    except (HeadMapError, CertificateError) as error:
        raise ReportError(str(error)) from error


def _title(profile: Any, head_map: HeadMap | None, certificate: Any) -> str:
    named = (certificate or profile or {}).get("model", {})
    name = named.get("architecture") or (model_title(head_map) if head_map is not None else "a model")
    return f"Head map of {text(name)}"


def _verdicts(certificate: Mapping[str, Any] | None) -> str:
    if certificate is None:
        return '<p class="soft">Not certified: a server refuses a map with local heads that has no certificate.</p>'
    marks = {"pass": "&#10003; passed", "fail": "&#10007; failed"}
    return (
        "<p>"
        + "".join(
            f'<span class="badge {text(entry["verdict"])}">{text(name)} {marks[entry["verdict"]]}</span>'
            for name, entry in certificate["policies"].items()
        )
        + "</p>"
    )
