# SPDX-License-Identifier: Apache-2.0
"""SGLang's loading and updating of weights: heads are dealt out over tensor-parallel ranks while they come."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from redknot_sglang import active
from redknot_sglang.errors import RedKnotError
from redknot_sglang.refuse import one_line
from redknot_sglang.seams import Seam

logger = logging.getLogger(__name__)

_WHY = "heads are dealt out over the ranks of this server, so that its weights are not in the checkpoint's order"


def _deal_heads(model: Any, model_config: Any, load_config: Any, *args: Any, **kwargs: Any) -> None:
    """Have each weight of a new model put its heads in the order of the ranks while it is loaded, where the server deals heads
    out. The start ends with one line if a weight is not known.
    """
    from redknot_sglang.pool.dealing import DUMMY, dealing_of, is_attached
    from redknot_sglang.pool.dealt_weights import follow_dealing
    from redknot_sglang.seams.sglang import get_parallel, get_server_args

    server_args = get_server_args()
    if active.config_of(server_args) is None or not is_attached(model_config):
        return
    dealing = dealing_of(model_config)
    if dealing.ranks > 1 and get_parallel().attn_tp_rank == 0:
        logger.log(logging.WARNING if dealing.why_not else logging.INFO, "RedKnot: %s", dealing.sentence())
    if not dealing.moves:
        return
    made_up = load_config.load_format == DUMMY
    with one_line(server_args.dp_size > 1):
        follow_dealing(model, dealing, model_config.head_dim, complete=not made_up)
    if made_up:
        return
    load = model.load_weights

    def load_at_start(*args: Any, **kwargs: Any) -> Any:
        # Later errors are answers to whoever asked for an update.
        model.load_weights = load
        with one_line(server_args.dp_size > 1):
            return load(*args, **kwargs)

    model.load_weights = load_at_start


def _update_from_disk(
    original: Callable[..., tuple[bool, str]],
    updater: Any,
    model_path: str,
    load_format: str,
    *args: Any,
    **kwargs: Any,
) -> tuple[bool, str]:
    from redknot_sglang.pool.dealing import STREAMING
    from redknot_sglang.pool.dealt_weights import is_dealt

    if is_dealt(updater.get_model()) and load_format not in STREAMING:
        return False, f"load_format {load_format} cannot be used: {_WHY}; use one of {', '.join(STREAMING)}"
    before = updater.model_config.model_path
    try:
        return original(updater, model_path, load_format, *args, **kwargs)
    except RedKnotError as error:
        # To roll back, SGLang loads the same folder again; this is the second error, and would end the server.
        updater.model_config.model_path = before
        return False, f"{error}. Weights before it are in place, so load a whole checkpoint again, such as {before}"


def _update_from_tensor(
    original: Callable[..., tuple[bool, str]],
    updater: Any,
    named_tensors: Any,
    load_format: str | None = None,
) -> tuple[bool, str]:
    from redknot_sglang.pool.dealt_weights import is_dealt

    if not is_dealt(updater.get_model()):
        return original(updater, named_tensors, load_format)
    if load_format not in (None, "flattened_bucket"):
        return False, f"load_format {load_format} cannot be used: {_WHY}; leave it out, and send whole weights"
    try:
        return original(updater, named_tensors, load_format)
    except RedKnotError as error:
        # SGLang would end the server.
        return False, f"{error}. Weights before it are in place, so load all of them again"


def _refuse_to_send(original: Callable[..., tuple[bool, str]], exporter: Any, *args: Any, **kwargs: Any) -> Any:
    from redknot_sglang.pool.dealt_weights import is_dealt

    if is_dealt(exporter.get_model()):
        return False, f"weights cannot be sent to another server: {_WHY}"
    return original(exporter, *args, **kwargs)


def _refuse_to_save(original: Callable[..., None], exporter: Any, *args: Any, **kwargs: Any) -> None:
    from redknot_sglang.pool.dealt_weights import is_dealt

    if is_dealt(exporter.get_model()):
        raise RedKnotError(f"weights cannot be saved: {_WHY}; save them from a server without --redknot")
    original(exporter, *args, **kwargs)


def _refuse_to_show(original: Callable[..., Any], exporter: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    from redknot_sglang.pool.dealt_weights import is_dealt

    if is_dealt(exporter.get_model()) and ".self_attn." in name:
        logger.error("RedKnot: %s cannot be shown: %s", name, _WHY)
        return None
    return original(exporter, name, *args, **kwargs)


_PARTS = "model_executor.model_runner_components"
_UPDATER, _EXPORTER = f"{_PARTS}.weight_updater.WeightUpdater", f"{_PARTS}.weight_exporter.WeightExporter"

SEAMS = (
    Seam(
        "model_loader.loader._initialize_model",
        _deal_heads,
        "after",
        "heads are dealt out over tensor-parallel ranks while weights are loaded",
    ),
    Seam(
        f"{_UPDATER}.update_weights_from_disk",
        _update_from_disk,
        "around",
        "updates that would not deal heads out are refused",
    ),
    Seam(
        f"{_UPDATER}.update_weights_from_tensor", _update_from_tensor, "around", "such updates by tensors are refused"
    ),
    *(
        Seam(f"{_EXPORTER}.{name}", _refuse_to_send, "around", "dealt weights do not leave the server")
        for name in ("init_weights_send_group_for_remote_instance", "send_weights_to_remote_instance")
    ),
    *(
        Seam(f"{_EXPORTER}.{name}", _refuse_to_save, "around", "dealt weights do not leave the server")
        for name in ("save_remote_model", "save_sharded_model")
    ),
    Seam(f"{_EXPORTER}.get_weights_by_name", _refuse_to_show, "around", "dealt weights do not leave the server"),
)
