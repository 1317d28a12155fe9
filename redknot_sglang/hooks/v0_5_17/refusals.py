# SPDX-License-Identifier: Apache-2.0
"""What cannot work together with RedKnot yet, refused at start-up with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redknot_sglang.errors import RedKnotError

# (argument, values that mean "off", reason)
Arguments = tuple[tuple[str, tuple[Any, ...], str], ...]
NGRAM = "NGRAM"
EAGLE = ("EAGLE", "EAGLE3")
ARGUMENTS: Arguments = (
    (
        "speculative_algorithm",
        (None, NGRAM, *EAGLE),
        "drafts of this kind were not tried with KV per head class; use NGRAM, EAGLE or EAGLE3",
    ),
    ("pp_size", (1,), "pipeline stages would each need their own share of the head map"),
    ("dcp_size", (1,), "decode context parallelism splits a sequence's slots over ranks"),
    ("attn_cp_size", (1,), "context parallelism splits a sequence over ranks"),
    (
        "enable_dp_attention",
        (False,),
        "each of its ranks has requests of its own, and heads are dealt out for ranks that serve the same ones; "
        "use --dp-size without it",
    ),
    ("disaggregation_transfer_backend", ("mooncake", "fake"), "KV per head class was not tried over another one"),
    (
        "disaggregation_decode_enable_radix_cache",
        (False,),
        "a decode server has no tree of head classes; prefixes are reused on the prefill server",
    ),
    ("disaggregation_decode_enable_offload_kvcache", (False,), "it needs storage, which holds whole-token KV"),
    (
        "hicache_write_policy",
        ("write_through", "write_through_selective"),
        "evicting would wait for the copy to the host, and every admission behind it",
    ),
    (
        "hicache_storage_backend",
        (None, "file", "mooncake"),
        "objects of its own size are kept in the stores file and mooncake only",
    ),
    (
        "hicache_storage_prefetch_policy",
        ("timeout", "best_effort"),
        "requests would wait for ever for a store that does not answer; use timeout with a long prefetch_timeout_base",
    ),
    ("hicache_io_backend", ("kernel",), "KV per head class is copied by SGLang's kernels only"),
    ("hicache_mem_layout", ("page_first", "layer_first"), "host memory is laid out per head class and layer"),
    ("enable_lmcache", (False,), "LMCache reads whole-token KV buffers"),
    ("enable_flexkv", (False,), "FlexKV reads whole-token KV buffers"),
    ("enable_hisparse", (False,), "HiSparse replaces the KV pool"),
    ("enable_unified_memory", (False,), "the unified memory pool replaces the KV pool"),
    (
        "enable_session_radix_cache",
        (False,),
        "it makes what open sessions refer to go last, and the order in which KV per head class goes looks at no session; sessions work "
        "without it",
    ),
    (
        "enable_streaming_session",
        (False,),
        "between its turns a streaming session keeps its KV outside the prefix cache, where SGLang counts local slots as one run up to "
        "the end, while local heads keep the first tokens too; ordinary sessions work without it",
    ),
    ("enable_pdmux", (False,), "PD multiplexing shares one attention plan between streams"),
    ("enable_two_batch_overlap", (False,), "two-batch overlap needs two attention plans at a time"),
    (
        "enable_deterministic_inference",
        (False,),
        "an answer must be the same to the last bit whatever else is in its batch, and how attention per head class cuts its sums "
        "depends on the batch",
    ),
    ("rl_on_policy_target", (None,), "it makes inference deterministic, as --enable-deterministic-inference does"),
    ("dllm_algorithm", (None,), "diffusion language models attend in both directions"),
    (
        "kv_cache_dtype",
        ("auto", "bf16", "bfloat16", "fp8_e4m3", "fp8_e5m2"),
        "KV with a scale for each block of numbers is not kept per head class",
    ),
)


# Arguments whose values SGLang itself checks, by the attention backend that RedKnot names for it: these are refused before that.
FIRST = ("enable_deterministic_inference", "rl_on_policy_target")


def refuse_first(given: Mapping[str, Any]) -> None:
    """Raises RedKnotError for an argument that SGLang would refuse for a backend that nobody has asked for.

    given: arguments by name, before SGLang completes them.
    """
    for name, off, reason in ARGUMENTS:
        if name in FIRST and given.get(name) not in (None, *off):
            raise _not_with_redknot(name, given[name], reason)


def _not_with_redknot(name: str, value: Any, reason: str) -> RedKnotError:
    flag = "--" + name.replace("_", "-")
    return RedKnotError(f"{flag} {value} cannot be used with --redknot yet: {reason}")


def refuse_unsupported(server_args: Any, model_config: Any, arguments: Arguments) -> None:
    """Raises RedKnotError for the first argument or model property that RedKnot cannot serve.

    arguments: those of the installed SGLang to look at.
    """
    for name, off, reason in arguments:
        value = getattr(server_args, name, off[0])
        if value not in off:
            raise _not_with_redknot(name, value, reason)
    if server_args.hicache_storage_backend is not None and not server_args.enable_hierarchical_cache:
        raise RedKnotError(
            "--hicache-storage-backend needs --enable-hierarchical-cache with --redknot: the store is behind the host tier; add it"
        )
    if server_args.hicache_storage_backend is not None and server_args.tp_size > 1:
        raise RedKnotError(
            "--hicache-storage-backend cannot be used with --tp-size over 1 under --redknot yet: each rank has heads of its own, so objects "
            "would have to say whose they are, and all ranks to agree on what is there; leave one of them out"
        )
    if server_args.speculative_algorithm is not None:
        _refuse_with_drafts(server_args)
    scales = server_args.quantization_param_path
    if scales is not None and not Path(scales).is_file():
        raise RedKnotError(
            f"--quantization-param-path {scales} is no file, and SGLang would store KV without scales: name the file, or leave the flag out"
        )
    if server_args.disaggregation_mode != "null":
        _refuse_apart(server_args)
    if server_args.enable_memory_saver and server_args.device == "cpu":
        raise RedKnotError(
            "--enable-memory-saver cannot be used on a CPU: it gives back memory of NVIDIA GPUs; leave it out"
        )
    if server_args.tokenizer_worker_num > 1 and (server_args.api_key or server_args.admin_api_key):
        raise RedKnotError(
            "--api-key and --admin-api-key cannot be used with --tokenizer-worker-num over 1: SGLang asks for keys only where one process "
            "reads requests, so everybody could list and delete what others have cached; use one worker, or a proxy that asks for the key"
        )
    graphs = server_args.cuda_graph_config.prefill.backend
    if graphs not in ("breakable", "disabled"):
        # The others record attention itself, or pad the requests of a batch; our plans are for the rows there are.
        raise RedKnotError(
            f"--cuda-graph-backend-prefill {graphs} cannot be used with --redknot; use breakable (SGLang's default) or "
            "disabled"
        )
    kv_heads = model_config.get_total_num_kv_heads()
    if server_args.device == "cpu" and kv_heads % server_args.tp_size:
        # On GPUs several ranks get copies of a KV head; on a CPU SGLang adds heads of zeros, which are on no map.
        raise RedKnotError(
            f"--tp-size {server_args.tp_size} cannot be used with --redknot on a CPU: the model has {kv_heads} KV heads, and SGLang adds "
            "empty ones; use a number that divides them"
        )
    architecture = model_config.hf_config.architectures[0]
    for bad, reason in _model_reasons(model_config):
        if bad:
            raise RedKnotError(f"--redknot cannot serve {architecture}: {reason}")


def _refuse_with_drafts(server_args: Any) -> None:
    mode = f"--speculative-algorithm {server_args.speculative_algorithm}"
    apart = server_args.disaggregation_mode
    rows = (
        *(_ngram_reasons(server_args) if server_args.speculative_algorithm == NGRAM else _eagle_reasons(server_args)),
        (
            apart != "null",
            f"--disaggregation-mode {apart}",
            "how many slots a decode server promises does not count drafts; leave one of them out",
        ),
    )
    for bad, what, reason in rows:
        if bad:
            raise RedKnotError(f"{what} cannot be used with {mode} under --redknot yet: {reason}")


# (whether it is refused, flag, reason)
Reasons = tuple[tuple[bool, str, str], ...]


def _ngram_reasons(server_args: Any) -> Reasons:
    breadth, budget = server_args.speculative_ngram_max_bfs_breadth, server_args.speculative_ngram_external_sam_budget
    return (
        (
            breadth != 1,
            f"--speculative-ngram-max-bfs-breadth {breadth}",
            "drafts would be trees, and a row sees all positions before its own: drafts must be chains; add "
            "--speculative-ngram-max-bfs-breadth 1",
        ),
        (
            budget != 0,
            f"--speculative-ngram-external-sam-budget {budget}",
            "what an external corpus drafts would be a second branch, and drafts must be chains; leave it out",
        ),
    )


def _eagle_reasons(server_args: Any) -> Reasons:
    from redknot_sglang.seams.sglang import envs

    topk, attention = server_args.speculative_eagle_topk, server_args.speculative_draft_attention_backend
    return (
        (
            topk != 1,
            f"--speculative-eagle-topk {topk}",
            "drafts would be trees, and a row sees all positions before its own: drafts must be chains; add "
            "--speculative-eagle-topk 1, with --speculative-num-steps",
        ),
        (
            server_args.enable_hierarchical_cache,
            "--enable-hierarchical-cache",
            "the host keeps the KV of head classes only, so that what comes back from there would be without the draft model's; leave one "
            "of them out",
        ),
        (
            server_args.enable_memory_saver,
            "--enable-memory-saver",
            "memory of the draft model's KV that was given back and taken again holds anything; leave one of them out",
        ),
        (
            server_args.speculative_adaptive,
            "--speculative-adaptive",
            "local slots are counted for drafts of one length; leave it out",
        ),
        (
            server_args.enable_multi_layer_eagle,
            "--enable-multi-layer-eagle",
            "several draft models, each with KV of its own, are not counted in the sizes of the pools; leave it out",
        ),
        (
            server_args.speculative_draft_window_size is not None,
            f"--speculative-draft-window-size {server_args.speculative_draft_window_size}",
            "a draft model with a window of its own was not tried; leave it out",
        ),
        (
            server_args.speculative_use_rejection_sampling,
            "--speculative-use-rejection-sampling",
            "it was not tried; leave it out",
        ),
        (
            server_args.device == "cpu" and attention is not None,
            f"--speculative-draft-attention-backend {attention}",
            "on a CPU the draft model has one attention, in plain torch; leave it out",
        ),
        (
            envs.SGLANG_ENABLE_OVERLAP_PLAN_STREAM.get(),
            "SGLANG_ENABLE_OVERLAP_PLAN_STREAM",
            "attention would be planned beside the forward, and copies of documents' KV begin with the plan; leave it out",
        ),
    )


def _refuse_apart(server_args: Any) -> None:
    from redknot_sglang.seams.sglang import envs

    mode = f"--disaggregation-mode {server_args.disaggregation_mode}"
    for bad, what, reason in (
        (server_args.dp_size > 1, f"--dp-size {server_args.dp_size}", "which rank has what was not tried"),
        (
            server_args.enable_memory_saver,
            "--enable-memory-saver",
            "the other server has the addresses of the pools, and to take them back and give them out again was not tried",
        ),
        (
            server_args.quantization_param_path is not None,
            "--quantization-param-path",
            "whether both servers have the same scales cannot be told",
        ),
        (
            envs.SGLANG_DISAGG_STAGING_BUFFER.get(),
            "SGLANG_DISAGG_STAGING_BUFFER",
            "staging gathers the heads of whole tokens, for servers of different --tp-size; use the same size on both",
        ),
        (
            envs.SGLANG_MOONCAKE_CUSTOM_MEM_POOL.get() is not None,
            "SGLANG_MOONCAKE_CUSTOM_MEM_POOL",
            "the pools of head classes are ordinary memory",
        ),
    ):
        if bad:
            raise RedKnotError(f"{what} cannot be used with {mode} under --redknot yet: {reason}")


def _model_reasons(model_config: Any) -> tuple[tuple[bool, str], ...]:
    from redknot_sglang.seams.sglang import AttentionArch

    text = model_config.hf_text_config
    windowed = bool(getattr(text, "sliding_window", None)) and getattr(text, "use_sliding_window", True)
    return (
        (model_config.attention_arch != AttentionArch.MHA, "its attention is not MHA, GQA or MQA"),
        (model_config.is_multimodal, "multimodal prompts are not supported yet"),
        (not model_config.is_generation, "it is not a generative model"),
        (getattr(model_config, "is_encoder_decoder", False), "encoder-decoder attention is not supported"),
        (
            windowed,
            "its layers have sliding windows of their own; set sliding_window to null in config.json to override",
        ),
        (model_config.head_dim != model_config.v_head_dim, "keys and values have different widths"),
        (bool(getattr(model_config, "has_attention_sinks", False)), "it has learned attention sinks"),
        (bool(getattr(text, "attn_logit_softcapping", None)), "it caps attention logits"),
    )
