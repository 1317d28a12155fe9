# SPDX-License-Identifier: Apache-2.0
"""What we use of SGLang 0.5.23 by name, as far as it differs from 0.5.18 (see `seams/surface.py`)."""

from __future__ import annotations

from redknot_sglang.seams.surface import Surface, changed
from redknot_sglang.seams.v0_5_18.surface import SURFACE as BEFORE

SURFACE: Surface = changed(
    BEFORE,
    {
        "configs.model_config": {
            "ModelConfig.get_num_kv_heads": "(self, tensor_parallel_size, dcp_size=)",
        },
        "disaggregation.kv_events": {
            "BlockStored": "(block_hashes, parent_block_hash, token_ids, block_size, lora_id, medium=, cache_salt=, session_id=, lora_name=)",
        },
        "mem_cache.unified_cache.tree_core_registry": {
            "get_tree_core_factory": "(name)",
            "register_tree_core_backend": "(name, factory)",
        },
        "mem_cache.unified_cache.component_type": {
            "ComponentType": None,
            "ComponentType.FULL": None,
            "ComponentType.SWA": None,
        },
        "mem_cache.unified_cache.cache_action": {
            "FreeDeviceKVFullOnly": None,
        },
        "mem_cache.base_prefix_cache": {
            "MatchResult.device_prefix_len": None,
            "MatchResult.last_device_node": None,
        },
        "mem_cache.allocator.swa": {
            "SWATokenToKVPoolAllocator.free_full": "(self, free_index)",
            "SWATokenToKVPoolAllocator.free_swa": "(self, free_index)",
        },
        "managers.scheduler_components.invariant_checker": {
            "SchedulerInvariantChecker._requests_owning_rows": "(self)",
        },
        "managers.schedule_policy": {
            "PrefillAdder": None,
        },
        "arg_groups.overrides": {
            "model_config_of": "(server_args)",
            "resolution_result": "(server_args, field, default=)",
        },
        "mem_cache.prefill_budget": {
            "SWAPrefillBudget.swa_never_fits": "(self, extend_input_len, max_new_tokens, **kwargs)",
        },
        "runtime_context": {
            "get_memory": "()",
        },
        "server_args": {
            "ServerArgs": (
                "(model_path, tokenizer_worker_num=, kv_cache_dtype=, mem_fraction_static=, max_total_tokens=, chunked_prefill_size=, page_size=, radix_eviction_policy=, disable_radix_cache=, enable_unified_memory=, tp_size=, dcp_size=, pp_size=, dp_size=, attn_dp_size=, "
                "attn_cp_size=, enable_dp_attention=, device=, preferred_sampling_params=, enable_streaming_session=, enable_session_radix_cache=, kv_events_config=, attention_backend=, decode_attention_backend=, prefill_attention_backend=, radix_cache_backend=, cuda_graph_config=, "
                "speculative_algorithm=, enable_hierarchical_cache=, hicache_host_memory_mode=, hicache_ratio=, hicache_size=, hicache_write_policy=, hicache_io_backend=, hicache_mem_layout=, hicache_storage_backend=, hicache_storage_prefetch_policy=, hicache_storage_backend_extra_config=, enable_hisparse=, "
                "enable_two_batch_overlap=, enable_lmcache=, enable_flexkv=, dllm_algorithm=, disaggregation_mode=, disaggregation_transfer_backend=, disaggregation_decode_enable_radix_cache=, disaggregation_decode_enable_offload_kvcache=, enable_pdmux=, startup_weight_load_mode=, "
                "enable_deterministic_inference=, rl_on_policy_target=, enable_memory_saver=, ...)"
            ),
            "add_radix_eviction_policy_choices": "(iterable)",
            "ServerArgs.resolve_once": "(self)",
        },
        "disaggregation.common.conn": {
            "CommonKVReceiver.send_metadata": "(self, kv_indices, aux_index=, "
            "state_indices=, decode_prefix_len=, "
            "destination=, device_kv_indices=)",
            "CommonKVSender.send": "(self, kv_indices, state_indices=, num_kv_tokens=, indices_event=)",
        },
        "disaggregation.fake.conn": {
            "FakeKVSender": "(mgr, bootstrap_addr, bootstrap_room, req_has_disagg_prefill_dp_rank=)"
        },
        "managers.schedule_batch": {
            "ReqKvInfo.get_evicted_seqlen": "(self, component_type)",
            "ReqKvInfo.set_evicted_seqlen": "(self, component_type, length)",
            "Req.set_finish_with_abort": "(self, error_msg, status_code=, err_type=)",
            "ReqKvInfo": "(*, req_pool_idx=, cache_protected_len=, cache_inserted_len=, "
            "kv_committed_len=, kv_allocated_len=, swa_evict_floor=, "
            "component_evicted_seqlens=, retraction_backup=, mamba_pool_idx=, "
            "mamba_ping_pong_track_buffer=, mamba_ping_pong_empty=, "
            "mamba_next_track_idx=, mamba_last_track_idx=, "
            "mamba_last_track_seqlen=, mamba_prev_track_seqlen=, "
            "mamba_untracked_decode_batch_idx=, mamba_cow_src_index=, "
            "mamba_needs_clear=)",
            "ScheduleBatch._evict_swa": "(self, req, pre_len, *, eviction_interval=)",
        },
        "managers.scheduler": {
            "Scheduler": None,
            "Scheduler.is_fully_idle": "(self, for_health_check=, ignore_waiting=)",
        },
        "managers.scheduler_components.weight_updater": {
            "SchedulerWeightUpdaterManager.flush_cache_after_weight_update": "(self, recv_req, success, message)"
        },
        "mem_cache.common": {
            "free_swa_out_of_window_slots": "(req, pre_len, *, sliding_window_size, page_size, "
            "req_to_token_pool, token_to_kv_pool_allocator, "
            "supports_prefix_sharing=, retain_floor=, "
            "component_type=, free_segment=, eviction_interval=)"
        },
        "mem_cache.hicache_storage": {
            "HiCacheStorageConfig": "(tp_rank, tp_size, pp_rank, pp_size, attn_cp_rank, "
            "attn_cp_size, is_mla_model, enable_storage_metrics, "
            "is_page_first_layout, model_name, tp_lcm_size=, "
            "should_split_heads=, dp_rank=, extra_config=, "
            "dcp_size=, dcp_rank=, logical_page_size=)",
            "PoolTransfer": "(name, host_indices=, device_indices=, keys=, hit_policy=, "
            "nodes_to_load=, indices_from_pool=, block_pages=, "
            "group_pages=)",
        },
        "mem_cache.hybrid_cache.hybrid_cache_controller": {
            "HybridCacheController.__init__": "(self, "
            "token_to_kv_pool_allocator, "
            "mem_pool_host, "
            "page_size, tp_group, "
            "load_cache_event, "
            "attn_cp_group=, "
            "attn_tp_group=, "
            "pp_group=, "
            "write_policy=, "
            "io_backend=, "
            "storage_backend=, "
            "prefetch_threshold=, "
            "model_name=, "
            "storage_backend_extra_config=, "
            "transfer_layer_id_max=, "
            "enable_storage_metrics=, "
            "host_memory_mode=)",
            "HybridCacheController.load": "(self, host_indices, "
            "priority=, node_id=, "
            "extra_pools=, *, "
            "device_indices=, "
            "anchor_indices=)",
        },
        "mem_cache.hybrid_cache.hybrid_pool_assembler": {
            "StackBuildResult": "(host_pool_group, cache_controller, "
            "component_host_pools, sidecars=, "
            "register_req_to_token_counter=, "
            "pools_desc=, pool_declarations=)",
            "build_pool_entry": "(*, name, host_pool, device_pool, "
            "layer_mapping, transfer_layer_id_max, "
            "is_anchor=, host_evict_fn=, "
            "device_evict_fn=, device_alloc_fn=, "
            "device_free_fn=, "
            "packed_draft_device_pools=)",
        },
        "mem_cache.pool_host.group": {"HostPoolGroup": "(entries)"},
        "mem_cache.pool_host.base": {
            "HostKVCache.__init__": "(self, *, dtype, device_capacity_tokens, "
            "size_per_token, start_layer, end_layer, "
            "host_to_device_ratio, host_size, page_size, layout, "
            "pin_memory, device, allocator_type=, dcp_size=, "
            "dcp_rank=, pool_label=, is_dummy=, "
            "host_token_capacity=)"
        },
        "mem_cache.swa_memory_pool": {
            "SWAKVPool.__init__": "(self, size, size_swa, page_size, dtype, head_num, "
            "head_dim, swa_attention_layer_ids, "
            "full_attention_layer_ids, device, "
            "token_to_kv_pool_class=, full_kv_pool_class=, "
            "swa_kv_pool_class=, full_kv_pool_kwargs=, "
            "swa_kv_pool_kwargs=, enable_memory_saver=, **kwargs)",
            "SWAKVPool.get_cpu_copy": "(self, indices, mamba_indices=, req_pool_index=)",
            "SWAKVPool.load_cpu_copy": "(self, kv_cache_cpu, indices, mamba_indices=, req_pool_index=)",
        },
        "mem_cache.unified_cache.components.full": {
            "FullComponent.commit_hicache_transfer": "(self, node, phase, transfers=, *, cache_actions, insert_result=, pool_storage_result=)",
            "FullComponent": None,
            "FullComponent.__init__": "(self, cache, params)",
            "FullComponent._evict_device_end": "(self)",
            "FullComponent._evict_device_next_node": "(self, tracker, device_frees, host_frees, cache_actions)",
            "FullComponent._evict_device_start": "(self, request_cnt)",
            "FullComponent.commit_insert_component_data": "(self, node, is_new_leaf, params, result, cache_actions)",
            "FullComponent.component_type": None,
            "FullComponent.drive_host_eviction": "(self, num_tokens, tracker, device_frees, host_frees, cache_actions)",
            "FullComponent.evict_component": "(self, node, device_frees, host_frees, cache_actions, target=)",
            "FullComponent.redistribute_on_node_split": "(self, new_parent, child)",
        },
        "mem_cache.unified_cache.components.swa": {
            "SWAComponent": None,
            "SWAComponent.__init__": "(self, cache, params)",
            "SWAComponent._attach_swa_host_value": "(self, node, host_indices)",
            "SWAComponent._evict_device_end": "(self)",
            "SWAComponent._evict_device_next_node": "(self, tracker, device_frees, host_frees, cache_actions)",
            "SWAComponent._evict_device_start": "(self, request_cnt)",
            "SWAComponent.acquire_component_lock": "(self, node, result, lock_host=)",
            "SWAComponent.apply_component_action": "(self, action)",
            "SWAComponent.build_hicache_transfers": "(self, node, phase, *, "
            "mamba_pool_idx=, "
            "host_indices=, "
            "token_ids=, "
            "prefetch_tokens=, "
            "staging_tokens=, "
            "last_hash=)",
            "SWAComponent.commit_hicache_transfer": "(self, node, phase, "
            "transfers=, *, "
            "cache_actions, "
            "insert_result=, "
            "pool_storage_result=)",
            "SWAComponent.commit_insert_component_data": "(self, node, is_new_leaf, params, result, cache_actions)",
            "SWAComponent.component_type": None,
            "SWAComponent.create_match_validator": "(self, match_device_only=)",
            "SWAComponent.drive_host_eviction": "(self, num_tokens, tracker, device_frees, host_frees, cache_actions)",
            "SWAComponent.evict_component": "(self, node, device_frees, host_frees, cache_actions, target=)",
            "SWAComponent.finalize_match_result_in_tree_core": "(self, result, params, value_chunks, best_value_len)",
            "SWAComponent.free_out_of_window_slots": "(self, req, pre_len, insert_params)",
            "SWAComponent.needs_incremental_backup": "(self, node)",
            "SWAComponent.prepare_for_caching_req": "(self, req, insert_params, token_ids_len, is_finished)",
            "SWAComponent.recover_after_unevict": "(self, node, prefix_len, "
            "total_prefix_len, params, "
            "result, cache_actions)",
            "SWAComponent.redistribute_on_node_split": "(self, new_parent, child)",
            "SWAComponent.refresh_lru": "(self, phase, node, root_node)",
            "SWAComponent.release_component_lock": "(self, node, params, lock_host=)",
            "SWAComponent.release_window_lock": "(self, node, "
            "swa_uuid_for_lock, "
            "device_frees, host_frees, "
            "cache_actions)",
            "SWAComponent.update_component_on_insert_overlap": "(self, node, "
            "prefix_len, "
            "total_prefix_len, "
            "value_slice, "
            "params, "
            "result, "
            "cache_actions)",
        },
        "mem_cache.unified_cache.components.base": {
            "BASE_COMPONENT_TYPE": None,
            "CacheTransferPhase": None,
            "CacheTransferPhase.BACKUP_HOST": None,
            "CacheTransferPhase.LOAD_BACK": None,
            "EvictLayer": None,
            "EvictLayer.DEVICE": None,
            "EvictLayer.HOST": None,
            "LRURefreshPhase": None,
            "LRURefreshPhase.WALKDOWN": None,
            "next_component_uuid": "(component_type)",
        },
        "mem_cache.unified_cache.unified_tree_core": {
            "UnifiedTreeCore": None,
            "UnifiedTreeCore._cascade_evict": "(self, node, trigger, "
            "tracker, device_frees, "
            "host_frees, cache_actions, "
            "target=)",
            "UnifiedTreeCore._evict_component_and_detach_lru": "(self, "
            "node, "
            "comp, "
            "device_frees, "
            "host_frees, "
            "cache_actions, "
            "target=, "
            "tracker=)",
            "UnifiedTreeCore._evict_host_leaf": "(self, node, tracker, device_frees, host_frees, cache_actions)",
            "UnifiedTreeCore._update_duplicate_tracking": "(self, node)",
            "UnifiedTreeCore.commit_load_back": "(self, node_id, device_indices, kv_xfer, comp_xfers)",
        },
        "mem_cache.unified_radix_cache": {
            "UnifiedRadixCache._apply_cache_action": "(self, action)",
            "UnifiedRadixCache.attach_storage_backend": "(self, storage_backend, storage_backend_extra_config_json=, "
            "served_model_name=, hicache_storage_prefetch_policy=, hicache_write_policy=)",
            "UnifiedRadixCache.checkpoint": "(self, req, *, up_to, **kwargs)",
            "UnifiedRadixCache.detach_storage_backend": "(self)",
            "UnifiedRadixCache.evict_for_alloc": "(self, params, *, allocation_reclaim_satisfied=)",
            "UnifiedRadixCache.evict_sliding_windows": "(self, req, pre_len, *, eviction_interval=)",
            "UnifiedRadixCache.free_kv_row": "(self, kv, ranges)",
            "UnifiedRadixCache.lock": "(self, node_id, skip_lock_components=)",
            "UnifiedRadixCache.on_release": "(self, req, *, checkpointed)",
            "UnifiedRadixCache.page_size": None,
            "UnifiedRadixCache.path_device_indices": "(self, node)",
            "UnifiedRadixCache.prefix_device_indices": "(self, req)",
            "UnifiedRadixCache.supports_prefix_sharing": "(self)",
            "UnifiedRadixCache.swa_retain_window": None,
            "UnifiedRadixCache.unlock": "(self, lock)",
            "UnifiedRadixCache._track_write_through_node": "(self, node_id, lock_params, publish_node_ids)",
            "UnifiedRadixCache.dec_host_lock_ref": "(self, node_id, params)",
            "UnifiedRadixCache.dec_lock_ref": "(self, node_id, params, skip_swa=)",
        },
        "model_executor.forward_batch_info": {
            "ForwardBatch.init_new": "(batch, model_runner, *, "
            "capture_hidden_mode=, "
            "return_hidden_states_before_norm, "
            "extend_position_info=, "
            "spec_mrope_positions=, kv_loc_plan=, "
            "write_cols=)"
        },
    },
    gone=[
        ("disaggregation.common.conn", "CommonKVManager._resolve_rank_mapping"),
        ("disaggregation.common.conn", "CommonKVManager.try_ensure_parallel_info"),
        ("disaggregation.decode", "DecodePreallocQueue._allocatable_token_budgets"),
        ("disaggregation.decode", "DecodePreallocQueue._create_receiver_and_enqueue"),
        ("disaggregation.decode", "DecodePreallocQueue._ensure_prefill_info"),
        ("disaggregation.decode", "DecodePreallocQueue._prealloc_required_tokens"),
        ("disaggregation.decode", "DecodePreallocQueue._swa_aware_allocatable_token_budgets"),
        ("disaggregation.decode", "DecodePreallocQueue._swa_tail_len"),
        ("disaggregation.decode", "DecodePreallocQueue._uses_swa_tail_prealloc"),
        ("disaggregation.decode", "alloc_for_decode_prealloc"),
        ("disaggregation.prefill", "PrefillBootstrapQueue.create_sender"),
        ("disaggregation.prefill", "SchedulerDisaggregationPrefillMixin.maybe_send_cached_prefix_chunk"),
        ("disaggregation.prefill", "SchedulerDisaggregationPrefillMixin.resolve_waiting_queue_bootstrap"),
        ("disaggregation.prefill", "SchedulerDisaggregationPrefillMixin.send_kv_chunk"),
        ("disaggregation.utils", "setup_state_kv_args"),
        ("managers.schedule_batch", "ScheduleBatch.maybe_evict_swa"),
        ("mem_cache.unified_cache.components.full_component", "FullComponent.commit_hicache_transfer"),
        (
            "model_executor.runner.prefill_cuda_graph_runner",
            "PrefillCudaGraphRunner._prepare_forward_metadata_for_replay",
        ),
        ("model_executor.runner.prefill_cuda_graph_runner", "PrefillCudaGraphRunner._run_forward"),
        ("model_executor.runner.prefill_cuda_graph_runner", "PrefillCudaGraphRunner._shape_key"),
        ("model_executor.runner.prefill_cuda_graph_runner", "PrefillCudaGraphRunner.capture"),
        ("model_executor.runner.prefill_cuda_graph_runner", "PrefillCudaGraphRunner.capture_one_shape"),
        ("model_executor.runner.prefill_cuda_graph_runner", "PrefillCudaGraphRunner.capture_prepare"),
        ("model_executor.runner.shape_key", "ShapeKey"),
        ("model_executor.runner_backend.breakable_cuda_graph_backend", "BreakableCudaGraphBackend"),
        ("model_executor.runner_backend.breakable_cuda_graph_backend", "BreakableCudaGraphBackend.capture_one"),
        ("layers.radix_attention", "breakable_unified_attention_with_output"),
        ("layers.radix_attention", "unified_attention_with_output"),
        ("managers.schedule_batch", "Req.set_extend_range"),
        ("managers.schedule_policy", "PrefillAdder._swa_req_never_fits"),
        ("managers.scheduler", "Scheduler._abort_on_waiting_timeout"),
        ("mem_cache.chunk_cache", "SWAChunkCache"),
        ("mem_cache.chunk_cache", "SWAChunkCache.__init__"),
        ("mem_cache.chunk_cache", "SWAChunkCache.cache_finished_req"),
        ("mem_cache.chunk_cache", "SWAChunkCache.match_prefix"),
        ("mem_cache.memory_pool_host", "HostPoolGroup"),
        ("mem_cache.unified_cache.components.full_component", "FullComponent"),
        ("mem_cache.unified_cache.components.full_component", "FullComponent.__init__"),
        ("mem_cache.unified_cache.components.full_component", "FullComponent._evict_device_end"),
        ("mem_cache.unified_cache.components.full_component", "FullComponent._evict_device_next_node"),
        ("mem_cache.unified_cache.components.full_component", "FullComponent._evict_device_start"),
        ("mem_cache.unified_cache.components.full_component", "FullComponent.commit_insert_component_data"),
        ("mem_cache.unified_cache.components.full_component", "FullComponent.component_type"),
        ("mem_cache.unified_cache.components.full_component", "FullComponent.drive_host_eviction"),
        ("mem_cache.unified_cache.components.full_component", "FullComponent.evict_component"),
        ("mem_cache.unified_cache.components.full_component", "FullComponent.redistribute_on_node_split"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.__init__"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent._attach_swa_host_value"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent._evict_device_end"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent._evict_device_next_node"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent._evict_device_start"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.acquire_component_lock"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.apply_component_action"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.build_hicache_transfers"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.commit_hicache_transfer"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.commit_insert_component_data"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.component_type"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.create_match_validator"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.drive_host_eviction"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.evict_component"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.finalize_match_result_in_tree_core"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.free_out_of_window_slots"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.prepare_for_caching_req"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.recover_after_unevict"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.redistribute_on_node_split"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.refresh_lru"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.release_component_lock"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.release_window_lock"),
        ("mem_cache.unified_cache.components.swa_component", "SWAComponent.update_component_on_insert_overlap"),
        ("mem_cache.unified_cache.components.tree_component", "BASE_COMPONENT_TYPE"),
        ("mem_cache.unified_cache.components.tree_component", "CacheTransferPhase"),
        ("mem_cache.unified_cache.components.tree_component", "CacheTransferPhase.BACKUP_HOST"),
        ("mem_cache.unified_cache.components.tree_component", "CacheTransferPhase.LOAD_BACK"),
        ("mem_cache.unified_cache.components.tree_component", "EvictLayer"),
        ("mem_cache.unified_cache.components.tree_component", "EvictLayer.DEVICE"),
        ("mem_cache.unified_cache.components.tree_component", "EvictLayer.HOST"),
        ("mem_cache.unified_cache.components.tree_component", "LRURefreshPhase"),
        ("mem_cache.unified_cache.components.tree_component", "LRURefreshPhase.WALKDOWN"),
        ("mem_cache.unified_cache.components.tree_component", "next_component_uuid"),
        ("mem_cache.unified_radix_cache", "UnifiedRadixCache._dec_req_lock"),
        ("mem_cache.unified_radix_cache", "UnifiedRadixCache.cache_finished_req"),
        ("mem_cache.unified_radix_cache", "UnifiedRadixCache.cache_unfinished_req"),
        ("mem_cache.unified_radix_cache", "UnifiedRadixCache.is_chunk_cache"),
        ("server_args", "ServerArgs.__init__"),
        ("server_args", "ServerArgs.get_model_config"),
    ],
)
