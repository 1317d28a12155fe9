# SPDX-License-Identifier: Apache-2.0
"""`redknot doctor`: versions, seams and attention backends of this machine, and what is missing."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version

from redknot_sglang import __version__, cpu, seams

_PACKAGES = ("sglang", "torch", "triton", "flashinfer-python", "sglang-kernel", "transformers", "numpy")
_EXAMPLE_HEAD_DIM = 128


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("doctor", help="versions, seams, backends; says what is missing")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 if a server would start with --redknot, else 1."""
    problems = [*_report_versions(), *_report_plugin()]
    if "sglang" not in " ".join(problems):
        problems += _report_seams()
        _report_attention()
    for problem in problems:
        print(f"missing: {problem}")
    print("ready: a server starts with --redknot" if not problems else f"{len(problems)} problem(s) to solve first")
    return 1 if problems else 0


def _report_versions() -> list[str]:
    print(f"redknot-sglang {__version__}, Python {platform.python_version()}, {platform.machine()}")
    for package in _PACKAGES:
        print(f"  {package} {_version(package) or 'not installed'}")
    try:
        seams.check_version()
    except seams.SeamError as error:
        return [str(error)]
    return []


def _report_plugin() -> list[str]:
    found = [entry.value for entry in entry_points(group="sglang.srt.plugins") if entry.name == "redknot"]
    print(f"plugin entry point: {', '.join(found) or 'none'}")
    chosen = os.environ.get("SGLANG_PLUGINS")
    if chosen is not None and "redknot" not in chosen.split(","):
        return [f"SGLANG_PLUGINS={chosen} leaves the plugin out; add redknot to it or unset it"]
    return [] if found else ["the plugin's entry point; install the package: pip install redknot-sglang"]


def _report_seams() -> list[str]:
    if cpu.install_kernel_stand_in():
        # SGLang decides at import whether it may use the CPU, as its CPU servers do.
        os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    from sglang.srt.plugins.hook_registry import HookRegistry

    seams.install()
    HookRegistry.apply_hooks()
    absent = seams.missing()
    print("seams:")
    for seam in seams.all_seams():
        print(f"  {'missing' if seam in absent else 'ok':8}{seam.target.removeprefix('sglang.srt.')}: {seam.why}")
    return [f"seam {seam.target} ({seam.why})" for seam in absent]


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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
