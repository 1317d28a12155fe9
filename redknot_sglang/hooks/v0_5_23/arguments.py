# SPDX-License-Identifier: Apache-2.0
"""SGLang 0.5.23's server arguments: our flags, on the command line, in `--config` files and as `sgl.Engine` keywords.

The record of arguments is what the user gave, and SGLang works out what is in force in `resolve_once`, once. So ours are attached
to the record, those that we need are given in the user's place, and what needs values in force is looked at after that.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from typing import Any

from redknot_sglang import active
from redknot_sglang.errors import CertificateError, HeadMapError, RedKnotError, SeamError
from redknot_sglang.flags import make_config, take_options
from redknot_sglang.hooks.v0_5_17 import arguments as before
from redknot_sglang.hooks.v0_5_17 import registries
from redknot_sglang.hooks.v0_5_17.refusals import refuse_first
from redknot_sglang.hooks.v0_5_23.refusals import ARGUMENTS
from redknot_sglang.hooks.v0_5_23.tree import build_tree
from redknot_sglang.seams import Seam
from redknot_sglang.seams.v0_5_23.arguments import resolved

logger = logging.getLogger(__name__)

# Attribute of arguments that came from a command line: what is wrong with them is one line, and not a traceback.
_EXITS = "_redknot_exits"


def _from_command_line(original: Any, cls: Any, args: argparse.Namespace) -> Any:
    options, given = take_options(vars(args)), _as_given(vars(args))
    # A structure keeps its fields as they come, and these go to other processes.
    args.radix_eviction_policy = "".join(args.radix_eviction_policy)
    try:
        config = make_config(options, args.model_path)
        if config is None:
            if args.radix_eviction_policy == registries.EVICTION_POLICY:
                raise RedKnotError("--radix-eviction-policy redknot needs --redknot; add it or choose another policy")
            return original(cls, args)
        vars(args).update(with_forced(given))
        server_args = original(cls, args)
        active.attach(server_args, config)
        setattr(server_args, _EXITS, True)
        return server_args
    except (RedKnotError, HeadMapError, CertificateError, SeamError) as error:
        sys.exit(f"redknot: error: {error}")


def with_forced(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments with those that RedKnot needs. Graphs of prefills, the default with earlier versions, were not tried with this one and
    are off, which is logged. Raises RedKnotError for values that cannot be used.
    """
    refuse_first(kwargs)
    graphs = kwargs.get("cuda_graph_backend_prefill")
    if graphs not in (None, "disabled"):
        raise RedKnotError(
            f"--cuda-graph-backend-prefill {graphs} cannot be used with --redknot and SGLang 0.5.23: it was not tried; use disabled, the "
            "default there"
        )
    forced = before._with_forced(kwargs)
    if graphs is None and not kwargs.get("disable_prefill_cuda_graph"):
        logger.info("RedKnot: no graphs of prefills with SGLang 0.5.23, with which they were not tried")
    return {**forced, "cuda_graph_backend_prefill": "disabled"}


def _as_given(values: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a command line without those that stand at a default."""
    return {
        name: value for name, value in values.items() if value is not None and not isinstance(value, registries.Unsaid)
    }


def _resolving(original: Any, server_args: Any) -> None:
    config = active.config_of(server_args)
    if config is None or getattr(server_args, "_resolution_finished", False):
        original(server_args)
        return
    from redknot_sglang import seams

    try:
        seams.verify()
        registries.register(build_tree)
        original(server_args)
        chosen = config.repair is not None
        view = resolved(server_args)
        config = before._with_default_repair(view, config)
        if view.cuda_graph_config.prefill.backend != "disabled":
            raise RedKnotError(
                f"--cuda-graph-config with prefill backend {view.cuda_graph_config.prefill.backend} cannot be used with --redknot and SGLang "
                "0.5.23: it was not tried; use disabled"
            )
        before._check(view, config, ARGUMENTS)
        # Last, for it reads weights.
        active.attach(server_args, replace(config, certification=before._certify(view, config, chosen)))
    except (RedKnotError, HeadMapError, CertificateError, SeamError) as error:
        if getattr(server_args, _EXITS, False):
            sys.exit(f"redknot: error: {error}")
        raise


SEAMS = (
    Seam("server_args.ServerArgs.from_cli_args", _from_command_line, "around", "options from the command line"),
    Seam("server_args.ServerArgs.resolve_once", _resolving, "around", "checks of all arguments"),
)
