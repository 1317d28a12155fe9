# SPDX-License-Identifier: Apache-2.0
"""The SGLang versions that this release knows, and the one that is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from redknot_sglang.errors import SeamError

# The oldest first.
SUPPORTED_SGLANG = ("0.5.17", "0.5.18", "0.5.23")
# The one of `requirements.txt`, with which everything is tested, on GPUs as well.
PINNED_SGLANG = "0.5.17"


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
            f"redknot-sglang supports SGLang {supported}, found {found}; pip install sglang=={PINNED_SGLANG}"
        )


def folder_of(version: str) -> str:
    """Name of the folders with what is made for a known version: `v0_5_17` for 0.5.17."""
    return "v" + version.replace(".", "_")


def version_folders() -> tuple[str, ...]:
    """Names of the folders that the installed SGLang is served from: of all versions up to it, each building on the one before.

    For a version that is not known they are those of the newest one: without `--redknot` such an SGLang goes on as it is, and
    with it `check_version` refuses to start.
    """
    found = sglang_version()
    last = SUPPORTED_SGLANG.index(found) if found in SUPPORTED_SGLANG else len(SUPPORTED_SGLANG) - 1
    return tuple(folder_of(known) for known in SUPPORTED_SGLANG[: last + 1])


def version_folder() -> str:
    """The last of them: its tables and hooks are those in force, and it takes from earlier folders what has not changed."""
    return version_folders()[-1]
