# SPDX-License-Identifier: Apache-2.0
"""Fields of SGLang 0.5.23's objects, as far as they differ from 0.5.18 (see `seams/surface.py`)."""

from __future__ import annotations

from redknot_sglang.seams.surface import Fields, changed
from redknot_sglang.seams.v0_5_18.fields import FIELDS as BEFORE

FIELDS: Fields = changed(
    BEFORE,
    {
        "disaggregation.common.conn": {"CommonKVManager": "attn_tp_rank attn_tp_size kv_args transfer_infos"},
        "disaggregation.decode": {
            "DecodePreallocQueue": "kv_manager req_to_token_pool retracted_queue scheduler token_to_kv_pool_allocator transfer_queue"
        },
        "disaggregation.prefill": {"PrefillBootstrapQueue": "kv_manager"},
        "mem_cache.cache_init_params": {
            "CacheInitParams": "attn_cp_cache_group attn_tp_cache_group component_registry_override enable_kv_cache_events enable_metrics eviction_policy is_eagle page_size pp_cache_group token_to_kv_pool_allocator tp_cache_group tree_components tree_core_backend"
        },
        "mem_cache.unified_radix_cache": {
            "UnifiedRadixCache": "cache_controller components device disable host_pool_group page_size req_to_token_pool sliding_window_size swa_retain_window token_to_kv_pool_allocator tp_group tree_components tree_core"
        },
        "managers.schedule_batch": {
            "Req": "best_match_node bootstrap_host bootstrap_room cache_protected_len "
            "cached_tokens customized_info extend_end prefix_len disagg_kv_sender extra_key "
            "finished_reason full_untruncated_fill_ids host_hit_length kv last_node lock "
            "logprob_start_len lora_id origin_input_ids origin_input_ids_unpadded "
            "output_ids priority retracted_stain sampling_params "
            "skip_radix_cache_insert storage_hit_length swa_host_hit_length "
            "time_stats to_finish tokenizer cache_salt",
            "ReqKvInfo": "cache_protected_len holds_kv kv_allocated_len req_pool_idx",
        },
        "managers.schedule_policy": {
            "PrefillAdder": "can_run_list memory_budget new_chunked_req preempt_list rem_chunk_tokens "
            "rem_total_tokens running_batch tree_cache"
        },
        "managers.scheduler": {
            "Scheduler": "_engine_paused _pending_chunked_abort_req chunked_req "
            "disagg_prefill_bootstrap_queue ipc_channels "
            "last_batch max_req_input_len model_config req_to_token_pool "
            "running_batch server_args token_to_kv_pool_allocator tokenizer "
            "tp_worker tree_cache waiting_queue"
        },
        "mem_cache.base_prefix_cache": {
            "MatchResult": "best_match_node device_prefix_len full_kv_hit_length last_device_node swa_host_hit_length"
        },
        "mem_cache.unified_cache.components.full": {"FullComponent": "cache component_type tree_core"},
        "mem_cache.unified_cache.components.swa": {
            "SWAComponent": "cache component_type sliding_window_size tree_core"
        },
        "mem_cache.unified_cache.components.base": {
            "ComponentData": "host_lock_ref host_value lock_ref metadata value"
        },
        "mem_cache.unified_cache.unified_tree_core": {
            "UnifiedTreeCore": "component_evictable_size_ component_protected_size_ components evictable_device_leaves evictable_host_leaves "
            "eviction_strategy host_lru_lists lru_lists root_node"
        },
        "model_executor.runner.prefill_cuda_graph_runner": {
            "PrefillCudaGraphRunner": "capture_num_tokens model_runner",
        },
        # Refused with this version: the table only says what is there.
        "speculative.draft_utils": {"DraftBackendFactory": "draft_model_runner speculative_num_steps"},
        "runtime_context": {"ParallelContext": "attn_tp_group attn_tp_rank attn_tp_size dp_rank"},
    },
    gone=[
        ("model_executor.runner_backend.breakable_cuda_graph_backend", "BreakableCudaGraphBackend"),
        ("distributed.parallel_state_wrapper", "ParallelState"),
        ("mem_cache.chunk_cache", "SWAChunkCache"),
        ("mem_cache.unified_cache.components.full_component", "FullComponent"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent"),
        ("mem_cache.unified_cache.components.tree_component", "ComponentData"),
    ],
)
