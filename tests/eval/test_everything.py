# SPDX-License-Identifier: Apache-2.0
"""Steps that share GPUs: who waits for whom, what is interrupted, killed or passed over, and what a second command does."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from eval import everything
from eval.everything import STEPS, Runner, Step, finished, main

# A process that writes its GPUs and when it began and ended, and what it does with an interrupt.
TOLD = """
import os, signal, subprocess, sys, time
from pathlib import Path
name, out, what, seconds = sys.argv[1:]
if what == "deaf":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
begin = time.monotonic()
Path(out, "told").write_text(f"{os.environ['CUDA_VISIBLE_DEVICES']} {child.pid} {os.environ.get('MORE')}")
try:
    time.sleep(float(seconds))
except KeyboardInterrupt:
    Path(out, "interrupted").touch()
    child.kill()
    sys.exit(3)
child.kill()
Path(out, "span").write_text(f"{begin} {time.monotonic()}")
sys.exit(1 if what == "fail" else 0)
"""


def step(name: str, gpus: int, seconds: int, what: str, takes: float, **environment: str) -> Step:
    return Step(name, gpus, seconds, f"{name} {{out}} {what} {takes}", environment)


def run(out: Path, steps: list[Step], gpus: int, seconds: float = 60) -> dict[str, int | None]:
    out.mkdir(exist_ok=True)
    numbers = [str(number) for number in range(gpus)]
    return Runner(steps, numbers, out, None, seconds, lambda words: [sys.executable, "-c", TOLD, *words]).run()


def span(out: Path, name: str) -> tuple[float, float]:
    begin, end = (out / name / "span").read_text().split()
    return float(begin), float(end)


def test_steps_take_free_gpus_in_order_and_wait_for_as_many_as_they_need(tmp_path: Path) -> None:
    steps = [
        step("one", 1, 20, "well", 0.5),
        step("both", 2, 20, "well", 0.5, MORE="yes"),
        step("after", 1, 20, "fail", 0.1),
        step("beside", 1, 20, "well", 0.1),
    ]
    assert run(tmp_path, steps, 2) == {"one": 0, "both": 0, "after": 1, "beside": 0}
    spans = {name: span(tmp_path, name) for name in ("one", "both", "after", "beside")}
    assert spans["both"][0] > spans["one"][1] and min(spans["after"][0], spans["beside"][0]) > spans["both"][1]
    used = {name: (tmp_path / name / "told").read_text().split()[0] for name in spans}
    assert used["both"] in ("0,1", "1,0") and used["after"] != used["beside"]
    assert (tmp_path / "both" / "told").read_text().endswith(" yes")
    assert "after ended with 1" in (tmp_path / "progress.txt").read_text()


def test_a_step_that_is_late_is_interrupted_or_killed_with_its_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(everything, "_GRACE", 1)
    codes = run(tmp_path, [step("late", 1, 3, "well", 50), step("deaf", 1, 3, "deaf", 50)], 2)
    assert codes == {"late": 3, "deaf": -9}
    assert (tmp_path / "late" / "interrupted").exists()
    child = int((tmp_path / "deaf" / "told").read_text().split()[1])
    for _ in range(50):
        if not _lives(child):
            break
        time.sleep(0.1)
    assert not _lives(child)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A child of a process that was killed stays in the table until somebody looks.
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_what_would_not_end_in_time_is_passed_over(tmp_path: Path) -> None:
    codes = run(tmp_path, [step("long", 1, 1000, "well", 0.1), step("short", 1, 5, "well", 0.1)], 1, seconds=30)
    assert codes == {"long": None, "short": 0}
    assert "long passed over: it may take 1000 s" in (tmp_path / "progress.txt").read_text()


def test_a_second_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    steps = (step("good", 1, 20, "well", 0.1), step("bad", 1, 20, "fail", 0.1), step("two", 2, 20, "well", 0.1))
    monkeypatch.setattr(everything, "STEPS", steps)
    monkeypatch.setattr(everything, "_module", lambda words: [sys.executable, "-c", TOLD, *words])
    words = ["--out", str(tmp_path)]
    assert main(words) == 1
    assert json.loads((tmp_path / "codes.json").read_text()) == {"good": 0, "bad": 1}
    assert finished(tmp_path) == {"good"}
    assert main(words) == 1
    assert (tmp_path / "progress.txt").read_text().count("good begins") == 1
    assert main([*words, "--only", "good"]) == 2 and "nothing is left to do" in capsys.readouterr().err
    assert main([*words, "--only", "none"]) == 2 and "no step 'none'" in capsys.readouterr().err


def test_the_commands_are_of_this_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(STEPS) == len({step.name for step in STEPS})
    for one in STEPS:
        module, *words = one.words.split()
        if module == "pytest":
            assert all(Path(word).is_file() for word in words if word.startswith("tests/"))
        else:
            assert Path(*module.split(".")).with_suffix(".py").is_file()
