# SPDX-License-Identifier: Apache-2.0
"""The certificate as a JSON document beside the head map, with a digest over all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redknot_sglang.certificate.fingerprint import ModelFingerprint, canonical
from redknot_sglang.errors import CertificateError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

FORMAT, VERSION = "redknot-certificate", 1
SUFFIX = ".certificate.json"
EXACT = "exact"
_AGAIN = "make it again with `redknot certify`"


@dataclass(frozen=True)
class Certificate:
    """The parts of a certificate that a server checks.

    model: fingerprint of the model that was measured.
    head_map: fingerprint of the map, 64 hex digits.
    sglang: version of SGLang that was measured.
    redknot: version of this package that was measured.
    verdicts: whether each policy passed; names are `exact` and repair policies.
    digest: SHA-256 of the document without digest and signature, 64 hex digits.
    document: the whole certificate, JSON types.
    """

    model: ModelFingerprint
    head_map: str
    sglang: str
    redknot: str
    verdicts: Mapping[str, bool]
    digest: str
    document: Mapping[str, Any]


def certificate_path(head_map: Path) -> Path:
    """Where the certificate of a head map lies: `map.json` has `map.certificate.json` beside it."""
    return head_map.with_name(head_map.stem + SUFFIX)


def seal(document: Mapping[str, Any], key: Ed25519PrivateKey | None = None) -> dict[str, Any]:
    """The document with its digest and, if there is a key, signed.

    document: a certificate without both, JSON types.
    key: the private key to sign with, or None.
    """
    sealed = {**document, "digest": digest_of(document)}
    if key is not None:
        from redknot_sglang.certificate.signature import sign

        sealed["signature"] = sign(key, sealed["digest"])
    return sealed


def digest_of(document: Mapping[str, Any]) -> str:
    """SHA-256 of a certificate less its digest and signature, in canonical JSON."""
    bare = {name: value for name, value in document.items() if name not in ("digest", "signature")}
    return hashlib.sha256(f"{FORMAT}/{VERSION}\n".encode() + canonical(bare)).hexdigest()


def write_certificate(path: Path, sealed: Mapping[str, Any]) -> None:
    """Write a certificate on one line; `python -m json.tool` shows it on many.

    path: the file.
    sealed: the document as `seal` returns it.
    Raises CertificateError if it cannot be written.
    """
    try:
        path.write_text(json.dumps(sealed, separators=(",", ":")) + "\n")
    except OSError as error:
        raise CertificateError(
            f"{path} cannot be written: {error.strerror}; it has to lie beside the head map"
        ) from None


def read_certificate(path: Path, key: Ed25519PublicKey | None = None) -> Certificate:
    """Read a certificate, and check that it is complete and unchanged.

    path: the file.
    key: the public key that must have signed it, or None for no such check.
    Raises CertificateError.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CertificateError(f"there is no certificate {path}") from None
    except OSError as error:
        raise CertificateError(f"the certificate {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise CertificateError(f"the certificate {path} is not JSON; {_AGAIN}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CertificateError(f"{path} is not a certificate of RedKnot; {_AGAIN}")
    if document.get("version") != VERSION:
        raise CertificateError(
            f"the certificate {path} has format version {document.get('version')}, this release reads {VERSION}; {_AGAIN}"
        )
    digest = document.get("digest")
    if digest != digest_of(document):
        raise CertificateError(
            f"the certificate {path} was changed after it was made: its digest does not fit; {_AGAIN}"
        )
    if key is not None:
        _check_signature(path, document, key)
    try:
        return _certificate(document)
    except (KeyError, TypeError, AttributeError):
        raise CertificateError(f"the certificate {path} is not complete; {_AGAIN}") from None


def _certificate(document: dict[str, Any]) -> Certificate:
    model = document["model"]
    return Certificate(
        model=ModelFingerprint(model["kind"], model["config"], model["weights"], dict(model["loading"])),
        head_map=document["head_map"]["fingerprint"],
        sglang=document["versions"]["sglang"],
        redknot=document["versions"]["redknot"],
        verdicts={name: entry["verdict"] == "pass" for name, entry in document["policies"].items()},
        digest=document["digest"],
        document=document,
    )


def _check_signature(path: Path, document: Mapping[str, Any], key: Ed25519PublicKey) -> None:
    from redknot_sglang.certificate.signature import is_signed_by, key_name

    signature = document.get("signature")
    if not isinstance(signature, Mapping):
        raise CertificateError(
            f"the certificate {path} is not signed, and this server demands the key {key_name(key)}; "
            "make it again with `redknot certify --key`"
        )
    if not is_signed_by(key, document["digest"], str(signature.get("value"))):
        raise CertificateError(
            f"the certificate {path} is not signed with the key that this server demands ({key_name(key)}, "
            f"it names {signature.get('key')}); make it again with `redknot certify --key`"
        )
