# SPDX-License-Identifier: Apache-2.0
"""Everything that we use of SGLang 0.5.17 by name: what it lies in, and what it takes (see `seams/surface.py`)."""

from __future__ import annotations

from redknot_sglang.seams.surface import Surface

SURFACE: Surface = {
    "configs.model_config": {
        "AttentionArch": None,
        "AttentionArch.MHA": None,
        "ModelConfig": None,
        "ModelConfig.from_server_args": (
            "(server_args, model_path=, model_revision=, is_draft_model=, context_length=, **kwargs)"
        ),
        "ModelConfig.get_num_attention_heads": "(self, tensor_parallel_size)",
        "ModelConfig.get_num_kv_heads": "(self, tensor_parallel_size)",
        "ModelConfig.get_total_num_kv_heads": "(self)",
    },
    "constants": {
        "GPU_MEMORY_TYPE_KV_CACHE": None,
        "GPU_MEMORY_TYPE_WEIGHTS": None,
    },
    "disaggregation.base.conn": {
        "KVPoll": None,
        "KVPoll.Failed": None,
        "StateType": None,
        "StateType.SWA": None,
    },
    "disaggregation.common.conn": {
        "CommonKVManager._resolve_rank_mapping": "(self, info)",
        "CommonKVManager.record_failure": "(self, bootstrap_room, failure_reason)",
        "CommonKVManager.try_ensure_parallel_info": "(self, bootstrap_addr)",
        "CommonKVManager.update_status": "(self, bootstrap_room, status)",
        "CommonKVReceiver.send_metadata": ("(self, kv_indices, aux_index=, state_indices=, decode_prefix_len=)"),
        "CommonKVSender.send": "(self, kv_indices, state_indices=, num_kv_tokens=)",
    },
    "disaggregation.decode": {
        "DecodePreallocQueue._allocatable_token_budgets": (
            "(self, retractable_tokens=, count_retracted=, extra_reserved_reqs=, reserved_tokens=, hicache_reserved_tokens=)"
        ),
        "DecodePreallocQueue._create_receiver_and_enqueue": "(self, req, is_rebootstrap=)",
        "DecodePreallocQueue._ensure_prefill_info": "(self, addr_to_reqs)",
        "DecodePreallocQueue._prealloc_required_tokens": "(self, req)",
        "DecodePreallocQueue._swa_aware_allocatable_token_budgets": (
            "(self, retractable_tokens=, retractable_swa_tokens=, count_retracted=)"
        ),
        "DecodePreallocQueue._swa_tail_len": "(self, seq_len)",
        "DecodePreallocQueue._uses_swa_tail_prealloc": "(self)",
        "alloc_for_decode_prealloc": (
            "(allocator, *, req, fill_len, delta_len, prefix_len, total_prefix_len, prefix_indices, uses_swa_tail, "
            "swa_tail_len, req_to_token_pool=)"
        ),
    },
    "disaggregation.fake.conn": {
        "FakeKVSender": (
            "(mgr, bootstrap_addr, bootstrap_room, dest_tp_ranks, pp_rank, req_has_disagg_prefill_dp_rank=)"
        ),
    },
    "disaggregation.kv_events": {
        "AllBlocksCleared": "()",
        "BlockRemoved": "(block_hashes, medium=)",
        "BlockStored": "(block_hashes, parent_block_hash, token_ids, block_size, lora_id, medium=)",
        "StorageMedium": None,
        "StorageMedium.CPU": None,
        "StorageMedium.GPU": None,
    },
    "disaggregation.prefill": {
        "PrefillBootstrapQueue.create_sender": "(self, req, num_kv_heads)",
        "SchedulerDisaggregationPrefillMixin.maybe_send_cached_prefix_chunk": "(self, req)",
        "SchedulerDisaggregationPrefillMixin.resolve_waiting_queue_bootstrap": "(self)",
        "SchedulerDisaggregationPrefillMixin.send_kv_chunk": "(self, req, last_chunk=, end_idx=)",
    },
    "disaggregation.utils": {
        "FAKE_BOOTSTRAP_HOST": None,
        "setup_state_kv_args": (
            "(kv_args, token_to_kv_pool, draft_token_to_kv_pool=, total_kv_layers=, req_to_token_pool=)"
        ),
    },
    "entrypoints.engine": {
        "_wait_for_scheduler_ready": "(scheduler_pipe_readers, scheduler_procs)",
    },
    "entrypoints.http_server": {
        "_setup_and_run_http_server": (
            "(server_args, tokenizer_manager, template_manager, port_args, scheduler_infos, subprocess_watchdog, "
            "execute_warmup_func=, launch_callback=)"
        ),
        "app": None,
        "get_global_state": "()",
    },
    "environ": {
        "envs": None,
        "envs.SGLANG_DISAGG_STAGING_BUFFER": None,
        "envs.SGLANG_ENABLE_OVERLAP_PLAN_STREAM": None,
        "envs.SGLANG_MOONCAKE_CUSTOM_MEM_POOL": None,
        "envs.SGLANG_SWA_EVICTION_INTERVAL": None,
    },
    "layers.attention.attention_registry": {
        "ATTENTION_BACKENDS": None,
        "register_attention_backend": "(name)",
    },
    "layers.attention.base_attn_backend": {
        "AttentionBackend": None,
        "AttentionBackend.forward_decode": "(self, q, k, v, layer, forward_batch, save_kv_cache=, **kwargs)",
        "AttentionBackend.forward_extend": "(self, q, k, v, layer, forward_batch, save_kv_cache=, **kwargs)",
        "AttentionBackend.get_cuda_graph_seq_len_fill_value": "(self)",
        "AttentionBackend.init_cuda_graph_state": "(self, max_bs, max_num_tokens)",
        "AttentionBackend.init_forward_metadata": "(self, forward_batch)",
        "AttentionBackend.init_forward_metadata_out_graph": "(self, forward_batch, in_capture=)",
    },
    "layers.logits_processor": {
        "LogitsProcessor.forward": (
            "(self, input_ids, hidden_states, lm_head, logits_metadata, aux_hidden_states=, hidden_states_before_norm=)"
        ),
        "LogitsProcessorOutput": "(next_token_logits, ...)",
    },
    "layers.radix_attention": {
        "breakable_unified_attention_with_output": None,
        "unified_attention_with_output": None,
    },
    "managers.io_struct": {
        "DumperControlReqInput": "(rid=, http_worker_ipc=, method, body)",
        "DumperControlReqOutput": "(rid=, http_worker_ipc=, success, response, error=)",
        "GenerateReqInput": (
            "(input_ids=, input_embeds=, sampling_params=, return_logprob=, session_params=, lora_path=, "
            "routed_dp_rank=, extra_key=, ...)"
        ),
        "ReleaseMemoryOccupationReqInput": None,
        "UnloadLoRAAdapterReqInput": None,
        "UpdateWeightFromDiskReqInput": None,
        "UpdateWeightsFromDistributedReqInput": None,
        "UpdateWeightsFromIPCReqInput": None,
        "UpdateWeightsFromTensorReqInput": None,
    },
    "managers.multi_tokenizer_mixin": {
        "TokenizerWorker": None,
    },
    "managers.schedule_batch": {
        "Req": (
            "(rid, origin_input_text, origin_input_ids, sampling_params, lora_id=, eos_token_ids=, vocab_size=, "
            "priority=, extra_key=, ...)"
        ),
        "Req.finished": "(self)",
        "Req.get_fill_ids": "(self)",
        "Req.init_next_round_input": "(self, tree_cache=, ...)",
        "Req.needs_host_load_back": "(self)",
        "Req.set_extend_range": "(self, start, end)",
        "Req.set_finish_with_abort": "(self, error_msg)",
        "ReqKvInfo": "(*, kv_allocated_len, swa_evicted_seqlen)",
        "ScheduleBatch._evict_swa": "(self, req, pre_len)",
        "ScheduleBatch.check_decode_mem": "(self, selected_indices=)",
        "ScheduleBatch.is_empty": "(self)",
        "ScheduleBatch.prepare_for_extend": "(self)",
    },
    "managers.schedule_policy": {
        "AddReqResult": None,
        "AddReqResult.CONTINUE": None,
        "AddReqResult.NO_TOKEN": None,
        "AddReqResult.OTHER": None,
        "CLIP_MAX_NEW_TOKENS": None,
        "PrefillAdder.__init__": (
            "(self, page_size, tree_cache, token_to_kv_pool_allocator, running_batch, new_token_ratio, "
            "rem_input_tokens, rem_chunk_tokens, num_mixed_decode_tokens=, priority_scheduling_preemption_threshold=, "
            "max_prefill_bs=, max_running_requests=, prefill_max_requests=, prefill_delayer_single_pass=, "
            "dllm_config=, waiting_queue_len=)"
        ),
        "PrefillAdder.add_chunked_req": "(self, req)",
        "PrefillAdder.add_one_req": "(self, req, has_chunked_req, truncation_align_size)",
    },
    "managers.scheduler": {
        "Scheduler._abort_on_queued_limit": "(self, recv_req)",
        "Scheduler._abort_on_waiting_timeout": "(self)",
        "Scheduler._add_request_to_queue": "(self, req, is_retracted=)",
        "Scheduler._get_new_batch_prefill_raw": "(self, prefill_delayer_single_pass, running_batch)",
        "Scheduler.abort_request": "(self, recv_req)",
        "Scheduler.get_internal_state": "(self, recv_req)",
        "Scheduler.handle_dumper_control": "(self, recv_req)",
        "Scheduler.init_req_max_new_tokens": "(self, req)",
        "Scheduler.is_fully_idle": "(self, for_health_check=)",
        "Scheduler.process_input_requests": "(self, recv_reqs)",
    },
    "managers.scheduler_components.flush_wrapper": {
        "SchedulerFlushWrapper.handle": "(self, recv_req)",
    },
    "managers.scheduler_components.invariant_checker": {
        "SchedulerInvariantChecker._get_total_uncached_sizes": "(self)",
    },
    "managers.scheduler_components.output_streamer": {
        "SchedulerOutputStreamer.stream_output": "(self, reqs, return_logprob, skip_req=)",
    },
    "managers.scheduler_components.weight_updater": {
        "SchedulerWeightUpdaterManager.flush_cache_after_weight_update": "(self, recv_req)",
        "SchedulerWeightUpdaterManager.release_memory_occupation": "(self, recv_req)",
        "SchedulerWeightUpdaterManager.resume_memory_occupation": "(self, recv_req)",
        "SchedulerWeightUpdaterManager.update_weights_from_disk": "(self, recv_req)",
        "SchedulerWeightUpdaterManager.update_weights_from_distributed": "(self, recv_req)",
        "SchedulerWeightUpdaterManager.update_weights_from_ipc": "(self, recv_req)",
        "SchedulerWeightUpdaterManager.update_weights_from_tensor": "(self, recv_req)",
    },
    "managers.tokenizer_control_mixin": {
        "TokenizerControlMixin.update_weights_from_distributed": "(self, obj, request=)",
        "TokenizerControlMixin.update_weights_from_ipc": "(self, obj, request=)",
        "TokenizerControlMixin.update_weights_from_tensor": "(self, obj, request=)",
    },
    "managers.tokenizer_manager": {
        "TokenizerManager._tokenize_one_request": "(self, obj)",
        "TokenizerManager._validate_one_request": "(self, obj, input_ids)",
        "TokenizerManager.dumper_control": "(self, obj)",
        "TokenizerManager.generate_request": "(self, obj, request=)",
        "TokenizerManager.init_tokenizer_and_processor": "(self)",
        "TokenizerManager.update_weights_from_disk": "(self, obj, request=)",
    },
    "mem_cache.allocation_sizing": {
        "get_req_to_token_extra_context_len": "(server_args)",
    },
    "mem_cache.allocator.swa": {
        "SWATokenToKVPoolAllocator.full_available_size": "(self)",
        "SWATokenToKVPoolAllocator.get_kvcache": "(self)",
        "SWATokenToKVPoolAllocator.swa_available_size": "(self)",
    },
    "mem_cache.base_prefix_cache": {
        "EvictParams": "(num_tokens=, swa_num_tokens=, mamba_num=)",
        "IncLockRefResult.to_dec_params": "(self)",
        "InitLoadBackParams": "(best_match_node, host_hit_length, mem_quota=, req=)",
        "InsertParams": None,
        "InsertResult": None,
        "MatchPrefixParams": "(key, cow_mamba=, req=)",
        "MatchResult": None,
        "MatchResult._replace": "(self, **kwds)",
    },
    "mem_cache.chunk_cache": {
        "SWAChunkCache": None,
        "SWAChunkCache.__init__": "(self, params)",
        "SWAChunkCache.cache_finished_req": "(self, req, is_insert=, *, kv_len_to_handle)",
        "SWAChunkCache.match_prefix": "(self, params)",
    },
    "mem_cache.common": {
        "free_swa_out_of_window_slots": (
            "(req, pre_len, *, sliding_window_size, page_size, req_to_token_pool, token_to_kv_pool_allocator, "
            "is_chunk_cache=)"
        ),
    },
    "mem_cache.hicache_storage": {
        "HiCacheStorageConfig": (
            "(tp_rank, tp_size, pp_rank, pp_size, attn_cp_rank, attn_cp_size, is_mla_model, enable_storage_metrics, "
            "is_page_first_layout, model_name, tp_lcm_size=, should_split_heads=, extra_config=)"
        ),
        "PoolName": None,
        "PoolName.KV": None,
        "PoolName.SWA": None,
        "PoolTransfer": (
            "(name, host_indices=, device_indices=, keys=, hit_policy=, nodes_to_load=, indices_from_pool=)"
        ),
    },
    "mem_cache.hybrid_cache.hybrid_cache_controller": {
        "HybridCacheController": None,
        "HybridCacheController.__init__": (
            "(self, token_to_kv_pool_allocator, mem_pool_host, page_size, tp_group, load_cache_event, attn_cp_group=, "
            "attn_tp_group=, pp_group=, write_policy=, io_backend=, storage_backend=, prefetch_threshold=, "
            "model_name=, storage_backend_extra_config=, transfer_layer_num=, enable_storage_metrics=)"
        ),
        "HybridCacheController.load": "(self, host_indices, priority=, node_id=, extra_pools=)",
        "HybridCacheController.move_indices": "(self, host_indices, device_indices)",
        "HybridCacheController.parse_storage_backend_extra_config": "(storage_backend_extra_config)",
        "HybridCacheController.reset": "(self)",
        "HybridCacheController.start_loading": "(self)",
        "HybridCacheController.start_writing": "(self)",
    },
    "mem_cache.hybrid_cache.hybrid_pool_assembler": {
        "StackBuildResult": (
            "(host_pool_group, cache_controller, component_host_pools, sidecars=, register_req_to_token_counter=, "
            "transfer_layer_num=, pools_desc=)"
        ),
        "StackStrategy": None,
        "StackStrategy.build": (
            "(self, *, cache, kvcache, params, server_args, load_cache_event, storage_backend=, "
            "storage_backend_extra_config=, prefetch_threshold=, model_name=, enable_storage_metrics=)"
        ),
        "StackStrategy.matches": "(self, kvcache, components)",
        "build_pool_entry": (
            "(*, name, host_pool, device_pool, layer_mapping, transfer_layer_num, is_anchor=, host_evict_fn=, "
            "device_evict_fn=, device_alloc_fn=, device_free_fn=)"
        ),
        "register_stack_strategy": "(strategy)",
    },
    "mem_cache.kv_cache_configurator": {
        "KVCacheConfigurator._build_hybrid_swa_kv_pool": (
            "(self, *, full_max_total_num_tokens, swa_max_total_num_tokens, mha_pool_class)"
        ),
    },
    "mem_cache.memory_pool": {
        "KVCache": None,
        "KVCache.__init__": (
            "(self, size, page_size, dtype, layer_num, device, enable_memory_saver, start_layer=, end_layer=, "
            "allocation_label=)"
        ),
    },
    "mem_cache.memory_pool_host": {
        "HostPoolGroup": "(entries)",
    },
    "mem_cache.pool_host.base": {
        "HostKVCache": None,
        "HostKVCache.__init__": (
            "(self, device_pool, host_to_device_ratio, host_size, page_size, layout, pin_memory, device, "
            "allocator_type=, dcp_size=, dcp_rank=, *, pool_label=)"
        ),
        "HostKVCache._merge_release_slots": "(self)",
        "HostKVCache.backup_from_device_all_layer": "(self, device_pool, host_indices, device_indices, io_backend)",
        "HostKVCache.clear": "(self)",
        "HostKVCache.get_data_page": "(self, index, flat=)",
        "HostKVCache.get_size_per_token": "(self)",
        "HostKVCache.init_kv_buffer": "(self)",
        "HostKVCache.load_to_device_per_layer": (
            "(self, device_pool, host_indices, device_indices, layer_id, io_backend)"
        ),
    },
    "mem_cache.pool_host.common": {
        "ALLOC_MEMORY_FUNCS": None,
        "HostTensorAllocator": "()",
    },
    "mem_cache.radix_cache": {
        "RadixKey": "(token_ids, extra_key=, is_bigram=, limit=)",
        "RadixKey.child_key": "(self, page_size=)",
        "RadixKey.match": "(self, other, page_size=)",
    },
    "mem_cache.registry": {
        "get_radix_cache_factory": "(name)",
        "register_radix_cache_backend": "(name, factory)",
    },
    "mem_cache.storage.backend_factory": {
        "StorageBackendFactory": None,
        "StorageBackendFactory.create_backend": "(backend_name, storage_config, mem_pool_host, **kwargs)",
    },
    "mem_cache.swa_memory_pool": {
        "SWAKVPool": None,
        "SWAKVPool.__init__": (
            "(self, size, size_swa, page_size, dtype, head_num, head_dim, swa_attention_layer_ids, "
            "full_attention_layer_ids, device, token_to_kv_pool_class=, **kwargs)"
        ),
        "SWAKVPool.get_cpu_copy": "(self, indices, mamba_indices=)",
        "SWAKVPool.get_key_buffer": "(self, layer_id)",
        "SWAKVPool.get_kv_size_bytes": "(self)",
        "SWAKVPool.load_cpu_copy": "(self, kv_cache_cpu, indices, mamba_indices=)",
        "SWAKVPool.move_kv_cache": "(self, tgt_loc, src_loc)",
        "SWAKVPool.post_capture_active": None,
        "SWAKVPool.register_layer_transfer_counter": "(self, layer_transfer_counter)",
        "SWAKVPool.set_kv_buffer": "(self, layer, loc_info, cache_k, cache_v, k_scale=, v_scale=)",
        "SWAKVPool.translate_loc_from_full_to_swa": "(self, kv_indices)",
    },
    "mem_cache.unified_cache.cache_action": {
        "BackupKV": "(node_ids)",
        "FreeComponentDeviceSlot": None,
        "FreeDeviceKV": "(indices)",
        "RecoverSWAWithLockedFull": "(node_id, kept_full, incoming_full, component_type=)",
        "SWARebuild": "(node_id, source_value, component_type=)",
    },
    "mem_cache.unified_cache.components": {
        "ComponentType": None,
        "ComponentType.FULL": None,
        "ComponentType.SWA": None,
    },
    "mem_cache.unified_cache.components.full_component": {
        "FullComponent": None,
        "FullComponent.__init__": "(self, cache, params)",
        "FullComponent._evict_device_end": "(self)",
        "FullComponent._evict_device_next_node": "(self, tracker, device_frees, host_frees)",
        "FullComponent._evict_device_start": "(self, request_cnt)",
        "FullComponent.commit_hicache_transfer": (
            "(self, node, phase, transfers=, *, cache_actions, insert_result=, pool_storage_result=)"
        ),
        "FullComponent.commit_insert_component_data": "(self, node, is_new_leaf, params, result, cache_actions)",
        "FullComponent.component_type": None,
        "FullComponent.drive_host_eviction": "(self, num_tokens, tracker, device_frees, host_frees)",
        "FullComponent.evict_component": "(self, node, device_frees, host_frees, target=)",
        "FullComponent.redistribute_on_node_split": "(self, new_parent, child)",
    },
    "mem_cache.unified_cache.components.swa_component": {
        "SWAComponent": None,
        "SWAComponent.__init__": "(self, cache, params)",
        "SWAComponent._attach_swa_host_value": "(self, node, host_indices)",
        "SWAComponent._evict_device_end": "(self)",
        "SWAComponent._evict_device_next_node": "(self, tracker, device_frees, host_frees)",
        "SWAComponent._evict_device_start": "(self, request_cnt)",
        "SWAComponent.acquire_component_lock": "(self, node, result, lock_host=)",
        "SWAComponent.apply_component_action": "(self, action)",
        "SWAComponent.build_hicache_transfers": (
            "(self, node, phase, *, mamba_pool_idx=, host_indices=, token_ids=, prefetch_tokens=, last_hash=)"
        ),
        "SWAComponent.commit_hicache_transfer": (
            "(self, node, phase, transfers=, *, cache_actions, insert_result=, pool_storage_result=)"
        ),
        "SWAComponent.commit_insert_component_data": "(self, node, is_new_leaf, params, result, cache_actions)",
        "SWAComponent.component_type": None,
        "SWAComponent.create_match_validator": "(self, match_device_only=)",
        "SWAComponent.drive_host_eviction": "(self, num_tokens, tracker, device_frees, host_frees)",
        "SWAComponent.evict_component": "(self, node, device_frees, host_frees, target=)",
        "SWAComponent.finalize_match_result_in_tree_core": "(self, result, params, value_chunks, best_value_len)",
        "SWAComponent.free_out_of_window_slots": "(self, req, pre_len, insert_params)",
        "SWAComponent.prepare_for_caching_req": "(self, req, insert_params, token_ids_len, is_finished)",
        "SWAComponent.recover_after_unevict": "(self, node, prefix_len, total_prefix_len, params, cache_actions)",
        "SWAComponent.redistribute_on_node_split": "(self, new_parent, child)",
        "SWAComponent.refresh_lru": "(self, phase, node, root_node)",
        "SWAComponent.release_component_lock": "(self, node, params, lock_host=)",
        "SWAComponent.release_window_lock": "(self, node, swa_uuid_for_lock, device_frees, host_frees)",
        "SWAComponent.update_component_on_insert_overlap": (
            "(self, node, prefix_len, total_prefix_len, value_slice, params, cache_actions)"
        ),
    },
    "mem_cache.unified_cache.components.tree_component": {
        "BASE_COMPONENT_TYPE": None,
        "CacheTransferPhase": None,
        "CacheTransferPhase.BACKUP_HOST": None,
        "CacheTransferPhase.LOAD_BACK": None,
        "EvictLayer": None,
        "EvictLayer.DEVICE": None,
        "EvictLayer.HOST": None,
        "LRURefreshPhase": None,
        "LRURefreshPhase.WALKDOWN": None,
        "next_component_uuid": "()",
    },
    "mem_cache.unified_cache.unified_tree_core": {
        "UnifiedTreeCore._cascade_evict": "(self, node, trigger, tracker, device_frees, host_frees, target=)",
        "UnifiedTreeCore._evict_component_and_detach_lru": (
            "(self, node, comp, device_frees, host_frees, target=, tracker=)"
        ),
        "UnifiedTreeCore._evict_host_leaf": "(self, node, tracker, device_frees, host_frees)",
        "UnifiedTreeCore._split_node": "(self, key, child, split_len)",
        "UnifiedTreeCore._update_evictable_leaf_sets": "(self, node)",
        "UnifiedTreeCore.collect_full_device_indices": "(self, from_node_id, until_node_id)",
        "UnifiedTreeCore.insert_host": "(self, node_id, key, host_value, hash_value)",
        "UnifiedTreeCore.node_by_id": "(self, node_id)",
    },
    "mem_cache.unified_radix_cache": {
        "UnifiedRadixCache": None,
        "UnifiedRadixCache.__init__": "(self, params)",
        "UnifiedRadixCache._apply_cache_actions": "(self, actions)",
        "UnifiedRadixCache._dec_req_lock": "(self, req, *, skip_swa=)",
        "UnifiedRadixCache._evict_device_leaf": "(self, node_id, tracker)",
        "UnifiedRadixCache._execute_and_commit_kv_backup": "(self, action, write_back=)",
        "UnifiedRadixCache._free_values": "(self, device_frees, host_frees)",
        "UnifiedRadixCache._load_back_transfers": (
            "(self, *, node_id, mem_quota, req, result, ancestor_lock_params, host_anchor_params)"
        ),
        "UnifiedRadixCache._track_write_through_node": "(self, node_id, lock_params)",
        "UnifiedRadixCache.cache_finished_req": "(self, req, is_insert=, *, kv_len_to_handle, **kwargs)",
        "UnifiedRadixCache.cache_unfinished_req": "(self, req, chunked=, **kwargs)",
        "UnifiedRadixCache.check_hicache_events": "(self)",
        "UnifiedRadixCache.clear_storage_backend": "(self)",
        "UnifiedRadixCache.dec_host_lock_ref": "(self, node_id, params=)",
        "UnifiedRadixCache.dec_lock_ref": "(self, node_id, params=, skip_swa=)",
        "UnifiedRadixCache.evict": "(self, params)",
        "UnifiedRadixCache.evict_host": "(self, num_tokens, component_type=)",
        "UnifiedRadixCache.full_evictable_size": "(self)",
        "UnifiedRadixCache.full_protected_size": "(self)",
        "UnifiedRadixCache.inc_host_lock_ref": "(self, node_id)",
        "UnifiedRadixCache.inc_lock_ref": "(self, node_id, skip_lock_components=)",
        "UnifiedRadixCache.init_hicache": "(self, server_args, params)",
        "UnifiedRadixCache.init_load_back": "(self, params)",
        "UnifiedRadixCache.insert": "(self, params)",
        "UnifiedRadixCache.is_chunk_cache": "(self)",
        "UnifiedRadixCache.load_back": "(self, node_id, mem_quota=, req=)",
        "UnifiedRadixCache.loading_check": "(self, finish_count=)",
        "UnifiedRadixCache.match_prefix": "(self, params)",
        "UnifiedRadixCache.reset": "(self)",
        "UnifiedRadixCache.sanity_check": "(self)",
        "UnifiedRadixCache.sliding_window_size": None,
        "UnifiedRadixCache.swa_evictable_size": "(self)",
        "UnifiedRadixCache.swa_protected_size": "(self)",
        "UnifiedRadixCache.take_events": "(self)",
    },
    "mem_cache.utils": {
        "_EVICTION_POLICY_FACTORIES": None,
    },
    "model_executor.forward_batch_info": {
        "ForwardBatch.init_new": "(batch, model_runner, *, capture_hidden_mode=, return_hidden_states_before_norm)",
        "ForwardMode.is_decode": "(self)",
        "ForwardMode.is_extend": "(self, include_draft_extend_v2=)",
        "ForwardMode.is_idle": "(self)",
        "ForwardMode.is_target_verify": "(self)",
    },
    "model_executor.model_runner": {
        "ModelRunner.forward": (
            "(self, forward_batch, skip_attn_backend_init=, pp_proxy_tensors=, reinit_attn_backend=, split_forward_count=)"
        ),
    },
    "model_executor.model_runner_components.weight_exporter": {
        "WeightExporter.get_weights_by_name": "(self, name, truncate_size=)",
        "WeightExporter.init_weights_send_group_for_remote_instance": (
            "(self, master_address, ports, group_rank, world_size, group_name, backend=)"
        ),
        "WeightExporter.save_remote_model": "(self, url)",
        "WeightExporter.save_sharded_model": "(self, path, pattern=, max_size=)",
        "WeightExporter.send_weights_to_remote_instance": "(self, master_address, ports, group_name)",
    },
    "model_executor.model_runner_components.weight_updater": {
        "WeightUpdater.update_weights_from_disk": (
            "(self, model_path, load_format, weight_name_filter=, recapture_cuda_graph=)"
        ),
        "WeightUpdater.update_weights_from_tensor": "(self, named_tensors, load_format=)",
    },
    "model_executor.pool_configurator": {
        "MemoryPoolConfig": "(max_total_num_tokens, full_max_total_num_tokens=, swa_max_total_num_tokens=, ...)",
        "MemoryPoolConfigurator": None,
        "MemoryPoolConfigurator.calculate_pool_sizes": "(self, available_bytes, page_size)",
        "MemoryPoolConfigurator.calculate_pool_sizes_from_max_tokens": "(self, max_total_num_tokens, page_size)",
        "create_memory_pool_configurator": "(kvc)",
    },
    "model_executor.runner.prefill_cuda_graph_runner": {
        "PrefillCudaGraphRunner._prepare_forward_metadata_for_replay": (
            "(self, forward_batch, static_forward_batch, num_tokens)"
        ),
        "PrefillCudaGraphRunner._run_forward": "(self, forward_batch, num_tokens)",
        "PrefillCudaGraphRunner._shape_key": "(self, num_tokens, forward_batch)",
        "PrefillCudaGraphRunner.can_run_graph": "(self, forward_batch)",
        "PrefillCudaGraphRunner.capture": "(self)",
        "PrefillCudaGraphRunner.capture_one_shape": "(self, size, *, prefix_num_chunks=)",
        "PrefillCudaGraphRunner.capture_prepare": "(self, num_tokens)",
    },
    "model_executor.runner.shape_key": {
        "ShapeKey": "(size, stream_idx=, variant_label=)",
    },
    "model_executor.runner_backend.breakable_cuda_graph_backend": {
        "BreakableCudaGraphBackend": None,
        "BreakableCudaGraphBackend.capture_one": "(self, shape_key, forward_fn, capture_inputs=, post_warmup_hook=)",
    },
    "model_loader.loader": {
        "_initialize_model": "(model_config, load_config, quant_config=)",
    },
    "observability.req_time_stats": {
        "SchedulerReqTimeStats.set_wait_queue_entry_time": "(self, ts=)",
    },
    "plugins": {
        "load_plugins": "()",
    },
    "plugins.hook_registry": {
        "HookRegistry": None,
        "HookRegistry._patched": None,
        "HookRegistry.apply_hooks": "()",
        "HookRegistry.register": "(target, hook, hook_type=, *, source=)",
        "HookType": None,
    },
    "runtime_context": {
        "get_parallel": "()",
        "get_server_args": "()",
    },
    "sampling.sampling_params": {
        "SamplingParams": "(max_new_tokens=, temperature=, ignore_eos=, custom_params=, ...)",
        "SamplingParams.normalize": "(self, tokenizer)",
    },
    "server_args": {
        "ServerArgs.__init__": (
            "(self, model_path, kv_cache_dtype=, mem_fraction_static=, max_total_tokens=, "
            "chunked_prefill_size=, page_size=, enable_unified_memory=, tp_size=, dcp_size=, pp_size=, dp_size=, "
            "attn_cp_size=, enable_dp_attention=, device=, preferred_sampling_params=, enable_streaming_session=, "
            "enable_session_radix_cache=, attention_backend=, decode_attention_backend=, "
            "prefill_attention_backend=, radix_cache_backend=, cuda_graph_config=, speculative_algorithm=, "
            "enable_hierarchical_cache=, hicache_write_policy=, hicache_io_backend=, hicache_mem_layout=, "
            "hicache_storage_backend=, hicache_storage_prefetch_policy=, enable_hisparse=, enable_two_batch_overlap=, enable_lmcache=, enable_flexkv=, "
            "dllm_algorithm=, disaggregation_mode=, disaggregation_transfer_backend=, "
            "disaggregation_decode_enable_radix_cache=, disaggregation_decode_enable_offload_kvcache=, enable_pdmux=, "
            "enable_deterministic_inference=, rl_on_policy_target=, ...)"
        ),
        "ServerArgs.add_cli_args": "(parser)",
        "ServerArgs.from_cli_args": "(args)",
        "ServerArgs.get_model_config": "(self)",
        "ServerArgs.get_tokenizer_worker_class": "(self)",
        "RADIX_EVICTION_POLICY_CHOICES": None,
        "add_radix_eviction_policy_choices": "(choices)",
        "prepare_server_args": "(argv)",
    },
    "speculative.base_spec_worker": {
        "BaseSpecWorker.update_weights_from_disk": "(self, recv_req)",
        "BaseSpecWorker.update_weights_from_ipc": "(self, recv_req)",
    },
    "speculative.draft_utils": {
        "DraftBackendFactory.create_decode_backend": "(self)",
        "DraftBackendFactory.create_draft_extend_backend": "(self)",
    },
    "speculative.eagle_worker_v2": {
        "EAGLEWorkerV2.update_weights_from_tensor": "(self, recv_req)",
        "EagleDraftWorker.alloc_memory_pool": "(self, memory_pool_config=, req_to_token_pool=, token_to_kv_pool_allocator=)",
    },
    "speculative.ngram_worker": {
        "NGRAMWorker.__init__": "(self, server_args, gpu_id, ps, nccl_port, target_worker)",
        "NGRAMWorker._prepare_draft_tokens": "(self, batch)",
    },
    "utils": {
        "get_available_gpu_memory": "(device, gpu_id, distributed=, empty_cache=, cpu_group=)",
    },
    "utils.auth": {
        "AuthLevel": None,
        "AuthLevel.ADMIN_OPTIONAL": None,
        "auth_level": "(level)",
    },
}
