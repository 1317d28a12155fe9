# SPDX-License-Identifier: Apache-2.0
"""Ed25519 signatures (RFC 8032) of certificates, so that servers can demand those of their own operator.

The key that signs stays where `redknot certify` runs; servers hold the public one, which can sign nothing. Keys are PEM
files as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from redknot_sglang.errors import CertificateError

ALGORITHM = "ed25519"


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The private key of `redknot certify --key`, a PEM file. Raises CertificateError."""
    content = _read(path)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise CertificateError(
            f"{path} is not an unencrypted Ed25519 private key; make one with "
            f"`openssl genpkey -algorithm ed25519 -out {path.name}`"
        )
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """The public key of the server's `--redknot-certificate-key`, a PEM file. Raises CertificateError."""
    content = _read(path)
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise CertificateError(
            f"{path} is not an Ed25519 public key; make it from the private one with "
            f"`openssl pkey -in KEY -pubout -out {path.stem}.pub.pem`"
        )
    return key


def sign(key: Ed25519PrivateKey, digest: str) -> dict[str, str]:
    """The signature of a certificate, as it stands in the document.

    key: the private key.
    digest: the certificate's digest, hex.
    Returns `algorithm`, `value` (hex) and `key`, the public key's `key_name`, which only messages use.
    """
    return {"algorithm": ALGORITHM, "key": key_name(key.public_key()), "value": key.sign(digest.encode()).hex()}


def is_signed_by(key: Ed25519PublicKey, digest: str, value: str) -> bool:
    """Whether a signature is that of a key.

    key: the public key.
    digest: the certificate's digest, hex.
    value: the signature, hex.
    """
    try:
        key.verify(bytes.fromhex(value), digest.encode())
    except (InvalidSignature, ValueError):
        return False
    return True


def key_name(key: Ed25519PublicKey) -> str:
    """How messages name a public key: the first 16 hex digits of its SHA-256."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"the key {path} cannot be read: {error.strerror}; name a PEM file") from None
