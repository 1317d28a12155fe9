# SPDX-License-Identifier: Apache-2.0
"""Import-only stand-in for SGLang's CUDA kernels, used where there is no CUDA driver.

Every attribute and submodule can be imported; calling one raises, since the real kernel needs a GPU.
"""

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

__version__ = "0.0.0+redknot.standin"


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
        if fullname.startswith("sgl_kernel."):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        return _StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: attributes appear on access."""


def __getattr__(attr: str) -> Any:
    if attr.startswith("__"):
        raise AttributeError(attr)
    return _MissingKernel(f"sgl_kernel.{attr}")


if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
    sys.meta_path.insert(0, _Finder())
