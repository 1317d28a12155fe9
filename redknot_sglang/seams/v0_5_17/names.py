# SPDX-License-Identifier: Apache-2.0
"""The classes, functions and values of SGLang 0.5.17 that other rooms ask `seams/sglang.py` for.

These imports are for readers and their editors. Nothing is imported until it is asked for, and then by `surface.py`.
"""
# ruff: noqa: F401

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import AttentionArch, ModelConfig
    from sglang.srt.constants import GPU_MEMORY_TYPE_KV_CACHE, GPU_MEMORY_TYPE_WEIGHTS
    from sglang.srt.disaggregation.base.conn import KVPoll, StateType
    from sglang.srt.disaggregation.fake.conn import FakeKVSender
    from sglang.srt.disaggregation.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, StorageMedium
    from sglang.srt.disaggregation.utils import FAKE_BOOTSTRAP_HOST
    from sglang.srt.entrypoints.http_server import app, get_global_state
    from sglang.srt.environ import envs
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS, register_attention_backend
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.layers.radix_attention import unified_attention_with_output
    from sglang.srt.managers.io_struct import (
        DumperControlReqInput,
        DumperControlReqOutput,
        GenerateReqInput,
        ReleaseMemoryOccupationReqInput,
        UnloadLoRAAdapterReqInput,
        UpdateWeightFromDiskReqInput,
        UpdateWeightsFromDistributedReqInput,
        UpdateWeightsFromIPCReqInput,
        UpdateWeightsFromTensorReqInput,
    )
    from sglang.srt.managers.multi_tokenizer_mixin import TokenizerWorker
    from sglang.srt.managers.schedule_batch import Req, ReqKvInfo
    from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS, AddReqResult
    from sglang.srt.mem_cache.base_prefix_cache import (
        EvictParams,
        InitLoadBackParams,
        InsertParams,
        InsertResult,
        MatchPrefixParams,
        MatchResult,
    )
    from sglang.srt.mem_cache.chunk_cache import SWAChunkCache
    from sglang.srt.mem_cache.common import free_swa_out_of_window_slots
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig, PoolName, PoolTransfer
    from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController
    from sglang.srt.mem_cache.hybrid_cache.hybrid_pool_assembler import (
        StackBuildResult,
        StackStrategy,
        build_pool_entry,
        register_stack_strategy,
    )
    from sglang.srt.mem_cache.memory_pool import KVCache
    from sglang.srt.mem_cache.memory_pool_host import HostPoolGroup
    from sglang.srt.mem_cache.pool_host.base import HostKVCache
    from sglang.srt.mem_cache.pool_host.common import ALLOC_MEMORY_FUNCS, HostTensorAllocator
    from sglang.srt.mem_cache.radix_cache import RadixKey
    from sglang.srt.mem_cache.registry import get_radix_cache_factory, register_radix_cache_backend
    from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
    from sglang.srt.mem_cache.unified_cache.cache_action import (
        BackupKV,
        FreeComponentDeviceSlot,
        FreeDeviceKV,
        RecoverSWAWithLockedFull,
        SWARebuild,
    )
    from sglang.srt.mem_cache.unified_cache.components import ComponentType
    from sglang.srt.mem_cache.unified_cache.components.full_component import FullComponent
    from sglang.srt.mem_cache.unified_cache.components.swa_component import SWAComponent
    from sglang.srt.mem_cache.unified_cache.components.tree_component import (
        BASE_COMPONENT_TYPE,
        CacheTransferPhase,
        EvictLayer,
        LRURefreshPhase,
        next_component_uuid,
    )
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
    from sglang.srt.mem_cache.utils import _EVICTION_POLICY_FACTORIES
    from sglang.srt.model_executor.pool_configurator import MemoryPoolConfig, MemoryPoolConfigurator
    from sglang.srt.model_executor.runner.shape_key import ShapeKey
    from sglang.srt.model_executor.runner_backend.breakable_cuda_graph_backend import BreakableCudaGraphBackend
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.runtime_context import get_parallel, get_server_args
    from sglang.srt.sampling.sampling_params import SamplingParams
    from sglang.srt.server_args import (
        RADIX_EVICTION_POLICY_CHOICES,
        add_radix_eviction_policy_choices,
        prepare_server_args,
    )
    from sglang.srt.utils import get_available_gpu_memory
    from sglang.srt.utils.auth import AuthLevel, auth_level
