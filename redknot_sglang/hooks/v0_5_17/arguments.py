# SPDX-License-Identifier: Apache-2.0
"""SGLang's server arguments: our flags on the command line, in `--config` files and as `sgl.Engine` keywords."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from redknot_sglang import __version__, active
from redknot_sglang.certificate.check import Served, certify_start
from redknot_sglang.certificate.default_repair import default_repair
from redknot_sglang.certificate.document import EXACT
from redknot_sglang.certificate.fingerprint import fingerprint_served
from redknot_sglang.config import WHY_NO_REPAIR, Certification, RedKnotConfig
from redknot_sglang.cpu import has_cuda_driver
from redknot_sglang.errors import CertificateError, HeadMapError, RedKnotError, SeamError
from redknot_sglang.flags import add_cli_args, make_config, take_options
from redknot_sglang.hooks.v0_5_17 import registries
from redknot_sglang.hooks.v0_5_17.refusals import ARGUMENTS, Arguments, refuse_unsupported
from redknot_sglang.plan.policies import WHY_NOT_APART, WITHOUT_PROBES, listed, parse_repair
from redknot_sglang.pool.asked import WHY_NO_RETRIEVAL, check_retrieval
from redknot_sglang.pool.probe import WHY_NO_PROBES, probe_width
from redknot_sglang.pool.start_sizes import StartSizes
from redknot_sglang.seams import Seam
from redknot_sglang.seams.model_config import head_map_of
from redknot_sglang.versions import sglang_version

_CARRIED = "_redknot_options"


def _add_flags(result: Any, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
    add_cli_args(parser)
    registries.offer_eviction_policy(parser)


def _from_command_line(original: Any, cls: Any, args: argparse.Namespace) -> Any:
    # The dataclass constructor takes declared fields only, so the options pass through a class attribute of the call.
    options = take_options(vars(args))
    setattr(cls, _CARRIED, options)
    try:
        return original(cls, args)
    except (RedKnotError, HeadMapError, CertificateError, SeamError) as error:
        sys.exit(f"redknot: error: {error}")
    finally:
        delattr(cls, _CARRIED)


def _constructing(refused: Arguments) -> Callable[..., None]:
    def construct(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        options = take_options(kwargs) or getattr(type(self), _CARRIED, {})
        config = make_config(options, kwargs.get("model_path"))
        if isinstance(kwargs.get("radix_eviction_policy"), registries.Unsaid):
            del kwargs["radix_eviction_policy"]
        if config is None:
            if kwargs.get("radix_eviction_policy") == registries.EVICTION_POLICY:
                raise RedKnotError("--radix-eviction-policy redknot needs --redknot; add it or choose another policy")
            original(self, *args, **kwargs)
            return
        from redknot_sglang import seams

        seams.verify()
        registries.register()
        active.attach(self, config)
        original(self, *args, **_with_forced(kwargs))
        chosen = config.repair is not None
        config = _with_default_repair(self, config)
        _check(self, config, refused)
        # Last, for it reads weights.
        active.attach(self, replace(config, certification=_certify(self, config, chosen)))

    return construct


def _with_default_repair(server_args: Any, config: RedKnotConfig) -> RedKnotConfig:
    if config.repair is not None:
        return config
    heads = head_map_of(server_args.get_model_config())
    repair = default_repair(heads, config.head_map, config.segment_lead == "lead")
    apart = server_args.disaggregation_mode != "null"
    return replace(config, repair=None if repair and apart and parse_repair(repair).selects else repair)


def _with_forced(kwargs: dict[str, Any]) -> dict[str, Any]:
    forced = {"radix_cache_backend": "redknot", "page_size": 1}
    for name, value in forced.items():
        given = kwargs.get(name)
        if given not in (None, value):
            flag = "--" + name.replace("_", "-")
            raise RedKnotError(
                f"{flag} {given} does not work with --redknot, which needs {flag} {value}; leave {flag} out"
            )
    for name in ("attention_backend", "prefill_attention_backend", "decode_attention_backend"):
        given = kwargs.get(name)
        if given is not None and (name, given) != ("attention_backend", _host_backend(kwargs)):
            flag = "--" + name.replace("_", "-")
            raise RedKnotError(f"{flag} {given} does not work with --redknot; choose a path with --redknot-attention")
    ours = {"radix_eviction_policy": registries.EVICTION_POLICY}
    return {**ours, **kwargs, **forced, "attention_backend": _host_backend(kwargs)}


def _host_backend(kwargs: dict[str, Any]) -> str:
    """The SGLang backend name under which ours is built; SGLang ties graph and page defaults to these names."""
    device = kwargs.get("device")
    if device == "cpu" or (device is None and not has_cuda_driver()):
        return "torch_native"
    return "flashinfer"


def _check(server_args: Any, config: RedKnotConfig, refused: Arguments) -> None:
    model_config = server_args.get_model_config()
    refuse_unsupported(server_args, model_config, refused)
    if server_args.device == "cpu" and config.attention not in (None, "torch"):
        raise RedKnotError(
            f"--redknot-attention {config.attention} needs a GPU, and this server runs on the CPU; leave it out"
        )
    length = config.context_length
    if length is not None and length > model_config.context_len:
        raise RedKnotError(
            f"--redknot-context-length {length} exceeds the model's context length {model_config.context_len}; "
            "lower it or raise --context-length"
        )

    _check_sizes(server_args, model_config, config)
    heads = head_map_of(model_config)
    check_retrieval(heads, model_config.num_attention_heads // heads.num_kv_heads)
    if config.repair is None:
        # Whoever serves what is not certified may leave the choice to each request.
        if config.mode == "segmented" or (config.expects_segments and not config.uncertified):
            raise RedKnotError(
                f"--redknot-mode segmented and sizes of segments: {WHY_NO_REPAIR}; certify one with `redknot certify --repair`, or name "
                f"one with --redknot-repair, of {listed()}"
            )
        return
    if config.mode != "segmented":
        return
    repair = parse_repair(config.repair)
    if repair.selects and server_args.disaggregation_mode != "null":
        raise RedKnotError(f"--redknot-repair {config.repair} {WHY_NOT_APART}; use --redknot-repair {WITHOUT_PROBES}")
    if repair.selects and not heads.retrieval:
        raise RedKnotError(
            f"--redknot-repair {config.repair} {WHY_NO_RETRIEVAL}; use --redknot-repair {WITHOUT_PROBES}"
        )
    can_probe = probe_width(config, heads, 1) > 0
    if repair.probes and not can_probe:
        raise RedKnotError(f"--redknot-repair {config.repair} {WHY_NO_PROBES}; use --redknot-repair {WITHOUT_PROBES}")


def _certify(server_args: Any, config: RedKnotConfig, chosen: bool) -> Certification:
    """What the certificate beside the head map covers. Raises CertificateError where it does not cover the flags.

    chosen: whether the flags name a repair policy: that one is meant to be used, also by a server that answers in exact mode by
        default.
    """
    segmented = [config.certified_name(config.repair)] if config.repair and (config.expects_segments or chosen) else []
    served = Served(
        head_map=head_map_of(server_args.get_model_config()),
        map_path=config.head_map,
        model=lambda: fingerprint_served(vars(server_args)),
        sglang=sglang_version(),
        redknot=__version__,
        policies=(EXACT, *segmented),
    )
    return certify_start(served, config.certificate_key, config.uncertified)


def _check_sizes(server_args: Any, model_config: Any, config: RedKnotConfig) -> None:
    """Refuse sizes that hold no request here, where it is one line, and not in the scheduler process."""
    sizes = StartSizes(server_args, model_config, config)
    if server_args.max_total_tokens is not None:
        sizes.of_tokens(server_args.max_total_tokens)
    if config.kv_budget is not None:
        sizes.of_budget(config.kv_budget)


def construction(refused: Arguments) -> Seam:
    """The seam on the constructor of SGLang's arguments. refused: those that do not work with RedKnot."""
    return Seam(
        "server_args.ServerArgs.__init__",
        _constructing(refused),
        "around",
        "options of sgl.Engine, checks, forced arguments",
    )


SEAMS = (
    Seam(
        "server_args.ServerArgs.add_cli_args",
        _add_flags,
        "after",
        "flags on the command line and in --config",
    ),
    Seam("server_args.ServerArgs.from_cli_args", _from_command_line, "around", "options from the command line"),
    construction(ARGUMENTS),
)
