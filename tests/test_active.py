# SPDX-License-Identifier: Apache-2.0
"""The running configuration travels with SGLang's server arguments."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path

from redknot_sglang import active
from redknot_sglang.config import Certification, RedKnotConfig


@dataclass(frozen=True)
class Arguments:
    """Read-only, as SGLang's are once they are checked."""

    model_path: str = "model"


def test_without_redknot_there_is_none() -> None:
    assert active.config_of(Arguments()) is None


def test_it_reaches_other_processes_and_is_no_field_of_the_arguments() -> None:
    config = RedKnotConfig(Path("map.json"), mode="segmented", certification=Certification("d" * 64, ("exact",)))
    arguments = Arguments()
    active.attach(arguments, config)
    assert active.config_of(pickle.loads(pickle.dumps(arguments))) == config
    assert asdict(arguments) == {"model_path": "model"}


def test_what_is_attached_later_takes_its_place() -> None:
    arguments = Arguments()
    for policy in ("none", "boundary:4"):
        config = RedKnotConfig(Path("map.json"), repair=policy)
        active.attach(arguments, config)
        assert active.config_of(arguments) == config
