# SPDX-License-Identifier: Apache-2.0
"""The SGLang versions that this release knows, and the one that is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from redknot_sglang.errors import SeamError

SUPPORTED_SGLANG = ("0.5.17",)


def sglang_version() -> str | None:
    """Version of the installed SGLang, or None if there is none."""
    try:
        return version("sglang")
    except PackageNotFoundError:
        return None


def check_version() -> None:
    """Raises SeamError unless the installed SGLang is one that the seams were written for."""
    found = sglang_version()
    if found not in SUPPORTED_SGLANG:
        supported = ", ".join(SUPPORTED_SGLANG)
        raise SeamError(
            f"redknot-sglang supports SGLang {supported}, found {found}; pip install sglang=={SUPPORTED_SGLANG[-1]}"
        )


def version_folder() -> str:
    """Name of the folders with what is made for the installed SGLang, such as `v0_5_17`.

    For a version that is not known it is the newest one's: without `--redknot` such an SGLang goes on as it is, and with it
    `check_version` refuses to start.
    """
    found = sglang_version()
    known = found if found in SUPPORTED_SGLANG else SUPPORTED_SGLANG[-1]
    return "v" + known.replace(".", "_")
