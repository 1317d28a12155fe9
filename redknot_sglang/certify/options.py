# SPDX-License-Identifier: Apache-2.0
"""The options of `redknot certify`, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from redknot_sglang.certify.verdict import Thresholds
from redknot_sglang.config import LEADS

# First seed of held-out prompts: far above that of `redknot profile`, whose default is 1000.
FIRST_SEED = 1_000_000


@dataclass(frozen=True)
class Options:
    """The options of one certification; docs/certify.md says what each is for.

    model: the model's folder, as the user wrote it.
    head_map: file of the map.
    thresholds: what may be lost.
    device: `cpu` or `cuda`, where both servers run.
    repairs: names of repair policies to certify beside exact mode, not yet checked.
    controls: of policies that select, as the flag's text, not yet checked; None for none.
    lead: one of LEADS: whether segments are computed by themselves or behind the prompt's lead.
    tasks: names of generated tasks separated by commas, `none`, or None for all.
    task_dir: folder of the task package, or None for the checkout's.
    lengths: tokens of generated prompts.
    n: prompts of each task and length.
    seed: seed of the first one; the others follow.
    data: files of the user's own prompts (JSONL).
    max_tokens: tokens of an answer at most.
    key: Ed25519 private key (PEM) to sign with, or None.
    concurrency: requests in flight.
    logs: folder where the servers' logs stay, or None to keep none.
    fresh: whether to forget the answers of a run that was interrupted.
    flags: of both servers.
    stock_flags: of stock SGLang alone.
    """

    model: str
    head_map: Path
    thresholds: Thresholds
    device: str
    repairs: Sequence[str] = ()
    controls: str | None = None
    lead: str = LEADS[0]
    tasks: str | None = None
    task_dir: Path | None = None
    lengths: Sequence[int] = (1024, 2048, 4096)
    n: int = 400
    seed: int = FIRST_SEED
    data: Sequence[Path] = ()
    max_tokens: int = 64
    key: Path | None = None
    concurrency: int = 8
    logs: Path | None = None
    fresh: bool = False
    flags: Sequence[str] = ()
    stock_flags: Sequence[str] = ()
