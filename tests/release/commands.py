# SPDX-License-Identifier: Apache-2.0
"""The commands that documents show, and the parser of a server's flags."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator

from sglang.srt.server_args import ServerArgs

from redknot_sglang.flags import add_cli_args
from tests.release.built import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("make", "redknot", "python", "pip", "docker", "kubectl", "curl")


def server_parser() -> argparse.ArgumentParser:
    """SGLang's flags and ours, whether the plugin has been applied in this process or not."""
    parser = argparse.ArgumentParser(conflict_handler="resolve", exit_on_error=False)
    ServerArgs.add_cli_args(parser)
    add_cli_args(parser)
    return parser


def shown() -> Iterator[tuple[str, list[str]]]:
    """File name and words of each command in a fenced block, without variables before it, comments and left out parts (`...`)."""
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                text = re.sub(r"^\s*(?:[A-Z_]+=\S+ )*", "", line)
                if text.split(" ")[0] in PROGRAMS:
                    yield page.name, [word for word in shlex.split(text, comments=True) if word != "..."]
