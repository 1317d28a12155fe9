# SPDX-License-Identifier: Apache-2.0
"""The store behind the host tier, opened as SGLang's flags say."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from redknot_sglang.certificate.fingerprint import DUMMY, canonical, fingerprint_served, model_folder
from redknot_sglang.certificate.weights import sampled_digest
from redknot_sglang.errors import CertificateError, RedKnotError, StoreError
from redknot_sglang.plan.identity import MARK


def open_store(context: Any, tree: Any) -> Any:
    """The `store.Store` of a server.

    context: SGLang's TreeCacheBuildContext.
    tree: the HeadClassRadixCache, with its host tier.
    Raises RedKnotError if the store cannot be used.
    """
    from redknot_sglang.seams.sglang import HiCacheStorageConfig, HybridCacheController, StorageBackendFactory
    from redknot_sglang.store.backends import KINDS
    from redknot_sglang.store.objects import Reach
    from redknot_sglang.store.rows import HostRows
    from redknot_sglang.store.store import Patience, Store

    server_args = context.server_args
    name, group = server_args.hicache_storage_backend, tree.host_pool_group
    try:
        extra, threshold, base, per_ki_token, _ = HybridCacheController.parse_storage_backend_extra_config(
            server_args.hicache_storage_backend_extra_config
        )
    except (OSError, TypeError, ValueError) as error:
        raise RedKnotError(
            f"--hicache-storage-backend-extra-config cannot be read ({error}); give a JSON object or @FILE"
        ) from None
    folder = server_args.file_storage_path
    if name == "file" and folder is not None:
        # SGLang's files are there from 0.5.23 on, unless the extra configuration has a folder.
        extra = {"file_storage_path": folder, **(extra or {})}
    pools = [entry.host_pool for entry in group.entries]
    window, sink = tree.local_reach
    config = HiCacheStorageConfig(
        tp_rank=0,
        tp_size=1,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=False,
        enable_storage_metrics=False,
        is_page_first_layout=False,
        # Names of objects say what they are of, whatever a server calls its model.
        model_name=None,
        extra_config=extra,
    )
    patience = Patience(
        waits=server_args.hicache_storage_prefetch_policy == "timeout",
        base=base,
        per_token=per_ki_token / 1024,
        threshold=max(1, threshold),
    )
    try:
        backend = StorageBackendFactory.create_backend(name, config, group)
        store = Store(
            name,
            KINDS[name](backend),
            context_digest(server_args, tree.token_to_kv_pool_allocator.get_kvcache().whole_map, pools),
            HostRows(pools),
            Reach(window, sink),
            patience,
            Adapters(context.tp_worker.model_runner).named,
        )
        store.start()
        # SGLang's answers name its class.
        tree.cache_controller.storage_backend = backend
        return store
    except CertificateError as error:
        raise RedKnotError(f"--hicache-storage-backend names KV by the model's files: {error}") from None
    except (ImportError, OSError, RuntimeError, TypeError, ValueError, AssertionError, StoreError) as error:
        raise RedKnotError(
            f"--hicache-storage-backend {name} cannot be used ({type(error).__name__}: {error}); docs/tiers.md says what it needs"
        ) from None


def context_digest(server_args: Any, head_map: Any, pools: list[Any]) -> bytes:
    """What decides, beside namespace and tokens, which bytes a row has: 32 bytes.

    server_args: SGLang's, which name the model.
    head_map: of the whole model.
    pools: host pools of both classes, whose rows have dtypes and shapes.
    Raises CertificateError if files of the model are missing.
    """
    model = asdict(fingerprint_served(vars(server_args)))
    if model["kind"] == DUMMY:
        # Weights that are made up differ between kinds of devices.
        model["device"] = server_args.device
    layouts = [pool.row_layout for pool in pools]
    return hashlib.sha256(canonical({"model": model, "map": head_map.fingerprint, "layouts": layouts})).digest()


class Adapters:
    """Names of LoRA adapters by their content: SGLang puts an id into a request's namespace, and that is not the same elsewhere, or
    the same for other weights.

    runner: SGLang's ModelRunner.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._digests: dict[str, str | None] = {}

    def named(self, namespace: str) -> str | None:
        """A namespace with the digests of adapters in it, not their ids; None if one has no files to tell it by."""
        manager = getattr(self._runner, "lora_manager", None)
        for lora_id, reference in dict(manager.lora_refs if manager is not None else {}).items():
            if lora_id in namespace:
                if lora_id not in self._digests:
                    self._digests[lora_id] = _adapter_digest(reference.lora_path)
                digest = self._digests[lora_id]
                if digest is None:
                    return None
                namespace = namespace.replace(lora_id, f"{MARK} adapter {digest}")
        return namespace


def _adapter_digest(path: str | None) -> str | None:
    try:
        folder = model_folder(path or "")
        config = Path(folder, "adapter_config.json").read_bytes()
        return hashlib.sha256(config + sampled_digest(folder).encode()).hexdigest()
    except (CertificateError, OSError):
        return None
