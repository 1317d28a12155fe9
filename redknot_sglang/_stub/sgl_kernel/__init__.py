# SPDX-License-Identifier: Apache-2.0
"""Stand-in for SGLang's CUDA kernels, used where there is no CUDA driver.

Every attribute and submodule can be imported; calling one raises, since the real kernel needs a GPU. Only what a CPU server of
ours calls is there: the kernels of speculative decoding (`speculative.py`, `drafting.py`).
"""

import importlib.abc
import importlib.machinery
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.0.0+redknot.standin"
# Kernels that SGLang imports from the package itself, and the submodule that has them.
_WRITTEN = {
    "assign_draft_cache_locs_contiguous_cpu": "drafting",
    "assign_extend_cache_locs_cpu": "speculative",
    "assign_req_to_token_pool_cpu": "speculative",
    "build_tree_kernel_efficient_cpu": "drafting",
    "copy_all_layer_kv_cache_cpu": "drafting",
    "fill_accept_out_cache_loc_cpu": "speculative",
    "fill_bonus_tokens_cpu": "drafting",
    "verify_tree_greedy_cpu": "speculative",
}


class _MissingKernel:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attr: str) -> "_MissingKernel":
        if attr.startswith("__"):
            raise AttributeError(attr)
        return _MissingKernel(f"{self._name}.{attr}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            f"{self._name} needs a CUDA GPU; this machine has no CUDA driver (start SGLang with --device cpu)"
        )


class _StandInModule(ModuleType):
    __path__: list[str] = []

    def __getattr__(self, attr: str) -> Any:
        if attr.startswith("__"):
            raise AttributeError(attr)
        return _MissingKernel(f"{self.__name__}.{attr}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname.startswith("sgl_kernel.") and fullname.removeprefix("sgl_kernel.") not in _WRITTEN.values():
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        return _StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: attributes appear on access."""


def __getattr__(attr: str) -> Any:
    if attr.startswith("__"):
        raise AttributeError(attr)
    if attr in _WRITTEN:
        return getattr(import_module(f"sgl_kernel.{_WRITTEN[attr]}"), attr)
    return _MissingKernel(f"sgl_kernel.{attr}")


if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
    sys.meta_path.insert(0, _Finder())
