# SPDX-License-Identifier: Apache-2.0
"""Every way in which a certificate does not fit is refused with a sentence of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from redknot_sglang import __version__
from redknot_sglang.certificate.check import Served, certify_start
from redknot_sglang.certificate.document import certificate_path, read_certificate, seal, write_certificate
from redknot_sglang.certificate.fingerprint import fingerprint_model
from redknot_sglang.certificate.signature import read_private_key
from redknot_sglang.config import Certification
from redknot_sglang.errors import CertificateError
from redknot_sglang.heads import load_head_map
from tests.certificate.made import SGLANG, certified_map, make_document
from tests.serving.harness import ALL_GLOBAL, MODEL

POLICIES = {"exact": "pass", "blend:0.08": "pass", "none": "fail"}


def start(head_map: Path, *repairs: str, key: Path | None = None, uncertified: bool = False, **other: Any) -> Any:
    """What a server of the embedded model finds at start. other: `model`, `sglang` or `redknot` in place of those here."""
    served = Served(
        head_map=load_head_map(head_map),
        map_path=head_map,
        model=lambda: fingerprint_model(other.get("model", MODEL)),
        sglang=other.get("sglang", SGLANG),
        redknot=other.get("redknot", __version__),
        policies=("exact", *repairs),
    )
    return certify_start(served, key, uncertified)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def other_weights(folder: Path) -> Path:
    """A copy of the embedded model in which one weight is another."""
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    return folder


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A private and a public key file."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    pem = serialization.Encoding.PEM
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_what_fits_is_certified(tmp_path: Path) -> None:
    head_map = certified_map(tmp_path, policies=POLICIES)
    digest = read_certificate(certificate_path(head_map)).digest
    found = start(head_map, "blend:0.08")
    assert found == Certification(digest, ("exact", "blend:0.08"), None, enforced=True)
    assert found.status("exact") == {
        "certified": True,
        "digest": digest,
        "policies": ["exact", "blend:0.08"],
        "uncertified_allowed": False,
        "weights": "started",
        "reason": None,
    }
    assert found.report("exact") == {"certified": True, "certificate": digest}
    assert found.report("none") == {"certified": False, "certificate": None}


def test_a_patch_release_keeps_certificates_and_a_map_may_be_formatted_anew(tmp_path: Path) -> None:
    head_map = certified_map(tmp_path)
    major, minor, _ = __version__.split(".")
    edit(head_map, lambda document: document["provenance"].update(note="formatted"))
    assert start(head_map, redknot=f"{major}.{minor}.99").covers("exact")


def _tamper_certificate(head_map: Path, folder: Path) -> dict[str, Any]:
    edit(certificate_path(head_map), lambda document: document["policies"].update(none={"verdict": "pass"}))
    return {}


def _tamper_map(head_map: Path, folder: Path) -> dict[str, Any]:
    edit(head_map, lambda document: document["local"].update(window=64))
    return {}


def _remove_certificate(head_map: Path, folder: Path) -> dict[str, Any]:
    certificate_path(head_map).unlink()
    return {}


def _write_text(text: str) -> Callable[[Path, Path], dict[str, Any]]:
    def act(head_map: Path, folder: Path) -> dict[str, Any]:
        certificate_path(head_map).write_text(text)
        return {}

    return act


def _incomplete(head_map: Path, folder: Path) -> dict[str, Any]:
    document = make_document(head_map)
    del document["model"]["config"]
    write_certificate(certificate_path(head_map), seal(document))
    return {}


def _future(head_map: Path, folder: Path) -> dict[str, Any]:
    write_certificate(certificate_path(head_map), seal(make_document(head_map, version=2)))
    return {}


def _dummy(head_map: Path, folder: Path) -> dict[str, Any]:
    document = make_document(head_map)
    document["model"] |= {"kind": "dummy", "weights": "dummy"}
    write_certificate(certificate_path(head_map), seal(document))
    return {}


def _other_config(head_map: Path, folder: Path) -> dict[str, Any]:
    model = other_weights(folder / "model")
    edit(model / "config.json", lambda config: config.update(rope_theta=1e4))
    return {"model": model}


# Name of the case: what happens to a certified map, and what the refusal must say.
REFUSED: dict[str, tuple[Callable[[Path, Path], dict[str, Any]], str]] = {
    "missing": (_remove_certificate, "there is no certificate"),
    "tampered certificate": (_tamper_certificate, "was changed after it was made: its digest does not fit"),
    "tampered map": (_tamper_map, "is not the one that map.certificate.json certifies"),
    "not JSON": (_write_text("certified!"), "is not JSON"),
    "another document": (_write_text('{"format": "x"}'), "is not a certificate of RedKnot"),
    "incomplete": (_incomplete, "is not complete"),
    "format of the future": (_future, "has format version 2, this release reads 1"),
    "other weights": (lambda m, f: {"model": other_weights(f / "model")}, "the weights differ from the certified ones"),
    "other config": (_other_config, "config.json differs from the certified one"),
    "dummy weights": (_dummy, "the certificate is about dummy weights"),
    "other SGLang": (lambda m, f: {"sglang": "0.5.18"}, f"certifies SGLang {SGLANG}, and this is SGLang 0.5.18"),
    "other redknot": (lambda m, f: {"redknot": "0.99.0"}, "and this is redknot-sglang 0.99"),
    "another policy": (lambda m, f: {"repair": "boundary:16"}, "policy boundary:16 is not in the certificate"),
    "a policy with lead": (lambda m, f: {"repair": "none+lead"}, "redknot certify --repair none --lead lead"),
    "failed verdict": (lambda m, f: {"repair": "none"}, "policy none failed its certification"),
    "unsigned": (lambda m, f: {"key": make_keys(f, "mine")[1]}, "is not signed, and this server demands the key"),
    "no key": (lambda m, f: {"key": m}, "is not an Ed25519 public key"),
    "missing key": (lambda m, f: {"key": f / "none.pem"}, "cannot be read: No such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_or_served_as_uncertified(case: str, tmp_path: Path) -> None:
    act, sentence = REFUSED[case]
    head_map = certified_map(tmp_path, policies=POLICIES)
    options = act(head_map, tmp_path)
    repairs = (options.pop("repair"),) if "repair" in options else ()
    with pytest.raises(CertificateError) as refused:
        start(head_map, *repairs, **options)
    message = str(refused.value)
    assert sentence in message and message.endswith("; or serve without: --redknot-uncertified")
    assert len(message.splitlines()) == 1
    others = {s for s in (sentence for _, sentence in REFUSED.values()) if s != sentence and s in message}
    assert not others, "each case has a sentence of its own"
    allowed = start(head_map, *repairs, **options, uncertified=True)
    assert not allowed.enforced and sentence in allowed.reason
    assert not allowed.covers(repairs[0] if repairs else "exact")
    # A policy that is not certified takes nothing from those that are.
    assert allowed.covers("exact") == bool(repairs)


def test_a_failed_exact_verdict_is_refused(tmp_path: Path) -> None:
    head_map = certified_map(tmp_path, policies={"exact": "fail", "none": "pass"})
    with pytest.raises(CertificateError, match="policy exact failed its certification"):
        start(head_map)


def test_signatures_are_those_of_the_key_that_is_demanded(tmp_path: Path) -> None:
    (private, public), (_, other) = make_keys(tmp_path, "mine"), make_keys(tmp_path, "theirs")
    head_map = certified_map(tmp_path, key=read_private_key(private))
    assert start(head_map, key=public).covers("exact")
    assert start(head_map).covers("exact"), "a signature does not hurt where none is demanded"
    with pytest.raises(CertificateError, match="is not signed with the key that this server demands"):
        start(head_map, key=other)
    path = certificate_path(head_map)
    # Whoever changes a certificate can compute its digest anew, but not its signature.
    document = json.loads(path.read_text())
    signature = document.pop("signature")
    document["policies"]["none"] = {"verdict": "pass"}
    write_certificate(path, seal(document) | {"signature": signature})
    with pytest.raises(CertificateError, match="is not signed with the key"):
        start(head_map, key=public)
    assert start(head_map).covers("none"), "which is why operators who care demand a key"


def test_a_public_key_does_not_sign(tmp_path: Path) -> None:
    _, public = make_keys(tmp_path, "mine")
    with pytest.raises(CertificateError, match="is not an unencrypted Ed25519 private key"):
        read_private_key(public)


def test_an_all_global_map_needs_a_certificate_for_segments_only(tmp_path: Path) -> None:
    head_map = tmp_path / "all.json"
    shutil.copy(ALL_GLOBAL, head_map)
    found = start(head_map)
    assert found.covers("exact") and found.digest is None and "every head global" in found.reason
    with pytest.raises(CertificateError, match="there is no certificate"):
        start(head_map, "none")
    certificate_path(head_map).write_text("broken")
    found = start(head_map)
    assert found.covers("exact") and "is not JSON" in found.reason
    write_certificate(
        certificate_path(head_map), seal(make_document(head_map, policies={"exact": "fail", "none": "pass"}))
    )
    found = start(head_map, "none")
    assert found.policies == ("exact", "none"), "its exact mode is stock's, whatever was measured"


def test_weights_are_read_only_if_everything_else_fits(tmp_path: Path) -> None:
    head_map = certified_map(tmp_path)
    with pytest.raises(CertificateError, match="this is SGLang 9"):
        start(head_map, sglang="9", model=tmp_path / "nowhere")


def test_digests_do_not_depend_on_formatting(tmp_path: Path) -> None:
    head_map = certified_map(tmp_path)
    path = certificate_path(head_map)
    before = read_certificate(path).digest
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7, sort_keys=True))
    assert read_certificate(path).digest == before
