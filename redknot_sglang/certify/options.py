# SPDX-License-Identifier: Apache-2.0
"""What the user of `redknot certify` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from redknot_sglang.certify.verdict import Thresholds
from redknot_sglang.config import LEADS

# Far from where calibration starts by default.
FIRST_SEED = 1_000_000


@dataclass(frozen=True)
class Options:
    """The options of one certification; `docs/certify.md` says what each is for.

    model: the model's folder, as the user gave it. repairs: names of repair policies, unchecked. tasks: names of generated
    tasks separated by commas, `none`, or None for all. task_dir: task package, None for the checkout's. lengths: tokens of
    generated prompts. n: prompts of each task and length, from `seed` on. data: the user's own prompts. max_tokens: limit of
    an answer. key: Ed25519 private key (PEM) to sign with. device: `cpu` or `cuda`. concurrency: requests in flight. logs:
    where the servers' logs stay, None for nowhere. fresh: whether answers of a run that was cut are forgotten. flags: of
    both servers. stock_flags: of stock SGLang alone.
    """

    model: str
    head_map: Path
    thresholds: Thresholds
    device: str
    repairs: Sequence[str] = ()
    lead: str = LEADS[0]
    tasks: str | None = None
    task_dir: Path | None = None
    lengths: Sequence[int] = (1024, 2048, 4096)
    n: int = 400
    seed: int = FIRST_SEED
    data: Path | None = None
    max_tokens: int = 64
    key: Path | None = None
    concurrency: int = 8
    logs: Path | None = None
    fresh: bool = False
    flags: Sequence[str] = ()
    stock_flags: Sequence[str] = ()
