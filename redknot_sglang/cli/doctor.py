# SPDX-License-Identifier: Apache-2.0
"""`redknot doctor`: versions, seams and attention backends of this machine, and what is missing."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

from redknot_sglang import __version__, cpu, plugin, seams
from redknot_sglang.errors import CliError, SeamError
from redknot_sglang.seams.newer import losses
from redknot_sglang.seams.source import Source
from redknot_sglang.seams.surface import fields, surface
from redknot_sglang.versions import SUPPORTED_SGLANG, check_version, folder_of

_PACKAGES = ("sglang", "torch", "triton", "flashinfer-python", "sglang-kernel", "transformers", "numpy")
_EXAMPLE_HEAD_DIM = 128


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `doctor` on what `ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser("doctor", help="versions, seams, backends, memory; says what is missing")
    parser.add_argument(
        "--model",
        metavar="DIR",
        default=None,
        help="also say how much memory a server of this model would take; flags of that server may follow behind --",
    )
    parser.add_argument(
        "--sglang",
        metavar="PATH",
        type=Path,
        default=None,
        help="only say what another SGLang lacks of what RedKnot uses: PATH is a virtual environment, a folder that its wheel was "
        "unpacked to, or a checkout; nothing of it is imported",
    )
    parser.set_defaults(func=run, takes_server_flags=True)


def run(args: argparse.Namespace) -> int:
    """Print the report. Returns 0 if a server would start with --redknot, else 1; with `--sglang` 0 if that SGLang has all that we
    use. Raises CliError for flags without a model, and for a model beside `--sglang`; SeamError where `--sglang` finds none.
    """
    if args.sglang is not None:
        if args.model is not None or args.server_flags:
            raise CliError("--sglang starts no server, and --model and flags behind -- are about one: leave either out")
        return _report_other(args.sglang)
    if args.server_flags and args.model is None:
        raise CliError("flags behind -- are those of a server: name its model with --model DIR")
    problems = [*_report_versions(), *_report_plugin()]
    if "sglang" not in " ".join(problems):
        problems += _report_seams()
        _report_attention()
        if args.model is not None:
            problems += _report_memory(args.model, args.server_flags)
    for problem in problems:
        print(f"missing: {problem}")
    print("ready: a server starts with --redknot" if not problems else f"{len(problems)} problem(s) to solve first")
    return 1 if problems else 0


def _report_other(path: Path) -> int:
    """Hold another SGLang against the tables of its own version, or of the newest one that we know."""
    source = Source(path)
    known = source.version if source.version in SUPPORTED_SGLANG else SUPPORTED_SGLANG[-1]
    assert known is not None
    print(
        f"SGLang {source.version or 'of a checkout'} in {source.root.parent}, and what RedKnot uses of SGLang {known}:"
    )
    found = list(losses(source, surface(folder_of(known)), fields(folder_of(known))))
    for loss in found:
        print(f"  {loss}")
    count = {kind: sum(loss.kind == kind for loss in found) for kind in ("gone", "changed", "unread")}
    print(", ".join(f"{number} {kind}" for kind, number in count.items()))
    return 1 if count["gone"] or count["changed"] else 0


def _report_versions() -> list[str]:
    print(f"redknot-sglang {__version__}, Python {platform.python_version()}, {platform.machine()}")
    for package in _PACKAGES:
        print(f"  {package} {_version(package) or 'not installed'}")
    try:
        check_version()
    except SeamError as error:
        return [str(error)]
    return []


def _report_plugin() -> list[str]:
    found = [entry.value for entry in entry_points(group=seams.PLUGINS) if entry.name == "redknot"]
    print(f"plugin entry point: {', '.join(found) or 'none'}")
    chosen = os.environ.get("SGLANG_PLUGINS")
    if chosen is not None and "redknot" not in chosen.split(","):
        return [f"SGLANG_PLUGINS={chosen} leaves the plugin out; add redknot to it or unset it"]
    return [] if found else ["the plugin's entry point; install the package: pip install redknot-sglang"]


def _report_seams() -> list[str]:
    if cpu.install_kernel_stand_in():
        # SGLang decides at import whether it may use the CPU, as its CPU servers do.
        os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    plugin.register()
    seams.apply()
    absent = seams.missing()
    print("seams:")
    for seam in seams.installed():
        print(f"  {'missing' if seam in absent else 'ok':8}{seam.target}: {seam.why}")
    differs = seams.differing()
    print(f"what is used of SGLang: {'differs, see below' if differs else 'as it should be'}")
    return [
        *(f"seam {seam.path} ({seam.why})" for seam in absent),
        *(f"SGLang as we know it: {text}" for text in differs),
    ]


def _report_attention() -> None:
    import torch

    from redknot_sglang.kernels.batch import ClassSpec
    from redknot_sglang.kernels.select import available_paths

    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if has_gpu else "cpu")
    name = torch.cuda.get_device_name() if has_gpu else "CPU (kernel stand-in)" if not cpu.has_cuda_driver() else "CPU"
    print(f"attention paths on {name}, bfloat16, head_dim {_EXAMPLE_HEAD_DIM}:")
    spec = ClassSpec(4, _EXAMPLE_HEAD_DIM, (1,), (7,), 256, 4, torch.bfloat16, device)
    for path, reason in available_paths(spec).items():
        print(f"  {path:12}{'ok' if reason is None else reason}")
    sys.stdout.flush()


def _report_memory(model: str, flags: Sequence[str]) -> list[str]:
    from redknot_sglang.errors import StartError
    from redknot_sglang.start_memory import estimate

    try:
        for line in estimate(model, flags):
            print(line)
    except StartError as error:
        return [f"a server of {model}: {error}"]
    return []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
