# SPDX-License-Identifier: Apache-2.0
"""What the package uses of SGLang, read from its source and its classes: what the table of the surface must have.

A use is a module below `sglang.srt` with a name in it. Where that is called or hooked its parameters matter, and the keywords
that it is given are noted.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import redknot_sglang
from redknot_sglang.hooks import all_seams
from redknot_sglang.seams.surface import has_field
from redknot_sglang.versions import SUPPORTED_SGLANG, folder_of, sglang_version, version_folder, version_folders

PACKAGE = Path(redknot_sglang.__file__).resolve().parent
# Folders of versions that the installed one is not served from.
_OTHERS = {folder_of(known) for known in SUPPORTED_SGLANG} - set(version_folders())
# Names that files of a version's folder stand in for, by the file; those files know SGLang themselves (`seams/v0_5_23/adapted/`).
_ADAPTED_FOLDER = PACKAGE / "seams" / version_folder() / "adapted"
ADAPTED: Mapping[str, str] = (
    import_module(f"redknot_sglang.seams.{version_folder()}.adapted").NAMES if _ADAPTED_FOLDER.is_dir() else {}
)
# Files that import SGLang by themselves: those, and others of the installed version's folder.
ITSELF = {*_ADAPTED_FOLDER.glob("*.py"), PACKAGE / "seams" / version_folder() / "arguments.py"}
# The oldest first. A version whose names are those of the one before has no such file.
NAMES = [path for folder in version_folders() if (path := PACKAGE / "seams" / folder / "names.py").is_file()]
_FROM = "redknot_sglang.seams.sglang"
# Rooms with classes that derive from SGLang's.
DERIVING = (
    "radix.cache",
    "radix.chunk_cache",
    "radix.global_heads",
    "radix.local_heads",
    "radix.host_tier",
    "radix.local_host",
    "radix.local_locks",
    "radix.saved",
    "radix.stored",
    "radix.ranked",
    "pool.configurator",
    "pool.head_class_pool",
    "pool.host",
    "pool.host_copies",
    "attention",
    "draft_attention",
)
# Those that get objects of SGLang's, and the names under which they hold them, wherever they do.
_HOLDING = (
    "hooks/",
    "placement/",
    "radix/",
    "reuse/",
    "pool/",
    "serve/",
    "seams/",
    "attention.py",
    "batches.py",
    "start_memory.py",
)
# What it calls its tree is a gauge.
_NOT_HOLDING = "serve/metrics.py"
_OBJECTS = {
    "adder": ("managers.schedule_policy:PrefillAdder",),
    "allocator": ("mem_cache.allocator.swa:SWATokenToKVPoolAllocator",),
    "backend": ("model_executor.runner_backend.breakable_cuda_graph_backend:BreakableCudaGraphBackend",),
    "bootstrap": ("disaggregation.prefill:PrefillBootstrapQueue",),
    "batch": ("managers.schedule_batch:ScheduleBatch",),
    "checker": ("managers.scheduler_components.invariant_checker:SchedulerInvariantChecker",),
    "child": ("mem_cache.unified_cache.unified_tree_core:UnifiedTreeNode",),
    "configurator": ("mem_cache.kv_cache_configurator:KVCacheConfigurator",),
    "context": ("mem_cache.registry:TreeCacheBuildContext",),
    "decode_req": ("disaggregation.decode:DecodeRequest",),
    "data": ("mem_cache.unified_cache.components.tree_component:ComponentData",),
    "drafter": ("speculative.eagle_worker_v2:EagleDraftWorker",),
    "eagle_worker": ("speculative.eagle_worker_v2:EAGLEWorkerV2",),
    "exporter": ("model_executor.model_runner_components.weight_exporter:WeightExporter",),
    "factory": ("speculative.draft_utils:DraftBackendFactory",),
    "forward_batch": ("model_executor.forward_batch_info:ForwardBatch",),
    "forward_mode": ("model_executor.forward_batch_info:ForwardMode",),
    "info": ("disaggregation.mooncake.conn:TransferInfo", "disaggregation.common.conn:PrefillServerInfo"),
    "ipc_channels": ("managers.scheduler_components.ipc_channels:SchedulerIpcChannels",),
    "key": ("mem_cache.radix_cache:RadixKey",),
    "kv": ("managers.schedule_batch:ReqKvInfo",),
    "kv_args": ("disaggregation.base.conn:KVArgs",),
    "kv_manager": ("disaggregation.common.conn:CommonKVManager",),
    "kv_mgr": ("disaggregation.common.conn:CommonKVManager",),
    "layer": ("layers.radix_attention:RadixAttention",),
    "lock": ("mem_cache.base_prefix_cache:IncLockRefResult",),
    "manager": ("managers.tokenizer_manager:TokenizerManager",),
    "match": ("mem_cache.base_prefix_cache:MatchResult",),
    "model_config": ("configs.model_config:ModelConfig",),
    "model_runner": ("model_executor.model_runner:ModelRunner",),
    "node": ("mem_cache.unified_cache.unified_tree_core:UnifiedTreeNode",),
    "obj": ("managers.io_struct:GenerateReqInput",),
    "parallel": ("runtime_context:ParallelContext",),
    "params": (
        "mem_cache.cache_init_params:CacheInitParams",
        "mem_cache.base_prefix_cache:InsertParams",
        "mem_cache.base_prefix_cache:MatchPrefixParams",
        "sampling.sampling_params:SamplingParams",
    ),
    "prealloc": ("disaggregation.decode:DecodePreallocQueue",),
    "prefill": ("managers.schedule_batch:Req",),
    "processor": ("layers.logits_processor:LogitsProcessor",),
    "ps": ("distributed.parallel_state_wrapper:ParallelState",),
    "receiver": ("disaggregation.common.conn:CommonKVReceiver",),
    "req": ("managers.schedule_batch:Req",),
    "req_to_token_pool": ("mem_cache.memory_pool:ReqToTokenPool",),
    "result": (
        "mem_cache.base_prefix_cache:MatchResult",
        "managers.io_struct:GetInternalStateReqOutput",
        "model_executor.forward_batch_info:ForwardBatch",
        "configs.model_config:ModelConfig",
    ),
    "runner": (
        "model_executor.model_runner:ModelRunner",
        "model_executor.runner.prefill_cuda_graph_runner:PrefillCudaGraphRunner",
    ),
    "running_batch": ("managers.schedule_batch:ScheduleBatch",),
    "sampling_params": ("sampling.sampling_params:SamplingParams",),
    "scheduler": ("managers.scheduler:Scheduler",),
    "sender": ("disaggregation.common.conn:CommonKVSender",),
    "server_args": ("server_args:ServerArgs",),
    "spec_info": ("speculative.ngram_info:NgramVerifyInput",),
    "streamer": ("managers.scheduler_components.output_streamer:SchedulerOutputStreamer",),
    "time_stats": ("observability.req_time_stats:SchedulerReqTimeStats",),
    "tree": ("mem_cache.unified_radix_cache:UnifiedRadixCache",),
    "tree_cache": ("mem_cache.unified_radix_cache:UnifiedRadixCache",),
    "tree_core": ("mem_cache.unified_cache.unified_tree_core:UnifiedTreeCore",),
    "updater": (
        "managers.scheduler_components.weight_updater:SchedulerWeightUpdaterManager",
        "model_executor.model_runner_components.weight_updater:WeightUpdater",
    ),
    "worker": ("speculative.ngram_worker:NGRAMWorker",),
    "wrapper": ("managers.scheduler_components.flush_wrapper:SchedulerFlushWrapper",),
}
# Where 0.5.23 has classes of these objects, by the names that hold them.
_OBJECTS_0_5_23 = {
    "data": ("mem_cache.unified_cache.components.base:ComponentData",),
    "ps": ("runtime_context:ParallelContext",),
}
if sglang_version() == "0.5.23":
    _OBJECTS.update(_OBJECTS_0_5_23)
# Calling these looks a member up.
_ENUMS = ("HookType",)

# Keywords of calls that 0.5.23 never sees: of a hook that another one replaces, and of what is refused with it.
_UNSEEN: Mapping[tuple[str, str], set[str]] = {
    ("mem_cache.common", "free_swa_out_of_window_slots"): {"is_chunk_cache"},
    ("managers.schedule_batch", "ReqKvInfo"): {"swa_evicted_seqlen"},
    ("mem_cache.hybrid_cache.hybrid_pool_assembler", "StackBuildResult"): {"transfer_layer_num"},
    ("mem_cache.hybrid_cache.hybrid_pool_assembler", "build_pool_entry"): {"transfer_layer_num"},
}

# By module and name: keywords that it is called with, None if it is not called.
Uses = dict[tuple[str, str], set[str] | None]
Use = tuple[tuple[str, str], set[str] | None]


@cache
def _all_trees() -> Mapping[Path, ast.Module]:
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if not {"_stub", *_OTHERS} & set(path.parts)]
    return {path: ast.parse(path.read_text()) for path in paths}


@cache
def _trees() -> Mapping[Path, ast.Module]:
    return {path: tree for path, tree in _all_trees().items() if path not in _idle()}


def _gone() -> set[str]:
    return set(getattr(import_module(f"redknot_sglang.hooks.{version_folder()}"), "GONE", ()))


@cache
def _idle() -> frozenset[Path]:
    """Files of hooks that the installed version does without, all of them."""
    gone, found = _gone(), set()
    for folder in version_folders():
        for path in (PACKAGE / "hooks" / folder).glob("*.py"):
            hooks = getattr(import_module(f"redknot_sglang.hooks.{folder}.{path.stem}"), "SEAMS", ())
            if path.stem != "__init__" and hooks and {seam.target for seam in hooks} <= gone:
                found.add(path)
    return frozenset(found)


def names_of(takes: str) -> set[str]:
    """Names of the parameters in a row of the table."""
    return {part.rstrip("=") for part in takes.strip("()").split(", ")}


def sglang_imports() -> Iterator[tuple[Path, str, str]]:
    """Every import of SGLang: file, module below `sglang.srt`, name."""
    for path, tree in _trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name, "") for alias in node.names if alias.name.split(".")[0] == "sglang")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglang":
                module = (node.module or "").removeprefix("sglang.srt.")
                yield from ((path, module, alias.name) for alias in node.names)


@cache
def module_of() -> Mapping[str, str]:
    """Where each name lies in the installed SGLang: as its own `names.py` says, else that of a version before."""
    modules: dict[str, str] = {}
    for file in NAMES:
        modules.update({name: module for path, module, name in sglang_imports() if path == file})
    # Hooks that the installed version does without ask for names that nobody else does.
    idle = {name for _, name in _asked_in(_all_trees())} - {name for _, name in asked()}
    return {name: module for name, module in modules.items() if name not in idle}


@cache
def asked() -> tuple[tuple[Path, str], ...]:
    """Names that files ask `seams/sglang.py` for."""
    return tuple(_asked_in(_trees()))


def _asked_in(trees: Mapping[Path, ast.Module]) -> Iterator[tuple[Path, str]]:
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == _FROM:
                yield from ((path, alias.name) for alias in node.names)


def deriving() -> set[str]:
    """Modules of the package with a class that derives from one of SGLang's."""
    names: dict[Path, set[str]] = defaultdict(set)
    for path, name in asked():
        names[path].add(name)
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path, known in names.items()
        for node in ast.walk(_trees()[path])
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id in known for base in node.bases)
    }


def uses() -> Uses:
    """All of them."""
    found: Uses = {}
    for use, keywords in (*_of_names(), *_of_hooks(), *_of_classes(), *_of_objects()):
        before = found.get(use)
        if keywords is not None and sglang_version() == "0.5.23":
            keywords = keywords - _UNSEEN.get(use, set())
        found[use] = before if keywords is None else keywords | (before or set())
    return found


def _of_names() -> Iterator[Use]:
    """Imported names, what is called, and what is taken of them, such as members of an enumeration."""
    modules = module_of()
    for path, name in asked():
        if name not in ADAPTED:
            yield from _of_name(path, modules[name], name, name)
    for path in ITSELF & set(_trees()):
        for node in ast.walk(_trees()[path]):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sglang.srt."):
                module = (node.module or "").removeprefix("sglang.srt.")
                for alias in node.names:
                    yield from _of_name(path, module, alias.name, alias.asname or alias.name)


def _of_name(path: Path, module: str, name: str, here: str) -> Iterator[Use]:
    """One of them, in one file, which calls it `here`."""
    yield (module, name), None
    for node in ast.walk(_trees()[path]):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == here
            and name not in _ENUMS
        ):
            yield (module, name), {keyword.arg for keyword in node.keywords if keyword.arg}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == here:
            whole = getattr(import_module(f"sglang.srt.{module}"), name)
            if hasattr(whole, node.attr):
                yield (module, f"{name}.{node.attr}"), set() if _is_function(whole, node.attr) else None


def _is_function(whole: Any, name: str) -> bool:
    return isinstance(inspect.getattr_static(whole, name), FunctionType | classmethod | staticmethod)


def _of_hooks() -> Iterator[Use]:
    if "server_args.ServerArgs.__init__" in _gone():
        # Nothing hooks it, and its row says which arguments there are to be refused.
        yield ("server_args", "ServerArgs"), set()
    for seam in all_seams():
        yield split(seam.target), set()


def split(target: str) -> tuple[str, str]:
    """A dotted path below `sglang.srt` as module and name: modules are in small letters, and functions come last."""
    parts = target.split(".")
    stop = next((index for index, part in enumerate(parts) if part[0].isupper()), len(parts) - 1)
    return ".".join(parts[:stop]), ".".join(parts[stop:])


def _of_classes() -> Iterator[Use]:
    """What our classes take over from those that they derive from: what they override, call and read."""
    for (module, base), names in _taken_over().items():
        for name in names:
            if hasattr(base, name) and getattr(base, name) is not getattr(object, name, None):
                yield (module, f"{base.__name__}.{name}"), set() if _is_function(base, name) else None


def _taken_over() -> dict[tuple[str, type], set[str]]:
    """By module and class of SGLang's that ours derive from: names that our classes define or look up on themselves."""
    found: dict[tuple[str, type], set[str]] = {}
    adapted = [
        f"seams.{version_folder()}.adapted.{path.stem}"
        for path in _ADAPTED_FOLDER.glob("*.py")
        if path.stem != "__init__"
    ]
    for room in (*DERIVING, *adapted):
        for derived in vars(import_module(f"redknot_sglang.{room}")).values():
            if isinstance(derived, type) and derived.__module__ == f"redknot_sglang.{room}":
                base = next((cls for cls in derived.__mro__ if cls.__module__.startswith("sglang.")), None)
                if base is not None:
                    module = base.__module__.removeprefix("sglang.srt.")
                    found.setdefault((module, base), set()).update(_own(derived))
    return found


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
    """Methods that are called on SGLang's objects."""
    for module, whole, name in _on_objects():
        if hasattr(whole, name) and _is_function(whole, name):
            yield (module, f"{whole.__name__}.{name}"), set()


def _on_objects() -> Iterator[tuple[str, type, str]]:
    """Names that are looked up or set on objects: module, class, name. A name may hold objects of several classes."""
    for path, tree in _trees().items():
        file = path.relative_to(PACKAGE).as_posix()
        if not file.startswith(_HOLDING) or file == _NOT_HOLDING:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and not node.attr.startswith(("__", "redknot_")):
                for place in _OBJECTS.get(_held(node.value), ()):
                    yield place.split(":")[0], pkgutil.resolve_name(f"sglang.srt.{place}"), node.attr


def fields_used() -> dict[tuple[str, str], set[str]]:
    """By module and class: fields of its objects that are read or written."""
    own = ((module, whole, name) for (module, whole), names in _taken_over().items() for name in names)
    found: dict[tuple[str, str], set[str]] = {}
    for module, whole, name in (*_on_objects(), *own):
        function = hasattr(whole, name) and _is_function(whole, name)
        if has_field(whole, name) and not function and not name.startswith("__"):
            found.setdefault((module, whole.__name__), set()).add(name)
    return found


def _held(node: ast.expr) -> str:
    """The last part of `req`, `self._allocator` and `tree.token_to_kv_pool_allocator`, as `_OBJECTS` calls it."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return "allocator" if name == "token_to_kv_pool_allocator" else name.removeprefix("_")
