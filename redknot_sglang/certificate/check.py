# SPDX-License-Identifier: Apache-2.0
"""The check at a server's start: is the certificate beside the head map about this model, map, software and policy?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from redknot_sglang.certificate.document import EXACT, Certificate, certificate_path, read_certificate
from redknot_sglang.certificate.fingerprint import ModelFingerprint
from redknot_sglang.config import UNCERTIFIED_FLAG, Certification
from redknot_sglang.errors import CertificateError
from redknot_sglang.heads import HeadMap


@dataclass(frozen=True)
class Served:
    """What a server is about to serve.

    head_map: the map.
    map_path: its file; the certificate lies beside it.
    model: makes the model's fingerprint. Called only if there is a certificate, since it reads blocks of the weights.
    sglang: version of SGLang, or None if it is not known.
    redknot: version of this package.
    policies: `exact`, and the repair policies that the server's flags ask for.
    """

    head_map: HeadMap
    map_path: Path
    model: Callable[[], ModelFingerprint]
    sglang: str | None
    redknot: str
    policies: tuple[str, ...]


def certify_start(served: Served, key_path: Path | None, uncertified: bool) -> Certification:
    """Check a server's certificate. Returns what it certifies.

    served: what the server is about to serve.
    key_path: public key that must have signed the certificate, or None.
    uncertified: whether the server may serve without a certificate; the result then says why nothing is certified.
    Raises CertificateError, which says what to do, if something that is served is not certified and `uncertified` is
    false.
    """
    by_definition = (EXACT,) if served.head_map.all_global else ()
    needed = [policy for policy in served.policies if policy not in by_definition]
    found = Certification(policies=by_definition, enforced=not uncertified, by_definition=by_definition)
    if not needed and not certificate_path(served.map_path).exists():
        return replace(found, reason=_ALL_GLOBAL)
    try:
        certificate = _fitting(served, key_path)
        passed = tuple(name for name, ok in certificate.verdicts.items() if ok and name not in by_definition)
        found = replace(found, digest=certificate.digest, policies=by_definition + passed)
        _check_policies(certificate, found, needed)
    except CertificateError as error:
        if needed and not uncertified:
            raise CertificateError(f"{error}; or serve without: {UNCERTIFIED_FLAG}") from None
        return replace(found, reason=str(error))
    return found


_ALL_GLOBAL = (
    "no certificate: with every head global, exact mode is what stock SGLang computes; segmented mode needs one"
)


def refusal(certification: Certification, policy: str) -> str:
    """The error of a request under a policy that is not certified, on a server that demands certificates.

    certification: what the server's check found.
    policy: name of the policy, as certificates write it.
    """
    known = ", ".join(certification.policies)
    return (
        f"policy {policy} is not certified on this server (certified: {known}); use one of these, have it certified with "
        f"`{_command(policy)}` (and the others that you serve: a new certificate replaces the old), or start the server "
        f"with {UNCERTIFIED_FLAG}"
    )


def _command(policy: str) -> str:
    """The command line that certifies a policy, without model and map."""
    repair, lead, _ = policy.partition("+lead")
    return "redknot certify" + ("" if repair == EXACT else f" --repair {repair}") + (" --lead lead" if lead else "")


def _fitting(served: Served, key_path: Path | None) -> Certificate:
    """The certificate beside the map, if it is about this map, model and software. Raises CertificateError."""
    path = certificate_path(served.map_path)
    key = None
    if key_path is not None:
        from redknot_sglang.certificate.signature import read_public_key

        key = read_public_key(key_path)
    try:
        certificate = read_certificate(path, key)
    except CertificateError as error:
        if path.exists():
            raise
        raise CertificateError(f"{error}: make one with `redknot certify MODEL --head-map {served.map_path}`") from None
    again = f"certify again with `redknot certify MODEL --head-map {served.map_path}`"
    mine = served.head_map.fingerprint
    if certificate.head_map != mine:
        raise CertificateError(
            f"the head map {served.map_path} is not the one that {path.name} certifies ({mine[:12]}, certified "
            f"{certificate.head_map[:12]}): put the certified map back, or {again}"
        )
    for name, certified, found in (
        ("SGLang", certificate.sglang, served.sglang),
        ("redknot-sglang", _release(certificate.redknot), _release(served.redknot)),
    ):
        if certified != found:
            raise CertificateError(f"{path.name} certifies {name} {certified}, and this is {name} {found}: {again}")
    difference = certificate.model.difference(served.model())
    if difference is not None:
        raise CertificateError(f"{path.name} is about another model: {difference}; {again}")
    return certificate


def _release(version: str) -> str:
    """Major and minor version: releases that differ behind them compute the same, which docs/certify.md promises."""
    return ".".join(version.split(".")[:2])


def _check_policies(certificate: Certificate, found: Certification, wanted: Iterable[str]) -> None:
    """Raises CertificateError for the first wanted policy that is not certified."""
    for policy in wanted:
        if found.covers(policy):
            continue
        known = ", ".join(found.policies) or "none"
        if policy in certificate.verdicts:
            raise CertificateError(
                f"policy {policy} failed its certification (certified: {known}): use one that passed, or another head map"
            )
        raise CertificateError(
            f"policy {policy} is not in the certificate (certified: {known}): use one of these, or certify it with "
            f"`{_command(policy)}`"
        )
