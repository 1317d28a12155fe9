# SPDX-License-Identifier: Apache-2.0
"""What we use of SGLang 0.5.18 by name, as far as it differs from 0.5.17 (see `seams/surface.py`)."""

from __future__ import annotations

from redknot_sglang.seams.surface import Surface, changed
from redknot_sglang.seams.v0_5_17.surface import SURFACE as BEFORE

SURFACE: Surface = changed(
    BEFORE,
    {
        "configs.model_config": {
            "ModelConfig.get_num_kv_heads": "(self, tensor_parallel_size, dcp_size=)",
        },
        "managers.schedule_batch": {
            "ScheduleBatch.maybe_evict_swa": "(self)",
        },
        "managers.schedule_policy": {
            "PrefillAdder.__init__": (
                "(self, page_size, tree_cache, token_to_kv_pool_allocator, running_batch, new_token_ratio, "
                "rem_input_tokens, rem_chunk_tokens, num_mixed_decode_tokens=, "
                "priority_scheduling_preemption_threshold=, max_prefill_bs=, max_running_requests=, "
                "prefill_max_requests=, prefill_delayer_single_pass=, dllm_config=, waiting_queue_len=, "
                "prefill_tile_block_m=)"
            ),
            "PrefillAdder._swa_req_never_fits": "(self, extend_input_len, max_new_tokens, swa_host_hit_length=)",
        },
        "mem_cache.common": {
            "free_swa_out_of_window_slots": (
                "(req, pre_len, *, sliding_window_size, page_size, req_to_token_pool, token_to_kv_pool_allocator, "
                "is_chunk_cache=, retain_floor=)"
            ),
        },
        # Host memory is refused with this version (`hooks/v0_5_18/refusals.py`): the table only says what is there.
        "mem_cache.pool_host.base": {
            "HostKVCache.load_to_device_per_layer": (
                "(self, device_pool, host_indices, device_indices, layer_id, io_backend, *, is_draft=)"
            ),
        },
        "mem_cache.radix_cache": {
            "RadixKey": "(token_ids, extra_key=, is_bigram=, limit=, cache_salt=)",
        },
        "model_executor.runner.shape_key": {
            "ShapeKey": "(size, stream_idx=, variant_label=, dsa_variant=)",
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
                "disaggregation_decode_enable_radix_cache=, disaggregation_decode_enable_offload_kvcache=, enable_pdmux=, startup_weight_load_mode=, "
                "enable_deterministic_inference=, rl_on_policy_target=, ...)"
            ),
        },
    },
    gone=(
        ("mem_cache.allocation_sizing", "get_req_to_token_extra_context_len"),
        ("speculative.base_spec_worker", "BaseSpecWorker.update_weights_from_disk"),
        ("speculative.base_spec_worker", "BaseSpecWorker.update_weights_from_ipc"),
        ("speculative.draft_utils", "DraftBackendFactory.create_decode_backend"),
        ("speculative.draft_utils", "DraftBackendFactory.create_draft_extend_backend"),
        ("speculative.eagle_worker_v2", "EAGLEWorkerV2.update_weights_from_tensor"),
        ("speculative.eagle_worker_v2", "EagleDraftWorker.alloc_memory_pool"),
        ("speculative.ngram_worker", "NGRAMWorker.__init__"),
        ("speculative.ngram_worker", "NGRAMWorker._prepare_draft_tokens"),
    ),
)
