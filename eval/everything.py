# SPDX-License-Identifier: Apache-2.0
"""Many GPU measurements in one go, side by side where there are several GPUs: for a machine that is there for minutes.

    python -m eval.everything --list
    python -m eval.everything --out out/everything --seconds 1500
    python -m eval.everything --out out/everything --only one_rank,tiers_32k
    python -m eval.everything --out out/everything --models out/real      # and what needs pretrained weights

Steps begin in the order of `eval/gpu/all_steps.py`, each as soon as as many GPUs are free as it needs; a step for which too little of `--seconds` is left
is passed over. A step gets an interrupt when its own time is over, so that it can write what it has, and is killed 20 seconds later.
Whatever a step prints is in `STEP.txt`, its results are in the folder `STEP`, and `progress.txt` has a line when a step begins and one when it
ends. Given again with the same `--out`, the command goes on with the steps that have not ended with exit code 0.

Steps that share a machine share its processors and its host memory: give `--one-at-a-time` for times that are to be published.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from eval.gpu.all_steps import STEPS, Step
from redknot_sglang.errors import CliError

# Seconds that a step has after the interrupt.
_GRACE = 20
_PAUSE = 0.2


@dataclass
class Running:
    """A step that has begun. until: `time.monotonic()` at which it is interrupted. interrupted: whether it has been."""

    step: Step
    gpus: list[str]
    process: subprocess.Popen[bytes]
    until: float
    interrupted: bool = False


class Runner:
    """Runs steps on GPUs.

    steps: in the order in which they are wanted. gpus: numbers of the GPUs, as CUDA_VISIBLE_DEVICES names them. out: folder of
    what comes. models: folder of pretrained weights. seconds: after which no step begins that would not end. command: makes the words
    of a process from those of a step.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        gpus: Sequence[str],
        out: Path,
        models: Path | None,
        seconds: float,
        command: Callable[[list[str]], list[str]],
    ) -> None:
        self._waiting, self._free, self._out, self._models = list(steps), list(gpus), out, models
        self._command, self._running = command, list[Running]()
        self._begin = time.monotonic()
        self._end = self._begin + seconds
        self.codes: dict[str, int | None] = {}

    def run(self) -> dict[str, int | None]:
        """All steps. Returns the exit code of each by name, None for those that were passed over."""
        try:
            while self._waiting or self._running:
                self._reap()
                self._start()
                time.sleep(_PAUSE)
        finally:
            for running in self._running:
                _end(running)
        return self.codes

    def _start(self) -> None:
        for step in list(self._waiting):
            if time.monotonic() + step.seconds > self._end:
                self._waiting.remove(step)
                self.codes[step.name] = None
                self._say(f"{step.name} passed over: it may take {step.seconds} s")
            elif step.gpus <= len(self._free):
                self._waiting.remove(step)
                self._launch(step)
            elif step.gpus > 1:
                # Steps behind it would take the GPUs that it waits for, again and again.
                return

    def _launch(self, step: Step) -> None:
        gpus, self._free = self._free[: step.gpus], self._free[step.gpus :]
        folder = self._out / step.name
        # Of an attempt that failed.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        words = [word.format(out=folder, models=self._models) for word in shlex.split(step.words)]
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(gpus), **step.environment}
        with (self._out / f"{step.name}.txt").open("wb") as log:
            process = subprocess.Popen(
                self._command(words), stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True
            )
        self._running.append(Running(step, gpus, process, time.monotonic() + step.seconds))
        self._say(f"{step.name} begins on {','.join(gpus)}")

    def _reap(self) -> None:
        now = time.monotonic()
        for running in list(self._running):
            code = running.process.poll()
            if code is None:
                if now > running.until + _GRACE:
                    _end(running)
                elif now > running.until and not running.interrupted:
                    running.interrupted = True
                    running.process.send_signal(signal.SIGINT)
                continue
            self._running.remove(running)
            self._free += running.gpus
            self.codes[running.step.name] = code
            late = ", interrupted" if running.interrupted else ""
            self._say(f"{running.step.name} ended with {code}{late}")

    def _say(self, text: str) -> None:
        line = f"{time.monotonic() - self._begin:7.0f} s  {text}"
        print(line, flush=True)
        with (self._out / "progress.txt").open("a") as progress:
            progress.write(line + "\n")


def _end(running: Running) -> None:
    """End a step and its servers, which have sessions of their own and would keep the memory of its GPUs."""
    try:
        step = psutil.Process(running.process.pid)
        processes = [*step.children(recursive=True), step]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def gpus_here() -> list[str]:
    """Numbers of the GPUs that this process may use. Raises CliError where there is none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return named.split(",")
    try:
        words = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise CliError("there is no NVIDIA driver here: these measurements need a GPU") from error


def wanted(args: argparse.Namespace, gpus: int) -> list[Step]:
    """Steps that were asked for and can be run. Raises CliError for a name that is none, or if nothing is left."""
    known = {step.name: step for step in STEPS}
    unknown = [name for name in args.only or [] if name not in known]
    if unknown:
        raise CliError(f"--only: there is no step {unknown[0]!r}; --list shows all")
    done = finished(args.out)
    steps = [known[name] for name in args.only] if args.only else list(STEPS)
    left = [step for step in steps if step.name not in done and step.gpus <= gpus]
    left = [step for step in left if args.models is not None or not step.needs_models]
    if not left:
        raise CliError("nothing is left to do: every step has ended well, or needs more GPUs, or --models")
    return left


def finished(out: Path) -> set[str]:
    """Names of the steps that an earlier command with the same folder has run well."""
    path = out / "codes.json"
    return {name for name, code in json.loads(path.read_text()).items() if code == 0} if path.is_file() else set()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if all steps that began ended well, 1 if not, 2 if nothing could begin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the steps and their commands")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="STEP,STEP", help="these, in this order")
    parser.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        help="pretrained weights, as `make real` writes them, and Natural Questions as published, nq.jsonl.gz",
    )
    parser.add_argument("--seconds", type=float, default=3600.0, help="of this machine (%(default)s)")
    parser.add_argument("--one-at-a-time", action="store_true", help="no two steps side by side")
    parser.add_argument("--out", type=Path, default=Path("out/everything"), metavar="DIR", help="(%(default)s)")
    args = parser.parse_args(argv)
    if args.list:
        for step in STEPS:
            print(f"{step.name}, {step.gpus} GPU, {step.seconds} s: python -m {step.words}")
        return 0
    try:
        gpus = gpus_here()
        steps = wanted(args, len(gpus))
    except CliError as error:
        print(f"eval.everything: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    if args.one_at_a_time:
        steps = [replace(step, gpus=len(gpus)) for step in steps]
    codes = Runner(steps, gpus, args.out, args.models, args.seconds, _module).run()
    before = {name: 0 for name in finished(args.out)}
    (args.out / "codes.json").write_text(json.dumps(before | codes, indent=1))
    return 0 if all(code in (0, None) for code in codes.values()) else 1


def _module(words: list[str]) -> list[str]:
    return [sys.executable, "-m", *words]


if __name__ == "__main__":
    # The steps' servers are ended on the way out, which an unhandled SIGTERM would skip.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
