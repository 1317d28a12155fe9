# SPDX-License-Identifier: Apache-2.0
"""Fields that we read or write on objects of SGLang 0.5.17, by their classes (see `seams/surface.py`)."""

from __future__ import annotations

from redknot_sglang.seams.surface import Fields

FIELDS: Fields = {
    "configs.model_config": {
        "ModelConfig": (
            "attention_arch context_len dtype full_attention_layer_ids head_dim hf_config hf_eos_token_id hidden_size "
            "hf_text_config is_deepseek_v4_arch is_generation is_hybrid_swa is_multimodal model_path num_attention_heads "
            "num_attention_layers num_hidden_layers num_nextn_predict_layers quantization sliding_window_size swa_attention_layer_ids v_head_dim vocab_size"
        ),
    },
    "disaggregation.base.conn": {
        "KVArgs": "kv_cache_dtype_str state_types",
    },
    "disaggregation.common.conn": {
        "CommonKVManager": "attn_tp_rank attn_tp_size kv_args server_args transfer_infos",
        "CommonKVReceiver": "conclude_state",
        "CommonKVSender": "bootstrap_room kv_mgr num_kv_indices",
        "PrefillServerInfo": "attn_tp_size",
    },
    "disaggregation.decode": {
        "DecodePreallocQueue": (
            "kv_manager req_to_token_pool retracted_queue scheduler token_to_kv_pool token_to_kv_pool_allocator transfer_queue"
        ),
        "DecodeRequest": "kv_receiver req",
    },
    "disaggregation.mooncake.conn": {
        "TransferInfo": "dst_kv_indices dst_port dst_state_indices endpoint is_dummy",
    },
    "disaggregation.prefill": {
        "PrefillBootstrapQueue": "kv_manager scheduler",
    },
    "distributed.parallel_state_wrapper": {
        "ParallelState": "dp_rank",
    },
    "layers.logits_processor": {
        "LogitsProcessor": "config",
    },
    "layers.radix_attention": {
        "RadixAttention": (
            "k_scale k_scale_float layer_id logit_cap scaling tp_k_head_num tp_q_head_num v_scale v_scale_float"
        ),
    },
    "managers.io_struct": {
        "GenerateReqInput": "input_ids logprob_start_len return_logprob sampling_params session_params text",
        "GetInternalStateReqOutput": "internal_state",
    },
    "managers.schedule_batch": {
        "Req": (
            "best_match_node bootstrap_host bootstrap_room cache_protected_len cached_tokens customized_info disagg_kv_sender extend_range extra_key finished_reason "
            "full_untruncated_fill_ids host_hit_length kv last_node logprob_start_len lora_id origin_input_ids "
            "origin_input_ids_unpadded output_ids prefix_indices priority req_pool_idx retracted_stain sampling_params "
            "skip_radix_cache_insert storage_hit_length swa_evict_floor swa_host_hit_length time_stats to_finish tokenizer"
        ),
        "ReqKvInfo": "kv_allocated_len swa_evicted_seqlen",
        "ScheduleBatch": (
            "extend_lens forward_mode prefix_lens req_to_token_pool reqs token_to_kv_pool_allocator tree_cache"
        ),
    },
    "managers.schedule_policy": {
        "PrefillAdder": (
            "can_run_list cur_rem_token_offset new_chunked_req preempt_list rem_chunk_tokens rem_swa_token_offset "
            "rem_swa_tokens rem_total_token_offset rem_total_tokens running_batch tree_cache"
        ),
    },
    "managers.scheduler": {
        "Scheduler": (
            "_engine_paused _pending_chunked_abort_req chunked_req disagg_prefill_bootstrap_queue "
            "enable_hierarchical_cache ipc_channels last_batch max_req_input_len "
            "model_config ps req_to_token_pool running_batch server_args token_to_kv_pool_allocator tokenizer tp_worker tree_cache "
            "waiting_queue"
        ),
    },
    "managers.scheduler_components.flush_wrapper": {
        "SchedulerFlushWrapper": "_is_fully_idle",
    },
    "managers.scheduler_components.invariant_checker": {
        "SchedulerInvariantChecker": "get_last_batch get_running_batch tree_cache",
    },
    "managers.scheduler_components.ipc_channels": {
        "SchedulerIpcChannels": "send_to_tokenizer",
    },
    "managers.scheduler_components.output_streamer": {
        "SchedulerOutputStreamer": "server_args",
    },
    "managers.scheduler_components.weight_updater": {
        "SchedulerWeightUpdaterManager": "flush_cache scheduler tp_cpu_group",
    },
    "managers.tokenizer_manager": {
        "TokenizerManager": "model_config preferred_sampling_params server_args tokenizer",
    },
    "mem_cache.allocator.swa": {
        "SWATokenToKVPoolAllocator": (
            "full_attn_allocator full_to_swa_index_mapping size_full size_swa swa_attn_allocator"
        ),
    },
    "mem_cache.base_prefix_cache": {
        "InsertParams": "key prev_prefix_len",
        "MatchPrefixParams": "key req",
        "MatchResult": "best_match_node device_indices full_kv_hit_length last_device_node swa_host_hit_length",
    },
    "mem_cache.cache_init_params": {
        "CacheInitParams": (
            "attn_cp_cache_group attn_tp_cache_group component_registry_override enable_kv_cache_events enable_metrics eviction_policy "
            "is_eagle page_size pp_cache_group token_to_kv_pool_allocator tp_cache_group tree_components"
        ),
    },
    "mem_cache.chunk_cache": {
        "SWAChunkCache": "sliding_window_size",
    },
    "mem_cache.hybrid_cache.hybrid_cache_controller": {
        "HybridCacheController": "layer_done_counter load_queue",
    },
    "mem_cache.kv_cache_configurator": {
        "KVCacheConfigurator": "is_draft_worker kv_cache_dtype model_config server_args",
    },
    "mem_cache.memory_pool": {
        "ReqToTokenPool": "req_to_token",
    },
    "mem_cache.pool_host.base": {
        "HostKVCache": "free_slots kv_buffer pin_memory size size_per_token",
    },
    "mem_cache.radix_cache": {
        "RadixKey": "extra_key limit token_ids",
    },
    "mem_cache.registry": {
        "TreeCacheBuildContext": (
            "disable_radix_cache enable_hierarchical_cache model_config params server_args tp_worker"
        ),
    },
    "mem_cache.swa_memory_pool": {
        "SWAKVPool": "full_kv_pool mem_usage memory_saver_adapter post_capture_active swa_kv_pool",
    },
    "mem_cache.unified_cache.components.full_component": {
        "FullComponent": "cache component_type tree_core",
    },
    "mem_cache.unified_cache.components.swa_component": {
        "SWAComponent": "cache component_type sliding_window_size tree_core",
    },
    "mem_cache.unified_cache.components.tree_component": {
        "ComponentData": "host_lock_ref host_value lock_ref metadata value",
    },
    "mem_cache.unified_cache.unified_tree_core": {
        "UnifiedTreeCore": (
            "component_evictable_size_ component_protected_size_ evictable_device_leaves evictable_host_leaves eviction_strategy "
            "host_lru_lists lru_lists root_node"
        ),
        "UnifiedTreeNode": "backuped children component_data evicted hash_value id key parent write_through_pending_id",
    },
    "mem_cache.unified_radix_cache": {
        "UnifiedRadixCache": (
            "cache_controller components disable host_pool_group page_size sliding_window_size "
            "token_to_kv_pool_allocator tp_group tree_components tree_core"
        ),
    },
    "model_executor.forward_batch_info": {
        "ForwardBatch": (
            "_attn_output batch_size extend_prefix_lens extend_prefix_lens_cpu extend_seq_lens_cpu forward_mode "
            "input_ids out_cache_loc positions req_pool_indices seq_lens seq_lens_cpu spec_info"
        ),
    },
    "model_executor.model_runner": {
        "ModelRunner": "attn_backend is_draft_worker model model_config req_to_token_pool server_args token_to_kv_pool",
    },
    "model_executor.model_runner_components.weight_exporter": {
        "WeightExporter": "get_model",
    },
    "model_executor.model_runner_components.weight_updater": {
        "WeightUpdater": "get_model model_config",
    },
    "model_executor.runner.prefill_cuda_graph_runner": {
        "PrefillCudaGraphRunner": "backend capture_num_tokens enable_lora max_num_tokens model_runner",
    },
    "model_executor.runner_backend.breakable_cuda_graph_backend": {
        "BreakableCudaGraphBackend": "_graphs",
    },
    "runtime_context": {
        "ParallelContext": "attn_tp_group attn_tp_rank attn_tp_size",
    },
    "sampling.sampling_params": {
        "SamplingParams": "custom_params max_new_tokens",
    },
    "server_args": {
        "ServerArgs": (
            "admin_api_key api_key chunked_prefill_size cuda_graph_config device disable_radix_cache disaggregation_mode dp_size "
            "enable_hierarchical_cache enable_lora enable_memory_saver enable_multi_layer_eagle enable_weights_cpu_backup "
            "file_storage_path hicache_ratio hicache_size hicache_storage_backend "
            "hicache_storage_backend_extra_config hicache_storage_prefetch_policy hicache_write_policy "
            "kv_cache_dtype load_format "
            "lora_paths max_total_tokens mem_fraction_static model_impl quantization_param_path "
            "remote_instance_weight_loader_start_seed_via_transfer_engine "
            "speculative_adaptive speculative_algorithm speculative_draft_attention_backend speculative_draft_model_path "
            "speculative_draft_model_revision speculative_draft_window_size speculative_eagle_topk speculative_ngram_external_sam_budget speculative_ngram_max_bfs_breadth speculative_num_draft_tokens "
            "speculative_num_steps speculative_use_rejection_sampling "
            "tokenizer_worker_num tp_size weight_cache_mode"
        ),
    },
    "speculative.draft_utils": {
        "DraftBackendFactory": "draft_model_runner server_args speculative_num_steps",
    },
    "speculative.eagle_worker_v2": {
        "EAGLEWorkerV2": "server_args target_worker",
        "EagleDraftWorker": "draft_runner server_args target_worker token_to_kv_pool_allocator",
    },
    "speculative.ngram_info": {
        "NgramVerifyInput": "draft_token_num",
    },
    "speculative.ngram_worker": {
        "NGRAMWorker": "draft_token_num server_args",
    },
}
