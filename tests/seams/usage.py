# SPDX-License-Identifier: Apache-2.0
"""What the package uses of SGLang, read from its source and its classes: what the table of the surface must have.

A use is a module below `sglang.srt` with a name in it. Where that is called or hooked its parameters matter, and the keywords
that it is given are noted.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import redknot_sglang
from redknot_sglang.hooks import all_seams
from redknot_sglang.versions import version_folder

PACKAGE = Path(redknot_sglang.__file__).resolve().parent
NAMES = PACKAGE / "seams" / version_folder() / "names.py"
_FROM = "redknot_sglang.seams.sglang"
# Rooms with classes that derive from SGLang's.
_DERIVING = (
    "radix.cache",
    "radix.local_heads",
    "radix.local_locks",
    "pool.configurator",
    "pool.head_class_pool",
    "attention",
)
# Names under which the package holds SGLang's objects, wherever it holds them.
_OBJECTS = {
    "req": "managers.schedule_batch:Req",
    "batch": "managers.schedule_batch:ScheduleBatch",
    "scheduler": "managers.scheduler:Scheduler",
    "time_stats": "observability.req_time_stats:SchedulerReqTimeStats",
    "params": "sampling.sampling_params:SamplingParams",
    "adder": "managers.schedule_policy:PrefillAdder",
    "manager": "managers.tokenizer_manager:TokenizerManager",
    "allocator": "mem_cache.allocator.swa:SWATokenToKVPoolAllocator",
    "tree": "mem_cache.unified_radix_cache:UnifiedRadixCache",
    "tree_cache": "mem_cache.unified_radix_cache:UnifiedRadixCache",
    "tree_core": "mem_cache.unified_cache.unified_tree_core:UnifiedTreeCore",
    "key": "mem_cache.radix_cache:RadixKey",
    "lock": "mem_cache.base_prefix_cache:IncLockRefResult",
    "runner": "model_executor.runner.prefill_cuda_graph_runner:PrefillCudaGraphRunner",
    "backend": "model_executor.runner_backend.breakable_cuda_graph_backend:BreakableCudaGraphBackend",
    "forward_mode": "model_executor.forward_batch_info:ForwardMode",
    "server_args": "server_args:ServerArgs",
    "model_config": "configs.model_config:ModelConfig",
}

# Calling these looks a member up.
_ENUMS = ("HookType",)

# By module and name: keywords that it is called with, None if it is not called.
Uses = dict[tuple[str, str], set[str] | None]
Use = tuple[tuple[str, str], set[str] | None]


@cache
def _trees() -> Mapping[Path, ast.Module]:
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if "_stub" not in path.parts]
    return {path: ast.parse(path.read_text()) for path in paths}


def sglang_imports() -> Iterator[tuple[Path, str, str]]:
    """Every import of SGLang: file, module below `sglang.srt`, name."""
    for path, tree in _trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name, "") for alias in node.names if alias.name.split(".")[0] == "sglang")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglang":
                module = (node.module or "").removeprefix("sglang.srt.")
                yield from ((path, module, alias.name) for alias in node.names)


def asked() -> Iterator[tuple[Path, str]]:
    """Names that files ask `seams/sglang.py` for."""
    for path, tree in _trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == _FROM:
                yield from ((path, alias.name) for alias in node.names)


def uses() -> Uses:
    """All of them."""
    found: Uses = {}
    for use, keywords in (*_of_names(), *_of_hooks(), *_of_classes(), *_of_objects()):
        before = found.get(use)
        found[use] = before if keywords is None else keywords | (before or set())
    return found


def _of_names() -> Iterator[Use]:
    """Imported names, what is called, and what is taken of them, such as members of an enumeration."""
    modules = {name: module for _, module, name in sglang_imports()}
    for path, name in asked():
        module = modules[name]
        yield (module, name), None
        for node in ast.walk(_trees()[path]):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == name
                and name not in _ENUMS
            ):
                yield (module, name), {keyword.arg for keyword in node.keywords if keyword.arg}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name:
                whole = getattr(import_module(f"sglang.srt.{module}"), name)
                if hasattr(whole, node.attr):
                    yield (module, f"{name}.{node.attr}"), set() if _is_function(whole, node.attr) else None


def _is_function(whole: Any, name: str) -> bool:
    return isinstance(inspect.getattr_static(whole, name), FunctionType | classmethod | staticmethod)


def _of_hooks() -> Iterator[Use]:
    for seam in all_seams():
        yield split(seam.target), set()


def split(target: str) -> tuple[str, str]:
    """A dotted path below `sglang.srt` as module and name: modules are in small letters, and functions come last."""
    parts = target.split(".")
    stop = next((index for index, part in enumerate(parts) if part[0].isupper()), len(parts) - 1)
    return ".".join(parts[:stop]), ".".join(parts[stop:])


def _of_classes() -> Iterator[Use]:
    """What our classes take over from those that they derive from: what they override, call and read."""
    modules = {name: module for _, module, name in sglang_imports()}
    for room in _DERIVING:
        for derived in vars(import_module(f"redknot_sglang.{room}")).values():
            if not isinstance(derived, type) or derived.__module__ != f"redknot_sglang.{room}":
                continue
            base = next((cls for cls in derived.__mro__ if cls.__module__.startswith("sglang.")), None)
            if base is None:
                continue
            for name in _own(derived):
                if hasattr(base, name) and getattr(base, name) is not getattr(object, name, None):
                    use = modules[base.__name__], f"{base.__name__}.{name}"
                    yield use, set() if _is_function(base, name) else None


def _own(derived: type) -> Iterator[str]:
    """Names that a class's code defines, and those that it looks up on `self`, `cls` and `super()`."""
    tree = _trees()[Path(inspect.getsourcefile(derived) or "").resolve()]
    (body,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == derived.__name__]
    for node in ast.walk(body):
        if isinstance(node, ast.FunctionDef) and node in body.body:
            yield node.name
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            value = node.value.func if isinstance(node.value, ast.Call) else node.value
            if isinstance(value, ast.Name) and value.id in ("self", "cls", "super"):
                yield node.attr


def _of_objects() -> Iterator[Use]:
    """Methods that are called on SGLang's objects under the names that they have here."""
    for tree in _trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and (place := _OBJECTS.get(_held(node.value))):
                module, name = place.split(":")
                whole = pkgutil.resolve_name(f"sglang.srt.{place}")
                if hasattr(whole, node.attr) and _is_function(whole, node.attr):
                    yield (module, f"{name}.{node.attr}"), set()


def _held(node: ast.expr) -> str:
    """The last part of `req`, `self._allocator` and `tree.token_to_kv_pool_allocator`, as `_OBJECTS` calls it."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return "allocator" if name == "token_to_kv_pool_allocator" else name.removeprefix("_")
